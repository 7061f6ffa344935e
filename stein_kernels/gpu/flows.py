"""Every op on a GPU, given a route and the launches of its backend; signatures as in ``_ops``.

An op without particles, targets or features has nothing to launch: ``_composite`` answers it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stein_kernels import _composite, reference
from stein_kernels.gpu import direction, divergence, gram, long_pairs, long_rows, median, small_set
from stein_kernels.gpu.routes import Problem, Route


def run(op: str, problem: Problem, route: Route, kernels: Any, arguments: tuple[Any, ...]) -> Any:
    """Run an op by name."""
    sizes = problem.batch, problem.particles, problem.targets, problem.features
    if min(sizes) == 0:
        return getattr(_composite, op)(*arguments)
    return _FLOWS[op](route, kernels, *arguments)


def _median_distance(route: Route, kernels: Any, x: Tensor) -> Tensor:
    if route.flow == "long_rows":
        return long_pairs.median_distance(kernels, x, route.precision)
    return median.median_distance(kernels, x)


def _rbf_gram(route: Route, kernels: Any, x: Tensor, y: Tensor | None, bandwidth: Tensor) -> Tensor:
    h = bandwidth.contiguous()
    if route.flow == "long_rows":
        return long_rows.gram(kernels, x, y, h, route.precision)
    return gram.forward(kernels, x, y, h)


def _rbf_gram_backward(
    route: Route, kernels: Any, v: Tensor, x: Tensor, y: Tensor | None, bandwidth: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    h = bandwidth.contiguous()
    if route.flow == "long_rows":
        return long_rows.gram_backward(kernels, v, x, y, h, route.precision)
    return gram.backward(kernels, v, x, y, h, route.precision)


def _svgd_direction(
    route: Route,
    kernels: Any,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor | None,
    rule: str,
    leave_one_out: bool,
) -> tuple[Tensor, Tensor]:
    h = None if bandwidth is None else bandwidth.clone().contiguous()
    if route.flow == "small_set":
        return small_set.direction(kernels, x, grad, weights, h, rule, leave_one_out)
    if route.flow == "long_rows":
        arguments = x, grad, weights, query, h, rule, leave_one_out
        return long_rows.direction(kernels, *arguments, route.precision)
    if h is None:
        h = reference.apply_rule(median.median_distance(kernels, x), x.shape[1], rule)
    phi = direction.forward(kernels, x, grad, weights, query, h, leave_one_out, route.precision)
    return phi, h


def _svgd_direction_backward(
    route: Route,
    kernels: Any,
    v: Tensor,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
) -> tuple[Tensor, ...]:
    h = bandwidth.contiguous()
    if route.flow == "small_set":
        return small_set.direction_backward(kernels, v, x, grad, weights, h, leave_one_out)
    arguments = kernels, v, x, grad, weights, query, h, leave_one_out
    if route.flow == "long_rows":
        return long_rows.direction_backward(*arguments, route.precision)
    return direction.backward(*arguments, route.precision)


def _stein_divergence(
    route: Route,
    kernels: Any,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
) -> Tensor:
    arguments = kernels, x, grad, weights, query, bandwidth.contiguous(), leave_one_out
    if route.flow == "long_rows":
        return long_rows.divergence(*arguments, route.precision)
    return divergence.forward(*arguments, route.precision)


def _stein_divergence_backward(
    route: Route,
    kernels: Any,
    v: Tensor,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
) -> tuple[Tensor, ...]:
    arguments = kernels, v, x, grad, weights, query, bandwidth.contiguous(), leave_one_out
    if route.flow == "long_rows":
        return long_rows.divergence_backward(*arguments, route.precision)
    return divergence.backward(*arguments, route.precision)


_FLOWS = {
    "median_distance": _median_distance,
    "rbf_gram": _rbf_gram,
    "rbf_gram_backward": _rbf_gram_backward,
    "svgd_direction": _svgd_direction,
    "svgd_direction_backward": _svgd_direction_backward,
    "stein_divergence": _stein_divergence,
    "stein_divergence_backward": _stein_divergence_backward,
}
