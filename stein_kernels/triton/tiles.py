"""Device functions that the kernels on packed clouds share.

A packed cloud is (B, D, ld): feature-major, zero beyond the last particle, ld a multiple of 128. A
program owns one tile of rows of one set and walks over a run of column tiles; tiles are at most 128
wide, so no load of a row or a column needs a mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_PARTNER = tl.constexpr(1 << 30)  # added to a column's number where no pair is left out
STEP = tl.constexpr(16)  # features of one product of two clouds on the tensor cores


@triton.jit
def program_tile(rows, splits, BR: tl.constexpr):
    """Row tile, split, set, and the set's place among the partial sums (splits, sets).

    Neighbouring programs own neighbouring row tiles of one set: they read the same columns.
    """
    program = tl.program_id(0)
    row_tiles = tl.cdiv(rows, BR)
    sets = tl.num_programs(0) // (row_tiles * splits)
    rest = program // row_tiles
    split, member = rest % splits, (rest // splits).to(tl.int64)
    return program % row_tiles, split, member, split.to(tl.int64) * sets + member


@triton.jit
def column_run(columns, split, splits, BC: tl.constexpr):
    """First and last column tile of a split; tiles times splits exceeds 32 bits for 1e9 columns."""
    tiles = tl.cdiv(columns, BC).to(tl.int64)
    first = split * tiles // splits
    last = (split + 1) * tiles // splits
    return first.to(tl.int32), last.to(tl.int32)


@triton.jit
def leading(blocks):
    """The leading dimension of a cloud from its number of blocks."""
    return blocks.to(tl.int64) * 128


@triton.jit
def bandwidth_factors(h):
    """c = 2/h and the slope -log2(e)/h of ``kernel_value``."""
    bandwidth = tl.load(h)
    return 2.0 / bandwidth, -1.4426950408889634 / bandwidth


@triton.jit
def kernel_value(r2, slope, row, column, same):
    """exp(-r2/h) as a power of two, slope = -log2(e)/h; 0 at the pair of a particle with itself."""
    partner = column + (1 - same) * NO_PARTNER
    return tl.where(row[:, None] == partner[None, :], 0.0, tl.exp2(r2 * slope))


@triton.jit
def add_compensated(total, lost, value):
    """Kahan's sum: ``lost`` carries what the last addition rounded away."""
    value -= lost
    risen = total + value
    return risen, (risen - total) - value


