"""The sums over pairs of the divergence's backward: the launch ``divergence_backward``.

A row meets every column as source, as target, or, where the sources are the targets, as both. With
the score g_i, s_i = g_i . x_i (``along``) and the weight w_i of sources, the cotangent v_j of
targets, c = 2/h, d features and t = c d - c^2 r2 - c e:

    target r, source s:  e = g_s . x_r - s_s,  q = w_s k v_r,  out[1] = sum q g_s
    source r, target t:  e = g_r . x_t - s_r,  q = w_r k v_t,  out[2] = sum q x_t,
                         scalars[1] = sum q,   scalars[2] = sum k v_t t
    R = -2 q (t/h + c^2),  out[0] = sum R x_column,  scalars[0] = sum R

Of both roles R is the sum. Slots of a role that the rows do not have are not written.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from stein_kernels.triton import configs, tiles
from stein_kernels.triton.configs import Table, Tile
from stein_kernels.triton.specialisation import Specialisation

TABLE: Table = {
    ("fp32", "ieee", 16): Tile(64, 16, 4, 1, 8),
    ("fp32", "ieee", 32): Tile(32, 16, 4, 1),
    ("fp32", "ieee", 64): Tile(16, 16, 2, 1, 8),
    ("fp32", "ieee", 128): Tile(16, 16, 1, 1, 8, registers=255),
    ("fp64", "ieee", 16): Tile(32, 16, 4, 1, 8),
    ("fp64", "ieee", 32): Tile(16, 16, 2, 1, 8),
    ("fp64", "ieee", 64): Tile(16, 16, 2, 1, 8, registers=255),
    ("fp64", "ieee", 128): Tile(16, 16, 1, 1, 8),
    ("fp32", "tf32x3", 32): Tile(16, 32, num_warps=8),
    ("fp32", "tf32x3", 64): Tile(32, 16, num_warps=8),
    ("fp32", "tf32x3", 128): Tile(16, 16, num_warps=8),
    ("fp32", "tf32", 32): Tile(32, 16, num_warps=8),
    ("fp32", "tf32", 64): Tile(32, 32, num_warps=8),
    ("fp32", "tf32", 128): Tile(16, 16, num_warps=8, registers=255),
}


@triton.jit
def _set(x, g, along, weight, v, line, features):
    """Pointers of one end of the pairs, moved to the set whose packed vectors start at ``line``."""
    return x + line * features, g + line * features, along + line, weight + line, v + line


@triton.jit
def _pairs(
    row_set,
    column_set,
    k,
    r2,
    c,
    row,
    column,
    at,
    AS_SOURCE: tl.constexpr,
    AS_TARGET: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """R of a tile of pairs; q of the rows as targets; q and k v t of the rows as sources."""
    row_x, row_g, row_along, row_w, row_v = row_set
    column_x, column_g, column_along, column_w, column_v = column_set
    features = at[4]
    radial, received = tl.zeros_like(k), tl.zeros_like(k)
    sent, traced = tl.zeros_like(k), tl.zeros_like(k)
    if AS_TARGET:
        e = tiles.inner_products(row_x, column_g, at, SHAPE)
        t = tiles.trace(r2, e - tl.load(column_along + column)[None, :], c, features)
        received = k * tl.load(column_w + column)[None, :] * tl.load(row_v + row)[:, None]
        radial -= received * (c * t + 2 * c * c)
    if AS_SOURCE:
        e = tiles.inner_products(row_g, column_x, at, SHAPE)
        t = tiles.trace(r2, e - tl.load(row_along + row)[:, None], c, features)
        pulled = k * tl.load(column_v + column)[None, :]
        sent, traced = pulled * tl.load(row_w + row)[:, None], pulled * t
        radial -= sent * (c * t + 2 * c * c)
    return radial, received, sent, traced


@triton.jit
def _store(
    out,
    scalars,
    vectors,
    sums,
    first,
    sets,
    ld,
    features,
    row,
    AS_SOURCE: tl.constexpr,
    AS_TARGET: tl.constexpr,
    DP: tl.constexpr,
):
    """Three slots of vectors and of scalars, ``first`` the number of sets before this one."""
    out += first * features * ld
    scalars += first * ld + row
    tiles.store_tile(out, ld, features, row, tl.trans(vectors[0]), DP)
    tl.store(scalars, sums[0])
    if AS_TARGET:
        tiles.store_tile(out + sets * features * ld, ld, features, row, tl.trans(vectors[1]), DP)
    if AS_SOURCE:
        out += 2 * sets * features * ld
        tiles.store_tile(out, ld, features, row, tl.trans(vectors[2]), DP)
        tl.store(scalars + sets * ld, sums[1])
        tl.store(scalars + 2 * sets * ld, sums[2])


@triton.jit(do_not_specialize=configs.UNSPECIALISED)
def divergence_backward_kernel(
    row_x,
    row_g,
    row_along,
    row_w,
    row_v,
    col_x,
    col_g,
    col_along,
    col_w,
    col_v,
    h,
    out,
    scalars,
    rows,
    columns,
    splits,
    features,
    row_blocks,
    column_blocks,
    same,
    AS_SOURCE: tl.constexpr,
    AS_TARGET: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """Pairs of a row tile with a run of column tiles; every sum is compensated tile by tile."""
    BR: tl.constexpr = SHAPE[0]
    BC: tl.constexpr = SHAPE[1]
    DP: tl.constexpr = SHAPE[4]
    T: tl.constexpr = row_x.dtype.element_ty
    tile, first, last, member, sets, before = tiles.program_tile(rows, columns, splits, BR, BC)
    row_ld, ld = tiles.leading(row_blocks), tiles.leading(column_blocks)
    c, slope = tiles.bandwidth_factors(h + member)
    row = tile * BR + tl.arange(0, BR)
    ends = _set(row_x, row_g, row_along, row_w, row_v, member * row_ld, features)
    others = _set(col_x, col_g, col_along, col_w, col_v, member * ld, features)
    moved, scored = tiles.vector_sums(T, BR, DP), tiles.vector_sums(T, BR, DP)
    carried, total = tiles.vector_sums(T, BR, DP), tiles.scalar_sums(T, BR)
    mass, traces = tiles.scalar_sums(T, BR), tiles.scalar_sums(T, BR)
    for run in range(first, last):
        column = run * BC + tl.arange(0, BC)
        at = tile, run, row_ld, ld, features
        r2 = tiles.squared_distances(ends[0], others[0], at, SHAPE)
        k = tiles.kernel_value(r2, slope, row, column, same)
        radial, received, sent, traced = _pairs(
            ends, others, k, r2, c, row, column, at, AS_SOURCE, AS_TARGET, SHAPE
        )
        total = tiles.add_compensated(total, tl.sum(radial, 1))
        fresh = tiles.weighted_sum(radial, others[0], ld, features, column, SHAPE)
        moved = tiles.add_compensated(moved, fresh)
        if AS_TARGET:
            fresh = tiles.weighted_sum(received, others[1], ld, features, column, SHAPE)
            scored = tiles.add_compensated(scored, fresh)
        if AS_SOURCE:
            fresh = tiles.weighted_sum(sent, others[0], ld, features, column, SHAPE)
            carried = tiles.add_compensated(carried, fresh)
            mass = tiles.add_compensated(mass, tl.sum(sent, 1))
            traces = tiles.add_compensated(traces, tl.sum(traced, 1))
    first = 3 * before + member
    vectors, sums = (moved[0], scored[0], carried[0]), (total[0], mass[0], traces[0])
    _store(
        out, scalars, vectors, sums, first, sets, row_ld, features, row, AS_SOURCE, AS_TARGET, DP
    )


def divergence_backward(
    row_x: Tensor,
    row_g: Tensor,
    row_along: Tensor,
    row_w: Tensor,
    row_v: Tensor,
    col_x: Tensor,
    col_g: Tensor,
    col_along: Tensor,
    col_w: Tensor,
    col_v: Tensor,
    h: Tensor,
    out: Tensor,
    scalars: Tensor,
    rows: int,
    cols: int,
    same: bool,
    as_source: bool,
    as_target: bool,
    precision: str,
) -> None:
    """Clouds x, g (B, D, ld), vectors (B, ld); out (S, 3, B, D, ld), scalars (S, 3, B, ld).

    ``same`` leaves the pair (i, i) out. What a role does not read may be any packed tensor.
    """
    features, dtype = row_x.shape[1], configs.NAMES[row_x.dtype]
    form = configs.precision_of(precision, features, row_x.dtype)
    constants, tile = configs.tabled(TABLE, dtype, form, features)
    row = row_x, row_g, row_along, row_w, row_v
    column = col_x, col_g, col_along, col_w, col_v
    roles = {"AS_SOURCE": as_source, "AS_TARGET": as_target}
    pairs = configs.Pairs(row_x, col_x, rows, cols, out.shape[0], same)
    pointers = *row, *column, h, out, scalars
    configs.launch(divergence_backward_kernel, pointers, pairs, {**roles, **constants}, tile)


def specialisations() -> Iterator[Specialisation]:
    """Every specialisation that ``divergence_backward`` reaches."""
    return configs.roles(divergence_backward_kernel, "divergence_backward", TABLE)
