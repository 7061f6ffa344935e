"""Batches of small sets: distances, exact median, bandwidth and direction in one launch.

One program holds one set: its M x M squared distances stay in registers from the first difference
to the last sum, so nothing of that size reaches device memory. ``work`` (B, 2, d, P) takes the
particles and scores feature-major, P the padded number of particles: every loop over features reads
columns of it in vectors, where rows of d elements would be read one element a cache line. The
direction replaces the particles there and is transposed back at the end.

Distances are sums over differences. Up to ``DIRECT`` features the field is too, and the coordinates
stay as given; above, both run on coordinates centred on the mean of the set. The pair (i, i) is
left out of every sum and added apart: its kernel value is exactly 1. The sums over sources run down
the rows of a tile, a feature at a time: ``tl.dot`` in float32 holds whole rows of its operands in
the registers of a thread and spills here.

Legend and formulas: k_ij = exp(-|x_j - x_i|^2 / h), c = 2/h, and the head of
``csrc/cpu/svgd_direction_backward.cpp``. T is float32, or float64 for float64 particles.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from stein_kernels.triton.specialisation import Specialisation

DIRECT = 16  # features up to which the field is summed over differences: the split form cancels
RULES = ("liu_wang", "median", "median_squared")  # by number; -1 is a given bandwidth


class Tile(NamedTuple):
    """How a program holds a set of up to ``particles``; a power of two, as Triton wants."""

    particles: int
    features: int  # transposed at a time: one or two cache sectors of float32
    warps: int


# 16 or 32 squared distances a thread, by what compiles without a spill; not yet by measurement. A
# set of 20 is one warp, whose counts need no barrier; a set of 100 is 16, for it often has a
# multiprocessor to itself. Sets of 16 or less take the tile of 32 as well: what that wastes is less
# than a launch, and several sets to a program would need a third axis in every sum.
TILES = (Tile(32, 8, 1), Tile(64, 16, 8), Tile(128, 8, 16))
# In float64 tiles of 128 x 128 do not fit the registers.
LIMIT = {"fp32": 128, "fp64": 64}
_USER = {"fp32": "fp32", "fp64": "fp64", "bf16": "fp32", "fp16": "fp32"}  # dtype: T


@triton.jit
def constant_of(high, low, T: tl.constexpr):
    """A number from its two float32 halves."""
    zero = tl.full((), 0.0, T)
    return (high + zero) + (low + zero)


@triton.jit
def _tile(base, rows, cols, m, d, T: tl.constexpr):
    """Rows of a set as T, zero outside: the one place where half types are upcast."""
    mask = (rows < m)[:, None] & (cols < d)[None, :]
    return tl.load(base + rows[:, None] * d + cols[None, :], mask=mask, other=0.0).to(T)


@triton.jit
def transpose_in(rows_ptr, slot, m, d, centred, P: tl.constexpr, F: tl.constexpr, T: tl.constexpr):
    """Rows (m, d) to columns (d, P) of T, less their mean where ``centred``; the padding is 0."""
    rows = tl.arange(0, P)
    for start in range(0, d, F):
        cols = start + tl.arange(0, F)
        tile = _tile(rows_ptr, rows, cols, m, d, T)
        mean = tl.where(centred, tl.sum(tile, axis=0) / m.to(T), 0.0)
        tile = tl.where((rows < m)[:, None], tile - mean[None, :], 0.0)
        tl.store(slot + cols[None, :] * P + rows[:, None], tile, mask=(cols < d)[None, :])


@triton.jit
def transpose_out(slot, rows_ptr, m, d, P: tl.constexpr, F: tl.constexpr):
    """Columns (d, P) back to rows (m, d) in the user's dtype."""
    rows = tl.arange(0, P)
    for start in range(0, d, F):
        cols = start + tl.arange(0, F)
        mask = (rows < m)[:, None] & (cols < d)[None, :]
        tile = tl.load(slot + cols[None, :] * P + rows[:, None], mask=mask, other=0.0)
        tile = tile.to(rows_ptr.dtype.element_ty)
        tl.store(rows_ptr + rows[:, None] * d + cols[None, :], tile, mask=mask)


