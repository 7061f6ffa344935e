"""The divergence of the direction on packed clouds: the launch ``divergence``.

With r2 = |y_j - x_i|^2, k = exp(-r2/h), c = 2/h, s_i = g_i . x_i (``along``) and d features:

    out_j = sum_i w_i k_ij [c d - c^2 r2_ij - c (g_i . y_j - s_i)]
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from stein_kernels.triton import configs, tiles
from stein_kernels.triton.configs import Tile
from stein_kernels.triton.specialisation import Specialisation

# No vector is summed, so nothing depends on the number of features.
TABLE = {
    ("fp32", "ieee"): Tile(64, 64, 8, 4),
    ("fp64", "ieee"): Tile(32, 32, 4, 2),
    ("fp32", "tf32x3"): Tile(64, 64, num_warps=8),
    ("fp32", "tf32"): Tile(64, 64, num_warps=8),
}


@triton.jit(do_not_specialize=configs.UNSPECIALISED)
def divergence_kernel(
    y,
    x,
    g,
    along,
    w,
    h,
    out,
    rows,
    columns,
    splits,
    features,
    row_blocks,
    column_blocks,
    same,
    SHAPE: tl.constexpr,
):
    """Pairs of a row tile with a run of column tiles; the sum is compensated tile by tile."""
    BR: tl.constexpr = SHAPE[0]
    BC: tl.constexpr = SHAPE[1]
    T: tl.constexpr = y.dtype.element_ty
    tile, first, last, member, _, before = tiles.program_tile(rows, columns, splits, BR, BC)
    row_ld, ld = tiles.leading(row_blocks), tiles.leading(column_blocks)
    c, slope = tiles.bandwidth_factors(h + member)
    row = tile * BR + tl.arange(0, BR)
    y += member * features * row_ld
    x += member * features * ld
    g += member * features * ld
    total = tiles.scalar_sums(T, BR)
    for run in range(first, last):
        column = run * BC + tl.arange(0, BC)
        at = tile, run, row_ld, ld, features
        r2 = tiles.squared_distances(y, x, at, SHAPE)
        k = tiles.kernel_value(r2, slope, row, column, same)
        k *= tl.load(w + member * ld + column)[None, :]
        e = tiles.inner_products(y, g, at, SHAPE)
        e -= tl.load(along + member * ld + column)[None, :]
        traces = k * tiles.trace(r2, e, c, features)
        total = tiles.add_compensated(total, tl.sum(traces, 1))
    tl.store(out + (before + member) * row_ld + row, total[0])


def divergence(
    y: Tensor,
    x: Tensor,
    g: Tensor,
    along: Tensor,
    w: Tensor,
    h: Tensor,
    out: Tensor,
    targets: int,
    sources: int,
    same: bool,
    precision: str,
) -> None:
    """y (B, D, ldn); x, g (B, D, ldm); along, w (B, ldm); h (B,); out (S, B, ldn).

    ``same`` leaves the pair (i, i) out.
    """
    form = configs.precision_of(precision, y.shape[1], y.dtype)
    tile = TABLE[configs.NAMES[y.dtype], form]
    pairs = configs.Pairs(y, x, targets, sources, out.shape[0], same)
    constants = {"SHAPE": (*tile[:4], 0, form)}
    configs.launch(divergence_kernel, (y, x, g, along, w, h, out), pairs, constants, tile)


def specialisations() -> Iterator[Specialisation]:
    """Every specialisation that ``divergence`` reaches."""
    for (dtype, precision), tile in TABLE.items():
        constants = {"SHAPE": (*tile[:4], 0, precision)}
        instruction = "fma" if precision == "ieee" else "mma"
        name = f"divergence[{precision},{dtype}]"
        yield configs.specialisation(divergence_kernel, name, dtype, constants, tile, instruction)
