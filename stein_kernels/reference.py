"""The specification: every public function in plain torch, on any device and dtype.

Written for reading, not for speed. Everything is a difference of coordinates, so nothing cancels;
the price is a tensor of shape (..., M, N, d). It is the oracle of the tests (in float64) and what
``use_backend("reference")`` runs. Torch differentiates it to any order.

Legend: M sources x_i with scores g_i = grad log p(x_i) and weights w_i, N targets y_j, d features,
h bandwidth, c = 2/h, k_ij = exp(-|y_j - x_i|^2 / h). The first index of every matrix is the source.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RULES = ("liu_wang", "median", "median_squared")
Bandwidth = float | str | Tensor


def _widened(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def _half_in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half types accumulate in float32 and the result comes back in the half type."""

    @functools.wraps(function)
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        arguments = [_widened(value) for value in args]
        options = {name: _widened(value) for name, value in kwargs.items()}
        return function(_widened(x), *arguments, **options).to(x.dtype)

    return call


def median_distance(x: Tensor) -> Tensor:
    """Midpoint median of the M(M-1)/2 distances |x_i - x_j|, i < j; (..., M, d) -> (...).

    Where it is 0 (M < 2, or more than half the pairs coincide) the root mean squared pairwise
    distance takes its place, and 1 where that is 0 too. NaN where a coordinate is not finite.
    """
    m = x.shape[-2]
    x = x.detach()
    finite = x.isfinite().all(-1).all(-1)
    i, j = torch.triu_indices(m, m, offset=1, device=x.device)
    return _middle((x[..., i, :] - x[..., j, :]).square().sum(-1), finite)


def median_of_squared(squared: Tensor) -> Tensor:
    """:func:`median_distance` of the set with these squared distances, (..., M, M) -> (...).

    Reads those above the diagonal. The diagonal is 0, or NaN where a coordinate is not finite.
    """
    m = squared.shape[-1]
    squared = squared.detach()
    finite = squared.diagonal(0, -2, -1).isfinite().all(-1)
    i, j = torch.triu_indices(m, m, offset=1, device=squared.device)
    return _middle(squared[..., i, j], finite)


