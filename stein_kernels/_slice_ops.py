"""The ops on a slice of the features: what each rank does where the last dimension is sharded.

Squared distances and displaced products are sums over features, so those of slices add up to those
of all; given the M x N weights of the pairs, a direction is made for every feature by itself. The
three ops are closed under differentiation, so they have derivatives of any order.

Shapes: x, grad (B, M, d); y (B, N, d), or the sources themselves; coefficients and sums over
features (B, M, N) and bandwidth (B,), both in the accumulation dtype T. The first index of a matrix
is the source. Formulas: ``reference``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

from stein_kernels import reference
from stein_kernels._checks import accumulation_dtype
from stein_kernels._schemas import BACKEND, count_values, of_values

NAMESPACE = "stein_kernels"
SCHEMAS = {
    "squared_distances": f"(Tensor x, Tensor? y, {BACKEND}) -> Tensor",
    "displaced_products": f"(Tensor x, Tensor grad, Tensor? y, {BACKEND}) -> Tensor",
    "weighted_direction": "(Tensor coefficients, Tensor x, Tensor? grad, Tensor? y,"
    f" Tensor bandwidth, {BACKEND}) -> Tensor",
    "median_of_squared": f"(Tensor squared, {BACKEND}) -> Tensor",
}
RUN = 2**20  # coordinates in float64 held at a time: 8 MB
PAIRS_SORTED = 2**16  # a larger set selects the middle ranks instead: 5,000 particles sort for 1 s


# --- torch kernels, in float64 and a run of features at a time -----------------------------------


class Run(NamedTuple):
    """Some features of everything, in float64."""

    features: slice
    x: Tensor  # (B, M, n), less the first source
    y: Tensor  # (B, N, n), likewise
    grad: Tensor  # (B, M, n); zeros where there is none


def _runs(x: Tensor, grad: Tensor | None, y: Tensor | None) -> Iterator[Run]:
    """Centred on a particle, so a common shift costs no digit of a product either."""
    rows = x.shape[0] * (2 * x.shape[1] + (x if y is None else y).shape[1])
    step = max(1, RUN // max(1, rows))
    for start in range(0, x.shape[2], step):
        run = slice(start, min(x.shape[2], start + step))
        centre = x[:, :1, run].double() if x.shape[1] else 0.0
        source = x[:, :, run].double() - centre
        target = source if y is None else y[:, :, run].double() - centre
        score = torch.zeros_like(source) if grad is None else grad[:, :, run].double()
        yield Run(run, source, target, score)


def _sums(x: Tensor, y: Tensor | None) -> Tensor:
    """Zeros (B, M, N) in float64."""
    targets = (x if y is None else y).shape[1]
    return x.new_zeros(x.shape[0], x.shape[1], targets, dtype=torch.float64)


def squared_distances(x: Tensor, y: Tensor | None) -> Tensor:
    total = _sums(x, y)
    for run in _runs(x, None, y):
        total += torch.cdist(run.x, run.y, compute_mode="donot_use_mm_for_euclid_dist").square()
    if y is None:  # 0, or NaN where a coordinate is not finite
        total.diagonal(0, 1, 2).copy_(0 * x.double().sum(-1))
    return total.to(accumulation_dtype(x.dtype))


def displaced_products(x: Tensor, grad: Tensor, y: Tensor | None) -> Tensor:
    total = _sums(x, y)
    for run in _runs(x, grad, y):
        total += run.grad @ run.y.mT - (run.grad * run.x).sum(-1)[..., None]
    return total.to(accumulation_dtype(x.dtype))


def weighted_direction(
    coefficients: Tensor, x: Tensor, grad: Tensor | None, y: Tensor | None, bandwidth: Tensor
) -> Tensor:
    turned = coefficients.double().mT
    c = 2 / bandwidth.double()[:, None, None]
    mass = turned.sum(2)[..., None]
    phi = x.new_empty((x if y is None else y).shape)
    for run in _runs(x, grad, y):
        field = turned @ (run.grad - c * run.x) + c * mass * run.y
        phi[:, :, run.features] = field.to(x.dtype)
    return phi


def median_of_squared(squared: Tensor) -> Tensor:
    m = squared.shape[1]
    pairs = m * (m - 1) // 2
    if pairs <= PAIRS_SORTED:
        return reference.median_of_squared(squared)
    i, j = torch.triu_indices(m, m, offset=1, device=squared.device)
    above = squared[:, i, j]
    low = above.kthvalue((pairs - 1) // 2 + 1).values
    high = above.kthvalue(pairs // 2 + 1).values
    median = (low.sqrt() + high.sqrt()) / 2
    fallback = above.mean(-1).sqrt()
    median = torch.where(median > 0, median, torch.where(fallback > 0, fallback, 1.0))
    finite = squared.diagonal(0, 1, 2).isfinite().all(-1)
    return torch.where(finite, median, torch.nan)


def _on_cuda(name: str) -> Callable[..., Tensor]:
    """By the launches of long rows where they take the shape, which need no float64."""
    count = count_values(SCHEMAS[name])

    def kernel(*given: Any) -> Tensor:
        from stein_kernels.gpu import dispatch, routes, slices

        arguments = given[:count]
        x = arguments[_PARTICLES.get(name, 0)]
        backends = dispatch.backends_for(x.device, *given[count:])
        if backends and all(each.numel() for each in arguments if isinstance(each, Tensor)):
            as_query = (x, x, None, x)  # a set by itself would go to the flow of small sets
            problem = routes.problem_of("svgd_direction", as_query)
            route = routes.choose("svgd_direction", problem, backends)
            if route.flow == "long_rows" or name == "median_of_squared":
                with torch.cuda.device(x.device):
                    launches = dispatch.launches(route.backend)
                    return getattr(slices, name)(launches, route.precision, *arguments)
        return globals()[name](*arguments)

    return kernel


_PARTICLES = {"weighted_direction": 1}  # where they stand among the arguments
_library = Library(NAMESPACE, "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, of_values(_schema, globals()[_name]), "CompositeExplicitAutograd")
    if _name != "displaced_products":  # two products of float64: no launch has it
        _library.impl(_name, _on_cuda(_name), "CUDA")


# --- fakes ---------------------------------------------------------------------------------------


def _pairs(x: Tensor, y: Tensor | None) -> Tensor:
    targets = (x if y is None else y).shape[1]
    return x.new_empty(x.shape[0], x.shape[1], targets, dtype=accumulation_dtype(x.dtype))


@torch.library.register_fake("stein_kernels::squared_distances", lib=_library)
def _(x, y, backend="auto"):
    return _pairs(x, y)


@torch.library.register_fake("stein_kernels::displaced_products", lib=_library)
def _(x, grad, y, backend="auto"):
    return _pairs(x, y)


@torch.library.register_fake("stein_kernels::weighted_direction", lib=_library)
def _(coefficients, x, grad, y, bandwidth, backend="auto"):
    return x.new_empty((x if y is None else y).shape)


@torch.library.register_fake("stein_kernels::median_of_squared", lib=_library)
def _(squared, backend="auto"):
    return squared.new_empty(squared.shape[0])


# --- derivatives, by the same three ops ----------------------------------------------------------


def _twice_displaced(coefficients: Tensor, x: Tensor, y: Tensor | None, backend: str) -> Tensor:
    """2 sum_i P_ij (y_j - x_i)."""
    one = coefficients.new_ones(x.shape[0])
    return torch.ops.stein_kernels.weighted_direction(coefficients, x, None, y, one, backend)


def _setup_tensors(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _distances_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    if y is None:
        return _twice_displaced(v + v.mT, x, None, ctx.backend), None, None
    return _twice_displaced(v.mT, y, x, ctx.backend), _twice_displaced(v, x, y, ctx.backend), None


def _products_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    x, grad, y = ctx.saved_tensors
    wide = grad.to(v.dtype)
    dx = (-v.sum(2)[..., None] * wide).to(x.dtype)
    dy = (v.mT @ wide).to(x.dtype)
    ends = (x, None) if y is None else (y, x)
    dg = -0.5 * _twice_displaced(v.mT, *ends, ctx.backend)
    return (dx + dy, dg, None, None) if y is None else (dx, dg, dy, None)


def _direction_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    """With A_ij = v_j . (y_j - x_i): dP = g_i . v_j + c A, dc = sum P A, dc/dh = -c/h."""
    p, x, grad, y, h = ctx.saved_tensors
    c, wide = 2 / h[:, None, None], v.to(p.dtype)
    targets, sources = (x, None) if y is None else (y, x)
    along = -torch.ops.stein_kernels.displaced_products(targets, v, sources, ctx.backend).mT
    dp = c * along
    if grad is not None:
        dp = dp + grad.to(p.dtype) @ wide.mT
    carried = p @ wide
    dx, dy = -c * carried, c * p.sum(1)[..., None] * wide
    dh = -(c / h[:, None, None])[:, 0, 0] * (p * along).sum((1, 2))
    dg = None if grad is None else carried.to(grad.dtype)
    if y is None:
        return dp, (dx + dy).to(x.dtype), dg, None, dh, None
    return dp, dx.to(x.dtype), dg, dy.to(y.dtype), dh, None


def _constant_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.mark_non_differentiable(output)


def _constant_backward(ctx: Any, *grads: Any) -> None:
    return None


_AUTOGRAD = {
    "squared_distances": (_setup_tensors, _distances_backward),
    "displaced_products": (_setup_tensors, _products_backward),
    "weighted_direction": (_setup_tensors, _direction_backward),
    "median_of_squared": (_constant_setup, _constant_backward),
}
for _name, (_setup, _backward) in _AUTOGRAD.items():
    torch.library.register_autograd(
        f"{NAMESPACE}::{_name}", _backward, setup_context=_setup, lib=_library
    )
for _name in SCHEMAS:
    for _device in ("cpu", "cuda"):  # distances need float32
        torch.library.register_autocast(
            f"{NAMESPACE}::{_name}", _device, torch.float32, lib=_library
        )
