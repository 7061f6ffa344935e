"""The backward of the direction of small sets in one launch: formulas as in the forward's module.

With v_j the cotangent of phi_j, a_ij = (g_i - c x_i) . v_j + c x_j . v_j on centred coordinates and
S_ij = k_ij (w_i a_ij + w_j a_ji), pairs i != j only:
    dg_i = w_i sum_j k_ij v_j                      (+ w_i v_i of the pair (i, i))
    dw_i = sum_j k_ij a_ij                         (+ g_i . v_i)
    dx_i = c [q_i - p_i],  p_i = sum_j S_ij (x_i - x_j),  q_i = v_i sum_j w_j k_ij - dg_i
    h^2 dh = sum_i x_i . (p_i - 2 q_i)
The last is 2 h dh = sum g . dg - sum x . dx - sum w dw (phi(s x, g/s, s^2 h) = phi(x, g, h)/s)
without the terms in g, which cancel.
Every sum over j runs down the rows of a tile, a feature at a time: a product of tiles would hold a
whole tile of operands in every thread's registers and spill.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from stein_kernels.triton.small_set import (
    INTEGERS,
    USER,
    WIDE,
    constant_of,
    halves,
    pairs_of,
    specialisations_of,
    squared_distances,
    tile_of,
    transpose_in,
    transpose_out,
    weights_of,
    zero_tile,
)
from stein_kernels.triton.specialisation import Specialisation


@triton.jit
def _carried(kernel, weight, v_slot, score_slot, d, P: tl.constexpr):
    """w_i sum_j k_ij v_j into columns; k is symmetric."""
    rows = tl.arange(0, P)
    for f in range(d):
        v = tl.load(v_slot + f * P + rows)
        tl.store(score_slot + f * P + rows, weight * tl.sum(kernel * v[:, None], axis=0))


@triton.jit
def _drive_times_cotangent(x_slot, g_slot, v_slot, d, c, P: tl.constexpr, T: tl.constexpr):
    """(g_i - c x_i) . v_j, (P, P), of centred columns."""
    a = zero_tile(P, T)
    for f in range(d):
        at = f * P + tl.arange(0, P)
        drive = tl.load(g_slot + at) - c * tl.load(x_slot + at)
        a += drive[:, None] * tl.load(v_slot + at)[None, :]
    return a


@triton.jit
def _own_products(x_slot, g_slot, v_slot, d, P: tl.constexpr, T: tl.constexpr):
    """x_i . v_i and g_i . v_i. A loop of its own: the tiles leave the others no registers."""
    shift, along = tl.zeros((P,), T), tl.zeros((P,), T)
    for f in range(d):
        at = f * P + tl.arange(0, P)
        v = tl.load(v_slot + at)
        shift += tl.load(x_slot + at) * v
        along += tl.load(g_slot + at) * v
    return shift, along


@triton.jit(
    do_not_specialize=[*INTEGERS[:3], INTEGERS[4]], do_not_specialize_on_alignment=USER + WIDE
)
def direction_backward_kernel(
    v,  # (B, m, d), the cotangent of phi
    x,
    grad,
    w,
    h,  # (B,) of T
    work,  # (B, 4, d, P) of T
    dx,  # (B, m, d)
    dg,  # (B, m, d)
    dw,  # (B, m), written where weighted
    dh,  # (B,) of T
    m,
    d,
    weighted,
    leave_one_out,
    uniform_high,
    uniform_low,
    P: tl.constexpr,
    F: tl.constexpr,
):
    T: tl.constexpr = work.dtype.element_ty
    set_index = tl.program_id(0).to(tl.int64)
    offset = set_index * m * d
    x_slot = work + set_index * 4 * d * P
    g_slot, v_slot, score_slot = x_slot + d * P, x_slot + 2 * d * P, x_slot + 3 * d * P
    transpose_in(x + offset, x_slot, m, d, True, P, F, T)
    transpose_in(grad + offset, g_slot, m, d, False, P, F, T)
    transpose_in(v + offset, v_slot, m, d, False, P, F, T)
    tl.debug_barrier()
    rows = tl.arange(0, P)
    weight = weights_of(w, set_index, m, weighted, constant_of(uniform_high, uniform_low, T), P, T)
    bandwidth = tl.load(h + set_index)
    c = 2.0 / bandwidth
    squared = squared_distances(x_slot, d, P, T)
    kernel = tl.where(pairs_of(m, P), tl.exp(squared * (-1.0 / bandwidth)), 0.0)
    mass = tl.sum(kernel * weight[:, None], axis=0)
    _carried(kernel, weight, v_slot, score_slot, d, P)
    own = tl.where(leave_one_out != 0, 0.0, 1.0).to(T)
    moves = _drive_times_cotangent(x_slot, g_slot, v_slot, d, c, P, T)
    shift, along = _own_products(x_slot, g_slot, v_slot, d, P, T)
    moves = kernel * (moves + c * shift[None, :])
    slope = (tl.sum(moves, axis=1) + own * along).to(dw.dtype.element_ty)
    tl.store(dw + set_index * m + rows, slope, mask=rows < m * weighted)
    moves *= weight[:, None]
    moves += tl.trans(moves)
    row = tl.sum(moves, axis=0)
    scaling = weight * 0.0
    tl.debug_barrier()
    for f in range(d):
        at = f * P + rows
        xf, vf, score = tl.load(x_slot + at), tl.load(v_slot + at), tl.load(score_slot + at)
        pulled = row * xf - tl.sum(moves * xf[:, None], axis=0)
        pushed = mass * vf - score
        scaling += xf * (pulled - 2.0 * pushed)
        tl.debug_barrier()  # every thread has read these
        tl.store(x_slot + at, c * (pushed - pulled))
        tl.store(score_slot + at, score + own * weight * vf)
    tl.debug_barrier()
    transpose_out(x_slot, dx + offset, m, d, P, F)
    transpose_out(score_slot, dg + offset, m, d, P, F)
    tl.store(dh + set_index, tl.sum(scaling, axis=0) / bandwidth / bandwidth)


def small_set_backward(
    v: Tensor,
    x: Tensor,
    grad: Tensor,
    w: Tensor,
    h: Tensor,
    work: Tensor,
    dx: Tensor,
    dg: Tensor,
    dw: Tensor,
    dh: Tensor,
    weighted: bool,
    leave_one_out: bool,
    uniform: float,
) -> None:
    """The backward of ``small_set`` at bandwidths h: v, dx, dg (B, M, d), dw (B, M), dh (B,)."""
    b, m, d = x.shape
    tile = tile_of(m)
    direction_backward_kernel[(b,)](
        *(v, x, grad, w, h, work, dx, dg, dw, dh, m, d, int(weighted), int(leave_one_out)),
        *(*halves(uniform), tile.particles, tile.features),
        num_warps=tile.warps,
        num_stages=1,
        enable_fp_fusion=True,
    )


def specialisations() -> Iterator[Specialisation]:
    """Everything the launch can reach."""
    yield from specialisations_of(direction_backward_kernel, {})