@triton.jit
def zero_tile(P: tl.constexpr, T: tl.constexpr):
    """Zeros (P, P) with 4 x 4 elements to a thread: a product of zeros, which costs no instruction.

    A plain zero would have a thread read a row for every element that it adds to.
    """
    zero = tl.zeros((P, 16), T)
    return tl.dot(zero, tl.trans(zero), input_precision="ieee", out_dtype=T)


@triton.jit
def squared_distances(slot, d, P: tl.constexpr, T: tl.constexpr):
    """|x_i - x_j|^2 (P, P) from columns; NaN at (i, i) where a coordinate is not finite."""
    squared = zero_tile(P, T)
    for f in range(d):
        x = tl.load(slot + f * P + tl.arange(0, P))
        difference = x[:, None] - x[None, :]
        squared += difference * difference
    return squared


@triton.jit
def pairs_of(m, P: tl.constexpr):
    """Where (i, j) is a pair of two particles."""
    rows, cols = tl.arange(0, P)[:, None], tl.arange(0, P)[None, :]
    return (rows < m) & (cols < m) & (rows != cols)


@triton.jit
def _next_above(keys, key, NONE: tl.constexpr):
    return tl.min(tl.min(tl.where(keys > key, keys, NONE), axis=1), axis=0)


@triton.jit
def _count_up_to(keys, key):
    # Exact in float32. LLVM narrows a sum of integers that are 0 or 1 to bytes and packs them in
    # local memory.
    return tl.sum(tl.sum(tl.where(keys <= key, 1.0, 0.0), axis=1), axis=0).to(tl.int32)


