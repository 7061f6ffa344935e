"""Device functions that the kernels on packed clouds share.

A packed cloud is (B, D, ld): feature-major, zero beyond the last particle, ld a multiple of 128. A
program owns one tile of rows of one set and walks over a run of column tiles; tiles are at most 128
wide, so no load of a row or a column needs a mask.

SHAPE = (BR, BC, RI, CI, DP, PRECISION): a tile of pairs has BR rows and BC columns, of which a
thread keeps RI and CI; DP is the number of features padded to a power of two. ``at`` is the place
of a tile: (row tile, column tile, leading dimension of rows, of columns, features).
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_PARTNER = tl.constexpr(1 << 30)  # added to a column's number where no pair is left out
STEP = tl.constexpr(16)  # features of one product of two clouds on the tensor cores


@triton.jit
def program_tile(rows, columns, splits, BR: tl.constexpr, BC: tl.constexpr):
    """Row tile, run of column tiles [first, last), set, sets, and the sets in the splits before.

    Neighbouring programs own neighbouring row tiles of one set: they read the same columns. Tiles
    times splits may exceed 32 bits.
    """
    program = tl.program_id(0)
    row_tiles = tl.cdiv(rows, BR)
    sets = tl.num_programs(0) // (row_tiles * splits)
    rest = program // row_tiles
    split, member = rest % splits, (rest // splits).to(tl.int64)
    column_tiles = tl.cdiv(columns, BC).to(tl.int64)
    first, last = split * column_tiles // splits, (split + 1) * column_tiles // splits
    first, last = first.to(tl.int32), last.to(tl.int32)
    return program % row_tiles, first, last, member, sets, split.to(tl.int64) * sets


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
def vector_sums(T: tl.constexpr, BR: tl.constexpr, DP: tl.constexpr):
    """A compensated sum (BR, DP) of nothing."""
    return tl.zeros([BR, DP], T), tl.zeros([BR, DP], T)


@triton.jit
def scalar_sums(T: tl.constexpr, BR: tl.constexpr):
    """A compensated sum (BR,) of nothing."""
    return tl.zeros([BR], T), tl.zeros([BR], T)


@triton.jit
def add_compensated(sums, value):
    """Kahan's sum: (total, what the last addition rounded away)."""
    total, lost = sums
    value -= lost
    risen = total + value
    return risen, (risen - total) - value


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
def pair_rows(tile, SHAPE: tl.constexpr):
    """Rows of a tile of pairs (RI, CI, BR/RI, BC/CI): see ``pairs_matrix``."""
    BR: tl.constexpr = SHAPE[0]
    RI: tl.constexpr = SHAPE[2]
    inner, outer = tl.arange(0, RI), tl.arange(0, BR // RI)
    return tile * BR + inner[:, None, None, None] * (BR // RI) + outer[None, None, :, None]


@triton.jit
def pair_columns(tile, SHAPE: tl.constexpr):
    """Columns of a tile of pairs (RI, CI, BR/RI, BC/CI)."""
    BC: tl.constexpr = SHAPE[1]
    CI: tl.constexpr = SHAPE[3]
    inner, outer = tl.arange(0, CI), tl.arange(0, BC // CI)
    return tile * BC + inner[None, :, None, None] * (BC // CI) + outer[None, None, None, :]


@triton.jit
def pairs_zero(T: tl.constexpr, SHAPE: tl.constexpr):
    """Zeros (RI, CI, BR/RI, BC/CI)."""
    RI: tl.constexpr = SHAPE[2]
    CI: tl.constexpr = SHAPE[3]
    RO: tl.constexpr = SHAPE[0] // RI
    CO: tl.constexpr = SHAPE[1] // CI
    return tl.zeros([RI, CI, RO, CO], T)


@triton.jit
def pairs_matrix(pairs, SHAPE: tl.constexpr):
    """(BR, BC) of a tile of pairs that was summed as (RI, CI, BR/RI, BC/CI).

    Threads are dealt to the last axes first, so each keeps RI rows by CI columns in registers and
    a feature costs it RI + CI loads for RI CI pairs, not the nearly RI CI of a tile (BR, BC).
    """
    BR: tl.constexpr = SHAPE[0]
    BC: tl.constexpr = SHAPE[1]
    return tl.reshape(tl.permute(pairs, (0, 2, 1, 3)), (BR, BC))


@triton.jit
def squared_distances(rows, columns, at, SHAPE: tl.constexpr):
    """|x_r - x_c|^2 of a tile of pairs.

    "ieee": by differences, feature after feature, so that nothing cancels. Otherwise n_r + n_c -
    2 x_r . x_c, at least 0, on the tensor cores in steps of ``STEP`` features: a whole tile of 128
    would not leave registers for the parts that tf32x3 splits it into.
    """
    row_tile, column_tile, row_ld, column_ld, features = at
    BR: tl.constexpr = SHAPE[0]
    BC: tl.constexpr = SHAPE[1]
    PRECISION: tl.constexpr = SHAPE[5]
    T: tl.constexpr = rows.dtype.element_ty
    if PRECISION == "ieee":
        rows += pair_rows(row_tile, SHAPE)
        columns += pair_columns(column_tile, SHAPE)
        pairs = pairs_zero(T, SHAPE)
        for _ in range(features):
            difference = tl.load(rows) - tl.load(columns)
            pairs += difference * difference
            rows += row_ld
            columns += column_ld
        r2 = pairs_matrix(pairs, SHAPE)
    else:
        row, column = row_tile * BR + tl.arange(0, BR), column_tile * BC + tl.arange(0, BC)
        inner = tl.zeros([BR, BC], T)
        row_norm, column_norm = tl.zeros([BR], T), tl.zeros([BC], T)
        for first in range(0, features, STEP):
            left = load_tile(rows, row_ld, features - first, row, STEP)
            right = load_tile(columns, column_ld, features - first, column, STEP)
            inner = tl.dot(tl.trans(left), right, inner, input_precision=PRECISION, out_dtype=T)
            row_norm += tl.sum(left * left, 0)
            column_norm += tl.sum(right * right, 0)
            rows += STEP * row_ld
            columns += STEP * column_ld
        r2 = row_norm[:, None] + column_norm[None, :] - 2 * inner  # NaN has to stay NaN
        r2 = tl.maximum(r2, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return r2


@triton.jit
def inner_products(rows, columns, at, SHAPE: tl.constexpr):
    """a_r . b_c of a tile of pairs, as ``squared_distances``."""
    row_tile, column_tile, row_ld, column_ld, features = at
    BR: tl.constexpr = SHAPE[0]
    BC: tl.constexpr = SHAPE[1]
    PRECISION: tl.constexpr = SHAPE[5]
    T: tl.constexpr = rows.dtype.element_ty
    if PRECISION == "ieee":
        rows += pair_rows(row_tile, SHAPE)
        columns += pair_columns(column_tile, SHAPE)
        pairs = pairs_zero(T, SHAPE)
        for _ in range(features):
            pairs += tl.load(rows) * tl.load(columns)
            rows += row_ld
            columns += column_ld
        inner = pairs_matrix(pairs, SHAPE)
    else:
        row, column = row_tile * BR + tl.arange(0, BR), column_tile * BC + tl.arange(0, BC)
        inner = tl.zeros([BR, BC], T)
        for first in range(0, features, STEP):
            left = load_tile(rows, row_ld, features - first, row, STEP)
            right = load_tile(columns, column_ld, features - first, column, STEP)
            inner = tl.dot(tl.trans(left), right, inner, input_precision=PRECISION, out_dtype=T)
            rows += STEP * row_ld
            columns += STEP * column_ld
    return inner


@triton.jit
def weighted_sum(pairs, columns, ld, features, column, SHAPE: tl.constexpr):
    """sum_c s_rc b_c of pairs (BR, BC) and the columns of a tile, (BR, DP)."""
    values = tl.trans(load_tile(columns, ld, features, column, SHAPE[4]))
    return tl.dot(pairs, values, input_precision=SHAPE[5], out_dtype=pairs.dtype)


@triton.jit
def trace(r2, e, c, features):
    """c d - c^2 r2 - c e: the divergence of a pair, e = g . (y - x), without weight and kernel."""
    return c * (features.to(r2.dtype) - c * r2 - e)
