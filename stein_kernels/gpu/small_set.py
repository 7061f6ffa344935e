"""Sets that fit one block: distances, exact median and direction in one launch, one for backward.

Nothing of size M x M reaches device memory. Targets are the particles themselves; a query takes
another flow. Legend and formulas: ``stein_kernels.reference`` and
``csrc/cpu/svgd_direction_backward.cpp``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stein_kernels._checks import accumulation_dtype
from stein_kernels.reference import RULES

# The largest set (particles) of each backend, by accumulation dtype. Triton: the tile whose
# kernels compile without a spill. CUDA C++: the upper triangle of the Gram matrix, in 4 x 4 tiles,
# beside the staged features in 160 KB of shared memory.
PARTICLES = {
    "triton": {torch.float32: 128, torch.float64: 64},
    "cuda": {torch.float32: 256, torch.float64: 176},
}
FEATURES = 2048  # above, one multiprocessor to a set is slower than rows split over several
_FORWARD_SLOTS, _BACKWARD_SLOTS = 2, 4  # columns that a launch keeps: x, g; x, g, v, sum_j k_ij v_j


def fits(backend: str, m: int, d: int, dtype: torch.dtype) -> bool:
    """Whether sets of m particles with d features run in one launch."""
    return m <= PARTICLES[backend][accumulation_dtype(dtype)] and d <= FEATURES


def direction(
    kernels: Any,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    bandwidth: Tensor | None,
    rule: str,
    leave_one_out: bool,
) -> tuple[Tensor, Tensor]:
    """phi (B, M, d) and the bandwidth (B,), by a rule where none is given."""
    x, grad = x.contiguous(), grad.contiguous()
    work = _work(x, _FORWARD_SLOTS)
    phi = torch.empty_like(x)
    if bandwidth is None:
        h, number = work.new_empty(x.shape[0]), RULES.index(rule)
    else:
        h, number = bandwidth.contiguous(), -1
    kernels.small_set(
        *(x, grad, x if weights is None else weights.contiguous(), h, work, phi),
        *(weights is not None, number, leave_one_out, _uniform(x, leave_one_out)),
    )
    return phi, h


def direction_backward(
    kernels: Any,
    v: Tensor,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, grad, weights, query (empty where not given) and bandwidth."""
    v, x, grad, h = v.contiguous(), x.contiguous(), grad.contiguous(), bandwidth.contiguous()
    work = _work(x, _BACKWARD_SLOTS)
    dx, dg, dh = torch.empty_like(x), torch.empty_like(x), torch.empty_like(h)
    w = None if weights is None else weights.contiguous()
    dw = x.new_empty(0) if w is None else torch.empty_like(w)
    kernels.small_set_backward(
        *(v, x, grad, x if w is None else w, h, work),
        *(dx, dg, dx if w is None else dw, dh),
        *(w is not None, leave_one_out, _uniform(x, leave_one_out)),
    )
    return dx, dg, dw, x.new_empty(0), dh


def _uniform(x: Tensor, leave_one_out: bool) -> float:
    """Every weight where none are given."""
    return 1.0 / max(1, x.shape[1] - leave_one_out)


def _work(x: Tensor, slots: int) -> Tensor:
    """Scratch: columns (B, slots, d, P) of T, P a power of two of at least 32 that holds a set."""
    b, m, d = x.shape
    padded = max(32, 1 << (m - 1).bit_length())
    return x.new_empty(b, slots, d, padded, dtype=accumulation_dtype(x.dtype))
