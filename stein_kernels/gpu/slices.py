"""The ops on a slice of the features by the launches of long rows: formulas in ``_slice_ops``.

``precision`` of the launches' matrix products: "ieee", "tf32x3" or "tf32".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stein_kernels.gpu import long_pairs
from stein_kernels.gpu.long_pairs import Problem, is_whole, mean, rows


def squared_distances(kernels: Any, precision: str, x: Tensor, y: Tensor | None) -> Tensor:
    """(B, M, N), read once; where y is none the diagonal is 0, or NaN where x is not finite."""
    x = rows(x)
    if y is None:
        centre = None if is_whole(x) else mean(x)
        return long_pairs.squared_distances(kernels, x, centre, precision)
    centre = mean(x)
    problem = Problem(kernels, x, rows(y), centre, centre.new_ones(x.shape[0]), precision)
    return problem.apart(problem.y, problem.norm(x))


def weighted_direction(
    kernels: Any,
    precision: str,
    coefficients: Tensor,
    x: Tensor,
    grad: Tensor | None,
    y: Tensor | None,
    bandwidth: Tensor,
) -> Tensor:
    """(B, N, d); the pair (i, i) has no difference, so it adds its score alone."""
    x = rows(x)
    grad = torch.zeros_like(x) if grad is None else rows(grad)
    coefficients, origin = coefficients.contiguous(), -1
    own = coefficients.new_zeros(x.shape[0], coefficients.shape[2])
    if y is None:
        own, origin = coefficients.diagonal(0, 1, 2).contiguous(), 0
        coefficients = coefficients.clone()
        coefficients.diagonal(0, 1, 2).zero_()
    targets = x if y is None else rows(y)
    phi = torch.empty_like(targets, memory_format=torch.contiguous_format)
    kernels.long_direction(
        *(coefficients, coefficients.sum(1), own, x, grad, targets, bandwidth.contiguous()),
        *(phi, origin, precision),
    )
    return phi


def median_of_squared(kernels: Any, precision: str, squared: Tensor) -> Tensor:
    """(B,), without the host reading anything."""
    return long_pairs.median_of(kernels, squared.contiguous())
