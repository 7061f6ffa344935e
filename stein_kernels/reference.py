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


def _half_in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half types accumulate in float32 and the result comes back in the half type."""

    def widened(value: Any) -> Any:
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    @functools.wraps(function)
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        arguments = [widened(value) for value in args]
        options = {name: widened(value) for name, value in kwargs.items()}
        return function(widened(x), *arguments, **options).to(x.dtype)

    return call


def median_distance(x: Tensor) -> Tensor:
    """Midpoint median of the M(M-1)/2 distances |x_i - x_j|, i < j; (..., M, d) -> (...).

    Where it is 0 (M < 2, or more than half the pairs coincide) the root mean squared pairwise
    distance takes its place, and 1 where that is 0 too. NaN where a coordinate is not finite.
    """
    m = x.shape[-2]
    x = x.detach()
    if m < 2:
        finite = x.isfinite().all(-1).all(-1)
        return torch.where(finite, 1.0, math.nan).to(x.dtype)
    i, j = torch.triu_indices(m, m, offset=1, device=x.device)
    squared = (x[..., i, :] - x[..., j, :]).square().sum(-1)
    ordered = squared.sqrt().sort(-1).values
    pairs = ordered.shape[-1]
    median = (ordered[..., (pairs - 1) // 2] + ordered[..., pairs // 2]) / 2
    root_mean_square = squared.mean(-1).sqrt()
    fallback = torch.where(root_mean_square > 0, root_mean_square, torch.ones_like(median))
    median = torch.where(median > 0, median, fallback)
    finite = x.isfinite().all(-1).all(-1)
    return torch.where(finite, median, torch.full_like(median, math.nan))


def apply_rule(median: Tensor, particles: int, rule: str) -> Tensor:
    """Bandwidth h of k = exp(-r^2/h) from the median distance by one of ``RULES``."""
    if rule == "median":
        return median
    scale = 1.0 / math.log(max(particles, 1) + 1) if rule == "liu_wang" else 1.0
    return median.square() * scale


@_half_in_float32
def median_bandwidth(x: Tensor, *, rule: str = "liu_wang") -> Tensor:
    return apply_rule(median_distance(x), x.shape[-2], rule)


def resolve_bandwidth(x: Tensor, bandwidth: Bandwidth) -> Tensor:
    """Bandwidth as a tensor of the batch shape."""
    if isinstance(bandwidth, str):
        return median_bandwidth(x, rule=bandwidth)
    return torch.as_tensor(bandwidth, dtype=x.dtype, device=x.device).expand(x.shape[:-2])


def _differences(x: Tensor, y: Tensor) -> Tensor:
    """y_j - x_i, (..., M, N, d)."""
    return y[..., None, :, :] - x[..., :, None, :]


@_half_in_float32
def rbf_gram(x: Tensor, y: Tensor | None = None, *, bandwidth: Bandwidth = "liu_wang") -> Tensor:
    h = resolve_bandwidth(x, bandwidth)[..., None, None]
    squared = _differences(x, x if y is None else y).square().sum(-1)
    return torch.exp(-squared / h)


def source_weights(x: Tensor, weights: Tensor | None, targets: int, leave_one_out: bool) -> Tensor:
    """The factor of pair (i, j): w_i, or w_i W/(W - w_j), W = sum w, with pair (i, i) left out."""
    m = x.shape[-2]
    w = x.new_full((*x.shape[:-2], m), 1.0 / max(m, 1)) if weights is None else weights
    pair = w[..., :, None].expand(*w.shape[:-1], m, targets)
    if not leave_one_out:
        return pair
    total = w.sum(-1, keepdim=True)
    rest = total - w
    alone = rest == 0
    scale = torch.where(alone, torch.zeros_like(w), total / torch.where(alone, total, rest))
    off_diagonal = 1.0 - torch.eye(m, dtype=x.dtype, device=x.device)
    return pair * scale[..., None, :] * off_diagonal


def _tiles(x, grad, weights, query, bandwidth, leave_one_out):
    y = x if query is None else query
    h = resolve_bandwidth(x, bandwidth)[..., None, None]
    difference = _differences(x, y)
    squared = difference.square().sum(-1)
    kernel = torch.exp(-squared / h)
    kernel = kernel * source_weights(x, weights, y.shape[-2], leave_one_out)
    return difference, squared, kernel, 2.0 / h


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
    difference, _, kernel, c = _tiles(x, grad, weights, query, bandwidth, leave_one_out)
    return (kernel[..., None] * (grad[..., :, None, :] + c[..., None] * difference)).sum(-3)


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
    difference, squared, kernel, c = _tiles(x, grad, weights, query, bandwidth, leave_one_out)
    along = (difference * grad[..., :, None, :]).sum(-1)
    return (kernel * (c * x.shape[-1] - c.square() * squared - c * along)).sum(-2)


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