def _middle(squared: Tensor, finite: Tensor) -> Tensor:
    """The median of the roots of (..., pairs), with what takes its place; NaN unless finite."""
    pairs = squared.shape[-1]
    if pairs == 0:
        return torch.where(finite, 1.0, math.nan).to(squared.dtype)
    ordered = squared.sqrt().sort(-1).values
    median = (ordered[..., (pairs - 1) // 2] + ordered[..., pairs // 2]) / 2
    root_mean_square = squared.mean(-1).sqrt()
    fallback = torch.where(root_mean_square > 0, root_mean_square, torch.ones_like(median))
    median = torch.where(median > 0, median, fallback)
    return torch.where(finite, median, torch.full_like(median, math.nan))


def apply_rule(median: Tensor, particles: int, rule: str) -> Tensor:
    """Bandwidth h of k = exp(-r^2/h) from the median distance by one of ``RULES``.

    At least ``least_bandwidth``: the square of a tiny distance leaves the range of the dtype.
    """
    return _unbounded(median, particles, rule).clamp(min=least_bandwidth(median.dtype))


def least_bandwidth(dtype: torch.dtype) -> float:
    """1.2e-36 in float32: 2/h and its product with a score of size 1 are then finite."""
    return 100 * torch.finfo(dtype).tiny


def _unbounded(median: Tensor, particles: int, rule: str) -> Tensor:
    if rule == "median":
        return median
    if rule == "median_squared":
        return median.square()
    if torch.compiler.is_compiling() or type(particles) is not int:
        # math.log would make a traced number of particles a constant
        return median.square() / _log(particles, median.device)
    return median.square() * (1.0 / math.log(max(particles, 1) + 1))


def _log(particles: Any, device: torch.device) -> Tensor:
    """log(M + 1), at least log 2, of an M that is traced: torch.jit.trace gives a tensor of it."""
    if isinstance(particles, Tensor):
        count = particles.to(device, torch.float64).clamp(min=1) + 1
    else:
        count = torch.full((), max(particles, 1) + 1, dtype=torch.float64, device=device)
    return count.log()


def median_bandwidth(x: Tensor, *, rule: str = "liu_wang") -> Tensor:
    """h in the accumulation dtype: a square leaves the range of float16."""
    return apply_rule(median_distance(_widened(x)), x.shape[-2], rule)


def resolve_bandwidth(x: Tensor, bandwidth: Bandwidth) -> Tensor:
    """Bandwidth as a tensor of the batch shape."""
    if isinstance(bandwidth, str):
        return median_bandwidth(x, rule=bandwidth)
    return torch.as_tensor(bandwidth, dtype=x.dtype, device=x.device).expand(x.shape[:-2])


def _differences(x: Tensor, y: Tensor | None) -> Tensor:
    """y_j - x_i, (..., M, N, d); the targets are the sources where y is omitted."""
    return (x if y is None else y)[..., None, :, :] - x[..., :, None, :]


# Sums over features, and sums over particles of every feature by itself: what a slice of the
# features contributes. (..., M, d), (..., N, d) -> (..., M, N) or (..., N, d).


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """|y_j - x_i|^2."""
    return _differences(x, y).square().sum(-1)


def displaced_products(x: Tensor, grad: Tensor, y: Tensor | None = None) -> Tensor:
    """g_i . (y_j - x_i)."""
    return (_differences(x, y) * grad[..., :, None, :]).sum(-1)


def weighted_direction(
    coefficients: Tensor, x: Tensor, grad: Tensor | None, y: Tensor | None, h: Tensor
) -> Tensor:
    """sum_i P_ij [g_i + (2/h) (y_j - x_i)] with coefficients P (..., M, N)."""
    term = 2.0 / h[..., None, None, None] * _differences(x, y)
    term = term if grad is None else grad[..., :, None, :] + term
    return (coefficients[..., None] * term).sum(-3)


@_half_in_float32
def rbf_gram(x: Tensor, y: Tensor | None = None, *, bandwidth: Bandwidth = "liu_wang") -> Tensor:
    h = resolve_bandwidth(x, bandwidth)[..., None, None]
    return torch.exp(-squared_distances(x, y) / h)


def source_weights(x: Tensor, weights: Tensor | None, targets: int, leave_one_out: bool) -> Tensor:
    """The factor of pair (i, j): w_i, or w_i W/(W - w_j), W = sum w, with pair (i, i) left out."""
    m = x.shape[-2]
    w = x.new_full((*x.shape[:-2], m), 1.0 / max(m, 1)) if weights is None else weights
    pair = w[..., :, None].expand(*w.shape[:-1], m, targets)
    if not leave_one_out:
        return pair
    off_diagonal = 1.0 - torch.eye(m, dtype=x.dtype, device=x.device)
    return pair * renormaliser(w)[..., None, :] * off_diagonal


def renormaliser(weights: Tensor) -> Tensor:
    """W/(W - w_j), W = sum w; 0 for a particle that has all the weight.

    The difference cancels where w_j is most of W. That is one particle at most, the heaviest, and
    the weights of the others are added up for it.
    """
    if weights.shape[-1] == 0:
        return weights
    place = torch.arange(weights.shape[-1], device=weights.device)
    heaviest = place == weights.abs().argmax(-1, keepdim=True)
    others = weights.masked_fill(heaviest, 0.0).sum(-1, keepdim=True)
    total = weights.sum(-1, keepdim=True)
    rest = torch.where(heaviest, others, total - weights)
    alone = rest == 0
    return torch.where(alone, torch.zeros_like(rest), total / torch.where(alone, 1.0, rest))


def pair_weights(squared: Tensor, h: Tensor, weights: Tensor | None, leave_one_out: bool) -> Tensor:
    """w_i k_ij, or w_i W/(W - w_j) k_ij with pair (i, i) left out; (..., M, N)."""
    kernel = torch.exp(-squared / h[..., None, None])
    return kernel * source_weights(squared, weights, squared.shape[-1], leave_one_out)


@_half_in_float32
def svgd_direction(
    x: Tensor,
    grad: Tensor,
    *,
    weights: Tensor | None = None,
    query: Tensor | None = None,
    bandwidth: Bandwidth = "liu_wang",
    leave_one_out: bool = False,
) -> Tensor:
    h = resolve_bandwidth(x, bandwidth)
    pairs = pair_weights(squared_distances(x, query), h, weights, leave_one_out)
    return weighted_direction(pairs, x, grad, query, h)


@_half_in_float32
def stein_divergence(
    x: Tensor,
    grad: Tensor,
    *,
    weights: Tensor | None = None,
    query: Tensor | None = None,
    bandwidth: Bandwidth = "liu_wang",
    leave_one_out: bool = False,
) -> Tensor:
    h = resolve_bandwidth(x, bandwidth)
    squared, along = squared_distances(x, query), displaced_products(x, grad, query)
    pairs = pair_weights(squared, h, weights, leave_one_out)
    return divergence_of(pairs, squared, along, h, x.shape[-1])


def divergence_of(
    pairs: Tensor, squared: Tensor, along: Tensor, h: Tensor, features: int
) -> Tensor:
    """sum_i P_ij [c d - c^2 |y_j - x_i|^2 - c g_i . (y_j - x_i)], from (..., M, N) to (..., N)."""
    c = 2.0 / h[..., None, None]
    return (pairs * (c * features - c.square() * squared - c * along)).sum(-2)


@_half_in_float32
def kernel_stein_discrepancy(
    x: Tensor,
    score: Tensor,
    *,
    weights: Tensor | None = None,
    bandwidth: Bandwidth = "liu_wang",
    statistic: str = "u",
    leave_one_out: bool = False,
) -> Tensor:
    left_out = leave_one_out or statistic == "u"
    h = resolve_bandwidth(x, bandwidth)
    options = {"weights": weights, "bandwidth": h, "leave_one_out": left_out}
    phi = svgd_direction(x, score, **options)
    divergence = stein_divergence(x, score, **options)
    return average((phi * score).sum(-1) + divergence, weights)


def average(values: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted mean over the last axis; the weights default to 1/M."""
    return values.mean(-1) if weights is None else (values * weights).sum(-1)
