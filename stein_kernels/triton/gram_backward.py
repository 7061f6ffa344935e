"""The sums over pairs of the Gram matrix's backward: the launch ``gram_backward``.

With the cotangent v_rc of the matrix, k = exp(-|x_r - x_c|^2 / h):

    out_r = sum_c k v_rc x_c,  sums_r = sum_c k v_rc
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
    ("fp32", "ieee", 16): Tile(64, 32, 8, 2, registers=255),
    ("fp32", "ieee", 32): Tile(64, 32, 4, 2, 8, registers=255),
    ("fp32", "ieee", 64): Tile(64, 16, 4, 1, 8, registers=255),
    ("fp32", "ieee", 128): Tile(32, 16, 4, 1, 8, registers=255),
    ("fp64", "ieee", 16): Tile(32, 16, 4, 1),
    ("fp64", "ieee", 32): Tile(32, 16, 4, 1, registers=255),
    ("fp64", "ieee", 64): Tile(32, 16, 4, 1, 8),
    ("fp64", "ieee", 128): Tile(16, 16, 2, 1, 8),
    ("fp32", "tf32x3", 32): Tile(64, 32, num_warps=8),
    ("fp32", "tf32x3", 64): Tile(64, 16, num_warps=8),
    ("fp32", "tf32x3", 128): Tile(64, 16, num_warps=8),
    ("fp32", "tf32", 32): Tile(64, 32, num_warps=8),
    ("fp32", "tf32", 64): Tile(64, 32, num_warps=8),
    ("fp32", "tf32", 128): Tile(64, 16, num_warps=8),
}
# The cotangent is the user's, of any strides: singletons may have strides beyond 32 bits.
UNSPECIALISED = (*configs.UNSPECIALISED, "v", *configs.STRIDES)


@triton.jit(do_not_specialize=UNSPECIALISED)
def gram_backward_kernel(
    row_x,
    col_x,
    v,
    h,
    out,
    sums,
    v_set: tl.int64,  # pyright: ignore[reportInvalidTypeForm]
    v_row: tl.int64,  # pyright: ignore[reportInvalidTypeForm]
    v_column: tl.int64,  # pyright: ignore[reportInvalidTypeForm]
    rows,
    columns,
    splits,
    features,
    row_blocks,
    column_blocks,
    same,
    SHAPE: tl.constexpr,
):
    """Pairs of a row tile with a run of column tiles; every sum is compensated tile by tile."""
    BR: tl.constexpr = SHAPE[0]
    BC: tl.constexpr = SHAPE[1]
    DP: tl.constexpr = SHAPE[4]
    T: tl.constexpr = row_x.dtype.element_ty
    tile, first, last, member, _, before = tiles.program_tile(rows, columns, splits, BR, BC)
    row_ld, ld = tiles.leading(row_blocks), tiles.leading(column_blocks)
    _, slope = tiles.bandwidth_factors(h + member)
    row = tile * BR + tl.arange(0, BR)
    row_x += member * features * row_ld
    col_x += member * features * ld
    v += member * v_set + row.to(tl.int64)[:, None] * v_row
    moved, total = tiles.vector_sums(T, BR, DP), tiles.scalar_sums(T, BR)
    for run in range(first, last):
        column = run * BC + tl.arange(0, BC)
        at = tile, run, row_ld, ld, features
        k = tl.exp2(tiles.squared_distances(row_x, col_x, at, SHAPE) * slope)
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        pairs = k * tl.load(v + column.to(tl.int64)[None, :] * v_column, mask=inside, other=0.0)
        fresh = tiles.weighted_sum(pairs, col_x, ld, features, column, SHAPE)
        moved = tiles.add_compensated(moved, fresh)
        total = tiles.add_compensated(total, tl.sum(pairs, 1))
    slot = before + member
    tiles.store_tile(out + slot * features * row_ld, row_ld, features, row, tl.trans(moved[0]), DP)
    tl.store(sums + slot * row_ld + row, total[0])


def gram_backward(
    row_x: Tensor,
    col_x: Tensor,
    v: Tensor,
    h: Tensor,
    out: Tensor,
    sums: Tensor,
    rows: int,
    cols: int,
    precision: str,
) -> None:
    """Clouds row_x, col_x (B, D, ld), v (B, rows, cols) of any strides; out (S, B, D, ld).

    sums is (S, B, ld), both of the leading dimension of the rows.
    """
    features, dtype = row_x.shape[1], configs.NAMES[row_x.dtype]
    form = configs.precision_of(precision, features, row_x.dtype)
    constants, tile = configs.tabled(TABLE, dtype, form, features)
    pairs = configs.Pairs(row_x, col_x, rows, cols, out.shape[0], same=False)
    arguments = row_x, col_x, v, h, out, sums, *v.stride()
    configs.launch(gram_backward_kernel, arguments, pairs, constants, tile)


def specialisations() -> Iterator[Specialisation]:
    """Every specialisation that ``gram_backward`` reaches."""
    for dtype, precision, padded in configs.forms():
        constants, tile = configs.tabled(TABLE, dtype, precision, padded)
        instruction = "fma" if precision == "ieee" else "mma"
        name = f"gram_backward[d={padded},{precision},{dtype}]"
        made = configs.specialisation(
            gram_backward_kernel, name, dtype, constants, tile, instruction
        )
        yield made._replace(aligned=("row_x", "col_x", "out", "sums"))
