"""The sums over pairs of the direction's backward: the launch ``direction_backward``.

A row meets every column as source, as target, or, where the sources are the targets, as both. With
the score u_i = g_i - c x_i of sources, the cotangent v_j of targets, s_j = y_j . v_j and c = 2/h:

    target r, source s:  a = u_s . v_r + c s_r,  S_rs = w_s k a,  scalars[1] = sum w_s k
    source r, target t:  a = u_r . v_t + c s_t,  S_rt = w_r k a,  scalars[2] = sum k a
                                                 out[1] = sum k v_t
    out[0] = sum S x_column,  scalars[0] = sum S

Of both roles S is the sum. Slots of a role that the rows do not have are not written.
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
    ("fp32", "ieee", 16): Tile(64, 32, 4, 2, 8, registers=255),
    ("fp32", "ieee", 32): Tile(64, 16, 8, 1),
    ("fp32", "ieee", 64): Tile(64, 16, 4, 1, 8),
    ("fp32", "ieee", 128): Tile(32, 16, 4, 1, 8),
    ("fp64", "ieee", 16): Tile(32, 16, 4, 1, 8),
    ("fp64", "ieee", 32): Tile(16, 16, 2, 1, 8),
    ("fp64", "ieee", 64): Tile(16, 16, 2, 1, 8),
    ("fp64", "ieee", 128): Tile(16, 16, 2, 1, 8),
    ("fp32", "tf32x3", 32): Tile(64, 16, num_warps=8),
    ("fp32", "tf32x3", 64): Tile(32, 16, num_warps=8),
    ("fp32", "tf32x3", 128): Tile(32, 16, num_warps=8),
    ("fp32", "tf32", 32): Tile(64, 16, num_warps=8),
    ("fp32", "tf32", 64): Tile(32, 32, num_warps=8, registers=255),
    ("fp32", "tf32", 128): Tile(32, 32, num_warps=8),
}


@triton.jit
def _set(x, u, v, shift, weight, line, features):
    """Pointers of one end of the pairs, moved to the set whose packed vectors start at ``line``."""
    cloud = line * features
    return x + cloud, u + cloud, v + cloud, shift + line, weight + line


@triton.jit
def _pairs(
    row_set,
    column_set,
    k,
    c,
    row,
    column,
    at,
    AS_SOURCE: tl.constexpr,
    AS_TARGET: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """S of a tile of pairs, sum w k of the rows as targets, sum k a of the rows as sources."""
    _, row_u, row_v, row_shift, row_w = row_set
    _, column_u, column_v, column_shift, column_w = column_set
    pairs = tl.zeros_like(k)
    weight, pull = tl.sum(pairs, 1), tl.sum(pairs, 1)
    if AS_TARGET:
        weighted = k * tl.load(column_w + column)[None, :]
        a = tiles.inner_products(row_v, column_u, at, SHAPE)
        pairs += weighted * (a + c * tl.load(row_shift + row)[:, None])
        weight = tl.sum(weighted, 1)
    if AS_SOURCE:
        a = tiles.inner_products(row_u, column_v, at, SHAPE)
        unweighted = k * (a + c * tl.load(column_shift + column)[None, :])
        pairs += tl.load(row_w + row)[:, None] * unweighted
        pull = tl.sum(unweighted, 1)
    return pairs, weight, pull


@triton.jit(do_not_specialize=configs.UNSPECIALISED)
def direction_backward_kernel(
    row_x,
    row_u,
    row_v,
    row_shift,
    row_w,
    col_x,
    col_u,
    col_v,
    col_shift,
    col_w,
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
    row_set = _set(row_x, row_u, row_v, row_shift, row_w, member * row_ld, features)
    column_set = _set(col_x, col_u, col_v, col_shift, col_w, member * ld, features)
    moved, carried = tiles.vector_sums(T, BR, DP), tiles.vector_sums(T, BR, DP)
    total, weight = tiles.scalar_sums(T, BR), tiles.scalar_sums(T, BR)
    pull = tiles.scalar_sums(T, BR)
    for run in range(first, last):
        column = run * BC + tl.arange(0, BC)
        at = tile, run, row_ld, ld, features
        r2 = tiles.squared_distances(row_set[0], column_set[0], at, SHAPE)
        k = tiles.kernel_value(r2, slope, row, column, same)
        pairs, weights, pulls = _pairs(
            row_set, column_set, k, c, row, column, at, AS_SOURCE, AS_TARGET, SHAPE
        )
        fresh = tiles.weighted_sum(pairs, column_set[0], ld, features, column, SHAPE)
        moved = tiles.add_compensated(moved, fresh)
        total = tiles.add_compensated(total, tl.sum(pairs, 1))
        weight = tiles.add_compensated(weight, weights)
        pull = tiles.add_compensated(pull, pulls)
        if AS_SOURCE:
            fresh = tiles.weighted_sum(k, column_set[2], ld, features, column, SHAPE)
            carried = tiles.add_compensated(carried, fresh)
    line, ahead = scalars + (3 * before + member) * row_ld + row, sets * row_ld
    out += (2 * before + member) * features * row_ld
    tl.store(line, total[0])
    tiles.store_tile(out, row_ld, features, row, tl.trans(moved[0]), DP)
    if AS_TARGET:
        tl.store(line + ahead, weight[0])
    if AS_SOURCE:
        tl.store(line + 2 * ahead, pull[0])
        out += features * ahead
        tiles.store_tile(out, row_ld, features, row, tl.trans(carried[0]), DP)


def direction_backward(
    row_x: Tensor,
    row_u: Tensor,
    row_v: Tensor,
    row_shift: Tensor,
    row_w: Tensor,
    col_x: Tensor,
    col_u: Tensor,
    col_v: Tensor,
    col_shift: Tensor,
    col_w: Tensor,
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
    """Clouds x, u, v (B, D, ld), vectors (B, ld); out (S, 2, B, D, ld), scalars (S, 3, B, ld).

    ``same`` leaves the pair (i, i) out. What a role does not read may be any packed tensor.
    """
    features, dtype = row_x.shape[1], configs.NAMES[row_x.dtype]
    form = configs.precision_of(precision, features, row_x.dtype)
    constants, tile = configs.tabled(TABLE, dtype, form, features)
    row = row_x, row_u, row_v, row_shift, row_w
    column = col_x, col_u, col_v, col_shift, col_w
    roles = {"AS_SOURCE": as_source, "AS_TARGET": as_target}
    pairs = configs.Pairs(row_x, col_x, rows, cols, out.shape[0], same)
    pointers = *row, *column, h, out, scalars
    configs.launch(direction_backward_kernel, pointers, pairs, {**roles, **constants}, tile)


def specialisations() -> Iterator[Specialisation]:
    """Every specialisation that ``direction_backward`` reaches."""
    return configs.roles(direction_backward_kernel, "direction_backward", TABLE)
