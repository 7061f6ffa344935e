"""The methods by name: how each one is made, warmed and told apart.

A method's call takes (x, grad, h) and returns what its experiment measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import stein_kernels
from bench import baselines
from bench.shapes import Shape

Call = Callable[[Tensor, Tensor, Tensor], object]
SMALL = 64  # particles of the call that makes KeOps compile; its code depends on d, not on M


def _never(shape: Shape) -> str | None:
    return None


class Method(NamedTuple):
    name: str
    make: Callable[[], Call]
    skip: Callable[[Shape], str | None] = _never
    compiles: str = "never"  # "never", "once" for a dimension d, "shape": for every shape


def build(method: Method, shape: Shape, inputs: tuple[Tensor, Tensor, Tensor]) -> Call:
    """The method's call with every just-in-time compiler done with this shape."""
    call = method.make()
    if method.compiles == "shape":
        call(*inputs)
    else:
        x, grad, h = inputs
        call(x[..., :SMALL, :].contiguous(), grad[..., :SMALL, :].contiguous(), h)
    return call


def _plain(function: Call) -> Callable[[], Call]:
    return lambda: function


def _compiled_gemm() -> Call:
    return torch.compile(baselines.gemm_direction, dynamic=False, fullgraph=True)


def _compiled_after(bandwidth: Callable[[Tensor], Tensor]) -> Callable[[], Call]:
    def make() -> Call:
        direction = _compiled_gemm()
        return lambda x, grad, _: direction(x, grad, bandwidth(x))

    return make


def _direction(x: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    return stein_kernels.svgd_direction(x, grad, bandwidth=h)


def _direction_with_median(x: Tensor, grad: Tensor, _: Tensor) -> Tensor:
    return stein_kernels.svgd_direction(x, grad)


def _differentiable(x: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    x, grad = x.detach().requires_grad_(), grad.detach().requires_grad_()
    return stein_kernels.svgd_direction(x, grad, bandwidth=h)


def _forward_and_backward(x: Tensor, grad: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    x, score = x.detach().requires_grad_(), grad.detach().requires_grad_()
    phi = stein_kernels.svgd_direction(x, score, bandwidth=h)
    return torch.autograd.grad(phi, (x, score), grad)


DIRECTION = (
    Method("ours", _plain(_direction)),
    Method("compiled_gemm", _compiled_gemm, compiles="shape"),
    Method("keops", _plain(baselines.keops_direction), baselines.skip_keops, "once"),
    Method("eager_gemm", _plain(baselines.gemm_direction)),
    Method("eager_difference", _plain(baselines.difference_direction), baselines.skip_difference),
)
WITH_MEDIAN = (
    Method("ours", _plain(_direction_with_median)),
    Method(
        "compiled_gemm_triu",
        _compiled_after(baselines.triu_bandwidth),
        baselines.skip_triu,
        "shape",
    ),
    Method(
        "compiled_gemm_pdist",
        _compiled_after(baselines.pdist_bandwidth),
        baselines.skip_pdist,
        "shape",
    ),
)
BACKWARD = (
    Method("ours_forward", _plain(_differentiable)),
    Method("ours_forward_backward", _plain(_forward_and_backward)),
)
GRAM = (
    Method("ours", _plain(lambda x, _, h: stein_kernels.rbf_gram(x, bandwidth=h))),
    Method("eager_gemm", _plain(lambda x, _, h: baselines.gemm_gram(x, h))),
    Method("eager_cdist", _plain(lambda x, _, h: baselines.cdist_gram(x, h))),
)
MEDIAN_ALONE = (
    Method("triu_median", _plain(lambda x, _, h: baselines.triu_bandwidth(x)), baselines.skip_triu),
    Method(
        "pdist_median", _plain(lambda x, _, h: baselines.pdist_bandwidth(x)), baselines.skip_pdist
    ),
)
# What a fresh process measures, by the name that the process is given.
MEMORY = {
    **{method.name: method for method in DIRECTION},
    "ours_with_median": WITH_MEDIAN[0],
    "ours_forward_backward": BACKWARD[1],
    **{method.name: method for method in MEDIAN_ALONE},
}
FIRST_CALL = {"ours": WITH_MEDIAN[0], "compiled_gemm": DIRECTION[1], "keops": DIRECTION[2]}
