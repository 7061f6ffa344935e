"""The direction on packed clouds: the launch ``direction`` of both backends.

Targets are the rows, sources the columns of a tile of pairs; k = exp(-r2/h), c = 2/h:

    mass_j = sum_i w_i k_ij
    out_j  = sum_i w_i k_ij u_i                        (split form; u = g - c x)
    out_j  = sum_i w_i k_ij [g_i + c (y_j - x_i)]      (direct form, d <= 16; u = g)

The split form adds c y_j mass_j afterwards, which cancels for clouds much wider than sqrt(h). The
direct form does not cancel, and costs a difference more for each pair and feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from stein_kernels.triton import configs, tiles
from stein_kernels.triton.configs import Tile
from stein_kernels.triton.specialisation import Specialisation

LANES = 32  # sources of a step of the direct form: one for each lane of a warp
CHUNK = 64  # steps between two reductions over the lanes, which cost as much as three steps

# Rows of the direct form: a warp holds two rows of 16 features, so that sums, targets and
# differences take 96 of 153 registers; four rows would take 241.
DIRECT = {
    **{("fp32", d): Tile(128 // d, LANES) for d in configs.DIRECT},
    **{("fp64", d): Tile(min(16, 64 // d), LANES) for d in configs.DIRECT},
}
SPLIT = {
    ("fp32", "ieee", 16): Tile(64, 64, 8, 4),
    ("fp32", "ieee", 32): Tile(64, 32, 8, 2, registers=255),
    ("fp32", "ieee", 64): Tile(64, 32, 8, 2),
    ("fp32", "ieee", 128): Tile(64, 16, 4, 1, 8),
    ("fp64", "ieee", 16): Tile(32, 32, 4, 2),
    ("fp64", "ieee", 32): Tile(32, 32, 4, 2),
    ("fp64", "ieee", 64): Tile(32, 16, 4, 1),
    ("fp64", "ieee", 128): Tile(32, 16, 4, 1, 8),
    ("fp32", "tf32x3", 32): Tile(64, 32, num_stages=2),
    ("fp32", "tf32x3", 64): Tile(64, 32, num_warps=8, num_stages=2),
    ("fp32", "tf32x3", 128): Tile(64, 16, num_warps=8, num_stages=2),
    ("fp32", "tf32", 32): Tile(64, 32, num_stages=2),
    ("fp32", "tf32", 64): Tile(64, 64, num_warps=8, num_stages=2),
    ("fp32", "tf32", 128): Tile(64, 32, num_warps=8, num_stages=2),
}


@triton.jit(do_not_specialize=configs.UNSPECIALISED)
def direction_direct_kernel(
    y,
    x,
    g,
    w,
    h,
    out,
    mass,
    rows,
    columns,
    splits,
    features,
    row_blocks,
    column_blocks,
    same,
    BR: tl.constexpr,
    LANES: tl.constexpr,
    CHUNK: tl.constexpr,
    DP: tl.constexpr,
):
    """Sums of ``CHUNK`` steps stay in the lanes, one source each; chunks are added compensated."""
    tile, first, last, member, _, before = tiles.program_tile(rows, columns, splits, BR, LANES)
    row_ld, column_ld = tiles.leading(row_blocks), tiles.leading(column_blocks)
    c, slope = tiles.bandwidth_factors(h + member)
    row = tile * BR + tl.arange(0, BR)
    x += member * features * column_ld
    g += member * features * column_ld
    w += member * column_ld
    targets = tiles.load_tile(y + member * features * row_ld, row_ld, features, row, DP)
    targets = targets[:, :, None]
    T: tl.constexpr = y.dtype.element_ty
    total, weight = tiles.vector_sums(T, DP, BR), tiles.scalar_sums(T, BR)
    for start in range(first, last, CHUNK):
        field = tl.zeros([DP, BR, LANES], T)
        share = tl.zeros([BR, LANES], T)
        for step in range(start, tl.minimum(start + CHUNK, last)):
            column = step * LANES + tl.arange(0, LANES)
            sources = tiles.load_tile(x, column_ld, features, column, DP)[:, None, :]
            score = tiles.load_tile(g, column_ld, features, column, DP)[:, None, :]
            difference = targets - sources
            r2 = tl.sum(difference * difference, 0)
            k = tiles.kernel_value(r2, slope, row, column, same) * tl.load(w + column)[None, :]
            share += k
            field += k[None, :, :] * (score + c * difference)
        total = tiles.add_compensated(total, tl.sum(field, 2))
        weight = tiles.add_compensated(weight, tl.sum(share, 1))
    slot = before + member
    tiles.store_tile(out + slot * features * row_ld, row_ld, features, row, total[0], DP)
    tl.store(mass + slot * row_ld + row, weight[0])


@triton.jit(do_not_specialize=configs.UNSPECIALISED)
def direction_split_kernel(
    y,
    x,
    u,
    w,
    h,
    out,
    mass,
    rows,
    columns,
    splits,
    features,
    row_blocks,
    column_blocks,
    same,
    SHAPE: tl.constexpr,
):
    """Kernel values of a tile, then their product with u, added compensated tile by tile."""
    BR: tl.constexpr = SHAPE[0]
    BC: tl.constexpr = SHAPE[1]
    DP: tl.constexpr = SHAPE[4]
    tile, first, last, member, _, before = tiles.program_tile(rows, columns, splits, BR, BC)
    row_ld, column_ld = tiles.leading(row_blocks), tiles.leading(column_blocks)
    _, slope = tiles.bandwidth_factors(h + member)
    row = tile * BR + tl.arange(0, BR)
    y += member * features * row_ld
    x += member * features * column_ld
    u += member * features * column_ld
    w += member * column_ld
    T: tl.constexpr = y.dtype.element_ty
    total, weight = tiles.vector_sums(T, BR, DP), tiles.scalar_sums(T, BR)
    for run in range(first, last):
        column = run * BC + tl.arange(0, BC)
        at = tile, run, row_ld, column_ld, features
        r2 = tiles.squared_distances(y, x, at, SHAPE)
        k = tiles.kernel_value(r2, slope, row, column, same) * tl.load(w + column)[None, :]
        fresh = tiles.weighted_sum(k, u, column_ld, features, column, SHAPE)
        total = tiles.add_compensated(total, fresh)
        weight = tiles.add_compensated(weight, tl.sum(k, 1))
    slot = before + member
    tiles.store_tile(out + slot * features * row_ld, row_ld, features, row, tl.trans(total[0]), DP)
    tl.store(mass + slot * row_ld + row, weight[0])


def _direct(dtype: str, features: int) -> tuple[dict[str, Any], Tile]:
    """Constants and tile of the direct form."""
    padded = configs.width(features, configs.DIRECT)
    tile = DIRECT[dtype, padded]
    return {"BR": tile.rows, "LANES": LANES, "CHUNK": CHUNK, "DP": padded}, tile


def direction(
    y: Tensor,
    x: Tensor,
    u: Tensor,
    w: Tensor,
    h: Tensor,
    out: Tensor,
    mass: Tensor,
    targets: int,
    sources: int,
    same: bool,
    direct: bool,
    precision: str,
) -> None:
    """y (B, D, ldn), x, u (B, D, ldm), w (B, ldm), h (B,); out (S, B, D, ldn), mass (S, B, ldn).

    ``same`` leaves the pair (i, i) out. ``direct`` takes u = g; ``precision`` is that of the
    products of the split form.
    """
    features, dtype = y.shape[1], configs.NAMES[y.dtype]
    if direct:
        kernel, (constants, tile) = direction_direct_kernel, _direct(dtype, features)
    else:
        form = configs.precision_of(precision, features, y.dtype)
        kernel = direction_split_kernel
        constants, tile = configs.tabled(SPLIT, dtype, form, features)
    pairs = configs.Pairs(y, x, targets, sources, out.shape[0], same)
    configs.launch(kernel, (y, x, u, w, h, out, mass), pairs, constants, tile)


def specialisations() -> Iterator[Specialisation]:
    """Every specialisation that ``direction`` reaches."""
    for dtype in configs.NAMES.values():
        for padded in configs.DIRECT:
            name = f"direction[d={padded},direct,{dtype}]"
            chosen = _direct(dtype, padded)
            yield configs.specialisation(direction_direct_kernel, name, dtype, *chosen, "fma")
    for dtype, precision, padded in configs.forms():
        name = f"direction[d={padded},{precision},{dtype}]"
        instruction = "fma" if precision == "ieee" else "mma"
        chosen = configs.tabled(SPLIT, dtype, precision, padded)
        yield configs.specialisation(direction_split_kernel, name, dtype, *chosen, instruction)