@triton.jit
def _select(keys, target, total, NONE: tl.constexpr):
    """The key of rank ``target`` (from 1) among ``total`` that are below NONE.

    Every pair is there twice, so ranks are even. low is below the answer and high is not; a step
    in the straight line of the counts and a halving take turns, about ten steps for distances.
    """
    low = tl.min(tl.min(keys, axis=1), axis=0) - 1
    high = tl.max(tl.max(tl.where(keys < NONE, keys, 0), axis=1), axis=0)
    below, up_to = target * 0, total
    step = 0
    while (high - low > 1) & (below != target - 2) & (up_to != target):
        width = high - low
        share = (target - below).to(tl.float32) / (up_to - below).to(tl.float32)
        line = (width.to(tl.float32) * share).to(keys.dtype)
        offset = tl.where(step % 2 == 0, line, width // 2)
        middle = low + tl.minimum(tl.maximum(offset, 1), width - 1)
        count = _count_up_to(keys, middle)
        enough = count >= target
        high, up_to = tl.where(enough, middle, high), tl.where(enough, count, up_to)
        low, below = tl.where(enough, low, middle), tl.where(enough, below, count)
        step += 1
    last = tl.max(tl.max(tl.where(keys <= high, keys, 0), axis=1), axis=0)
    return tl.where(up_to == target, last, _next_above(keys, low, NONE))


@triton.jit
def _root(value):
    """Square root, correctly rounded: the plain one of float32 is approximate."""
    if value.dtype.primitive_bitwidth == 32:
        return tl.sqrt_rn(value)
    else:
        return tl.sqrt(value)


@triton.jit
def _median(squared, pairs, m, T: tl.constexpr):
    """Midpoint median distance; where 0, the root mean square; where 0 too, 1."""
    one = (m > 0).to(T)
    median = one
    if m > 1:
        SINGLE: tl.constexpr = squared.dtype.primitive_bitwidth == 32
        BITS: tl.constexpr = tl.int32 if SINGLE else tl.int64
        NONE: tl.constexpr = 0x7FFFFFFF if SINGLE else 0x7FFFFFFFFFFFFFFF
        keys = tl.where(pairs & (squared >= 0.0), squared.to(BITS, bitcast=True), NONE)
        total = m * (m - 1)
        lower, upper = (total // 2 - 1) // 2, total // 4
        first = _select(keys, 2 * lower + 2, _count_up_to(keys, NONE - 1), NONE)
        second = first
        if (upper > lower) & (_count_up_to(keys, first) < 2 * upper + 2):
            second = _next_above(keys, first, NONE)
        low, high = first.to(T, bitcast=True), second.to(T, bitcast=True)
        median = 0.5 * (_root(low) + _root(high))
        if median == 0.0:
            mean = tl.sum(tl.sum(tl.where(pairs, squared, 0.0), axis=1), axis=0) / total.to(T)
            median = tl.where(mean > 0.0, _root(mean), one)
    return median


@triton.jit
def weights_of(w, set_index, m, weighted, uniform, P: tl.constexpr, T: tl.constexpr):
    """Source weights (P,), zero in the padding."""
    rows = tl.arange(0, P)
    given = tl.load(w + set_index * m + rows, mask=rows < m * weighted, other=0.0).to(T)
    return tl.where(weighted != 0, given, tl.where(rows < m, uniform, 0.0))


@triton.jit
def _bandwidth(squared, pairs, h, m, rule, scale, T: tl.constexpr):
    """h by a rule of RULES, at least ``reference.least_bandwidth``, NaN where a coordinate is not
    finite; as given where rule < 0."""
    least: tl.constexpr = 1.1754943508222875e-36 if tl.float32 == T else 2.2250738585072014e-306
    value = (m > 0).to(T)
    if rule < 0:
        value = tl.load(h)
    else:
        median = _median(squared, pairs, m, T)
        value = tl.where(rule == 1, median, median * median * scale)
        value = tl.where(value < least, least, value)  # NaN stays NaN
    return value


@triton.jit
def _own_kernel(squared, h, P: tl.constexpr):
    """k_ii = 1, or NaN in a set that has a coordinate which is not finite or no bandwidth."""
    diagonal = tl.arange(0, P)[:, None] == tl.arange(0, P)[None, :]
    finite = tl.min(tl.min((~diagonal | (squared == squared)).to(tl.int32), axis=1), axis=0)
    return tl.where((finite != 0) & (h == h), 1.0, float("nan")).to(h.dtype)


@triton.jit
def _field_of_differences(weighted, own, x_slot, g_slot, d, c, P: tl.constexpr):
    """phi_j = sum_i w_i k_ij [g_i + c (x_j - x_i)] in the place of x, a feature at a time."""
    rows = tl.arange(0, P)
    for f in range(d):
        x, g = tl.load(x_slot + f * P + rows), tl.load(g_slot + f * P + rows)
        pair = g[:, None] + c * (x[None, :] - x[:, None])
        value = tl.sum(weighted * pair, axis=0) + own * g
        tl.debug_barrier()  # every thread has read this x
        tl.store(x_slot + f * P + rows, value)


@triton.jit
def _field_of_products(weighted, own, x_slot, g_slot, d, c, P: tl.constexpr):
    """The same as sum_i w_i k_ij (g_i - c x_i) + c x_j sum_i w_i k_ij, on centred coordinates."""
    rows = tl.arange(0, P)
    mass = c * tl.sum(weighted, axis=0)
    for f in range(d):
        x, g = tl.load(x_slot + f * P + rows), tl.load(g_slot + f * P + rows)
        value = tl.sum(weighted * (g - c * x)[:, None], axis=0) + mass * x + own * g
        tl.debug_barrier()  # every thread has read this x
        tl.store(x_slot + f * P + rows, value)


INTEGERS = ["m", "d", "weighted", "rule", "leave_one_out"]
# What a user hands over may lie anywhere, and a hint would be of no use to rows of d elements.
USER = ["x", "grad", "w", "phi", "v", "dx", "dg", "dw"]
WIDE = ["h", "dh"]


@triton.jit(do_not_specialize=INTEGERS, do_not_specialize_on_alignment=[*USER[:4], "h"])
def direction_kernel(
    x,  # (B, m, d)
    grad,  # (B, m, d)
    w,  # (B, m), read where weighted
    h,  # (B,) of T: read where rule < 0, else written
    work,  # (B, 2, d, P) of T
    phi,  # (B, m, d)
    m,
    d,
    weighted,
    rule,
    leave_one_out,
    scale_high,  # a constant of T as the sum of two float32
    scale_low,
    uniform_high,
    uniform_low,
    P: tl.constexpr,
    F: tl.constexpr,
    DIRECT: tl.constexpr,
):
    T: tl.constexpr = work.dtype.element_ty
    set_index = tl.program_id(0).to(tl.int64)
    offset = set_index * m * d
    x_slot = work + set_index * 2 * d * P
    g_slot = x_slot + d * P
    transpose_in(x + offset, x_slot, m, d, d > DIRECT, P, F, T)
    transpose_in(grad + offset, g_slot, m, d, False, P, F, T)
    tl.debug_barrier()  # the program reads what other threads of it wrote
    squared, pairs = squared_distances(x_slot, d, P, T), pairs_of(m, P)
    scale = constant_of(scale_high, scale_low, T)
    bandwidth = _bandwidth(squared, pairs, h + set_index, m, rule, scale, T)
    own_kernel = _own_kernel(squared, bandwidth, P)
    if rule >= 0:
        bandwidth = bandwidth * own_kernel
        tl.store(h + set_index, bandwidth)
    weight = weights_of(w, set_index, m, weighted, constant_of(uniform_high, uniform_low, T), P, T)
    weighted_kernel = tl.where(pairs, tl.exp(squared * (-1.0 / bandwidth)), 0.0) * weight[:, None]
    own = weight * tl.where(leave_one_out != 0, 0.0, own_kernel)
    c = 2.0 / bandwidth
    if d <= DIRECT:
        _field_of_differences(weighted_kernel, own, x_slot, g_slot, d, c, P)
    else:
        _field_of_products(weighted_kernel, own, x_slot, g_slot, d, c, P)
    tl.debug_barrier()
    transpose_out(x_slot, phi + offset, m, d, P, F)


# --- launches ------------------------------------------------------------------------------------


def tile_of(particles: int) -> Tile:
    """The smallest tile that holds a set."""
    return next(tile for tile in TILES if particles <= tile.particles)


def halves(value: float) -> tuple[float, float]:
    """A constant as the sum of two float32: Triton passes no float64."""
    high = struct.unpack("f", struct.pack("f", value))[0]
    return high, value - high


def small_set(
    x: Tensor,
    grad: Tensor,
    w: Tensor,
    h: Tensor,
    work: Tensor,
    phi: Tensor,
    weighted: bool,
    rule: int,
    leave_one_out: bool,
    uniform: float,
) -> None:
    """The direction of every set with itself, at its own bandwidth.

    x, grad, phi (B, M, d) contiguous in one dtype; w (B, M) in it, read where weighted, else every
    weight is ``uniform``; h (B,) of T, written by rule ``RULES[rule]``, or read where rule is -1;
    work (B, 2, d, M padded to a tile) of T is scratch.
    """
    b, m, d = x.shape
    tile = tile_of(m)
    scale = 1.0 / math.log(m + 1) if rule == 0 else 1.0
    direction_kernel[(b,)](
        *(x, grad, w, h, work, phi, m, d, int(weighted), rule, int(leave_one_out)),
        *(*halves(scale), *halves(uniform), tile.particles, tile.features, DIRECT),
        num_warps=tile.warps,
        num_stages=1,
        enable_fp_fusion=True,
    )


def specialisations() -> Iterator[Specialisation]:
    """Everything the launch can reach."""
    yield from specialisations_of(direction_kernel, {"DIRECT": DIRECT})


def specialisations_of(kernel: Any, constants: dict[str, Any]) -> Iterator[Specialisation]:
    """A kernel of this family for every dtype and tile."""
    for user, wide in _USER.items():
        for tile in TILES:
            if tile.particles <= LIMIT[wide]:
                yield _specialisation(kernel, user, wide, tile, constants)


def _specialisation(
    kernel: Any, user: str, wide: str, tile: Tile, constants: dict[str, Any]
) -> Specialisation:
    types = {
        **dict.fromkeys(USER, f"*{user}"),
        **dict.fromkeys([*WIDE, "work"], f"*{wide}"),
        **dict.fromkeys(INTEGERS, "i32"),
    }
    constants = {"P": tile.particles, "F": tile.features, **constants}
    return Specialisation(
        kernel=kernel,
        name=f"small_set_{kernel.__name__}[m<={tile.particles},{user}]",
        arguments={
            name: types.get(name, "fp32") for name in kernel.arg_names if name not in constants
        },
        constants=constants,
        aligned=("work",),
        num_warps=tile.warps,
        num_stages=1,
        instruction="fma",
    )