@triton.jit
def pair_rows(tile, BR: tl.constexpr, RI: tl.constexpr):
    """Rows of a tile of pairs (RI, CI, BR/RI, BC/CI): see ``pairs_matrix``."""
    inner, outer = tl.arange(0, RI), tl.arange(0, BR // RI)
    row = inner[:, None, None, None] * (BR // RI) + outer[None, None, :, None]
    return tile * BR + row


@triton.jit
def pair_columns(tile, BC: tl.constexpr, CI: tl.constexpr):
    """Columns of a tile of pairs (RI, CI, BR/RI, BC/CI)."""
    inner, outer = tl.arange(0, CI), tl.arange(0, BC // CI)
    column = inner[None, :, None, None] * (BC // CI) + outer[None, None, None, :]
    return tile * BC + column


@triton.jit
def pairs_matrix(pairs, BR: tl.constexpr, BC: tl.constexpr):
    """(BR, BC) of a tile of pairs that was summed as (RI, CI, BR/RI, BC/CI).

    Threads are dealt to the last axes first, so each keeps RI rows by CI columns in registers and
    a feature costs it RI + CI loads for RI CI pairs, not the nearly RI CI of a tile (BR, BC).
    """
    return tl.reshape(tl.permute(pairs, (0, 2, 1, 3)), (BR, BC))


@triton.jit
def squared_differences(
    rows,
    columns,
    row_tile,
    column_tile,
    row_ld,
    column_ld,
    features,
    BR: tl.constexpr,
    BC: tl.constexpr,
    RI: tl.constexpr,
    CI: tl.constexpr,
):
    """|x_r - x_c|^2 of a tile of pairs, feature after feature: nothing cancels."""
    rows += pair_rows(row_tile, BR, RI)
    columns += pair_columns(column_tile, BC, CI)
    pairs = tl.zeros([RI, CI, BR // RI, BC // CI], rows.dtype.element_ty)
    for _ in range(features):
        difference = tl.load(rows) - tl.load(columns)
        pairs += difference * difference
        rows += row_ld
        columns += column_ld
    return pairs_matrix(pairs, BR, BC)


@triton.jit
def inner_products(
    rows,
    columns,
    row_tile,
    column_tile,
    row_ld,
    column_ld,
    features,
    BR: tl.constexpr,
    BC: tl.constexpr,
    RI: tl.constexpr,
    CI: tl.constexpr,
):
    """a_r . b_c of a tile of pairs in the arithmetic of ``squared_differences``."""
    rows += pair_rows(row_tile, BR, RI)
    columns += pair_columns(column_tile, BC, CI)
    pairs = tl.zeros([RI, CI, BR // RI, BC // CI], rows.dtype.element_ty)
    for _ in range(features):
        pairs += tl.load(rows) * tl.load(columns)
        rows += row_ld
        columns += column_ld
    return pairs_matrix(pairs, BR, BC)


@triton.jit
def load_tile(cloud, ld, features, column, DP: tl.constexpr):
    """Features of some particles, (DP, columns); zero beyond the last feature."""
    feature = tl.arange(0, DP)
    at = cloud + feature.to(tl.int64)[:, None] * ld + column[None, :]
    return tl.load(at, mask=feature[:, None] < features, other=0.0)


@triton.jit
def store_tile(cloud, ld, features, column, value, DP: tl.constexpr):
    """The reverse of ``load_tile``; nothing is written beyond the last feature."""
    feature = tl.arange(0, DP)
    at = cloud + feature.to(tl.int64)[:, None] * ld + column[None, :]
    tl.store(at, value, mask=feature[:, None] < features)


@triton.jit
def squared_by_products(
    rows,
    columns,
    row,
    column,
    row_ld,
    column_ld,
    features,
    BR: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """|x_r|^2 + |x_c|^2 - 2 x_r . x_c of a tile of pairs on the tensor cores, at least 0.

    In steps of ``STEP`` features: a whole tile of 128 would not leave registers for its parts.
    """
    dtype = rows.dtype.element_ty
    inner = tl.zeros([BR, BC], dtype)
    row_norm, column_norm = tl.zeros([BR], dtype), tl.zeros([BC], dtype)
    for first in range(0, features, STEP):
        left = load_tile(rows, row_ld, features - first, row, STEP)
        right = load_tile(columns, column_ld, features - first, column, STEP)
        inner = tl.dot(tl.trans(left), right, inner, input_precision=PRECISION, out_dtype=dtype)
        row_norm += tl.sum(left * left, 0)
        column_norm += tl.sum(right * right, 0)
        rows += STEP * row_ld
        columns += STEP * column_ld
    return tl.maximum(row_norm[:, None] + column_norm[None, :] - 2 * inner, 0.0)


@triton.jit
def products(
    rows,
    columns,
    row,
    column,
    row_ld,
    column_ld,
    features,
    BR: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """a_r . b_c of a tile of pairs on the tensor cores."""
    dtype = rows.dtype.element_ty
    inner = tl.zeros([BR, BC], dtype)
    for first in range(0, features, STEP):
        left = load_tile(rows, row_ld, features - first, row, STEP)
        right = load_tile(columns, column_ld, features - first, column, STEP)
        inner = tl.dot(tl.trans(left), right, inner, input_precision=PRECISION, out_dtype=dtype)
        rows += STEP * row_ld
        columns += STEP * column_ld
    return inner


@triton.jit
def weighted_sum(pairs, columns, PRECISION: tl.constexpr):
    """sum_c s_rc b_c of pairs (BR, BC) and a tile (DP, BC), (BR, DP)."""
    return tl.dot(pairs, tl.trans(columns), input_precision=PRECISION, out_dtype=pairs.dtype)
