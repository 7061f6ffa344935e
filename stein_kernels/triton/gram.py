"""The Gram matrix of packed clouds: the launch ``gram``, out_ij = exp(-|x_i - y_j|^2 / h)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from stein_kernels.triton import configs, tiles
from stein_kernels.triton.configs import Tile
from stein_kernels.triton.specialisation import Specialisation

TABLE = {"fp32": Tile(64, 64, 8, 4), "fp64": Tile(32, 32, 4, 2)}
OUTPUTS = {**configs.NAMES, torch.bfloat16: "bf16", torch.float16: "fp16"}
# The output is the user's matrix: no stride of it is known to be a multiple of anything.
UNSPECIALISED = (*configs.UNSPECIALISED, "out")


@triton.jit(do_not_specialize=UNSPECIALISED)
def gram_kernel(
    x,
    y,
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
    """One tile of pairs by differences, so the pair of a particle with itself gives exactly 1."""
    BR: tl.constexpr = SHAPE[0]
    BC: tl.constexpr = SHAPE[1]
    tile, run, _, member, _, _ = tiles.program_tile(rows, columns, splits, BR, BC)
    row_ld, ld = tiles.leading(row_blocks), tiles.leading(column_blocks)
    _, slope = tiles.bandwidth_factors(h + member)
    at = tile, run, row_ld, ld, features
    x += member * features * row_ld
    y += member * features * ld
    k = tl.exp2(tiles.squared_distances(x, y, at, SHAPE) * slope)
    row = tile * BR + tl.arange(0, BR)[:, None]
    column = run * BC + tl.arange(0, BC)[None, :]
    place = out + (member * rows + row) * columns + column
    tl.store(place, k.to(out.dtype.element_ty), mask=(row < rows) & (column < columns))


def gram(x: Tensor, y: Tensor, h: Tensor, out: Tensor, same: bool) -> None:
    """x (B, D, ldm), y (B, D, ldn), h (B,); out (B, M, N) contiguous, of any floating dtype.

    A set with itself needs nothing of its own: differences of equal numbers are 0.
    """
    tile = TABLE[configs.NAMES[x.dtype]]
    rows, columns = out.shape[1:]
    pairs = configs.Pairs(x, y, rows, columns, -(-columns // tile.columns), same)
    configs.launch(gram_kernel, (x, y, h, out), pairs, {"SHAPE": (*tile[:4], 0, "ieee")}, tile)


def specialisations() -> Iterator[Specialisation]:
    """Every specialisation that ``gram`` reaches: halves come packed in float32."""
    for output in OUTPUTS.values():
        dtype = "fp64" if output == "fp64" else "fp32"
        tile = TABLE[dtype]
        constants = {"SHAPE": (*tile[:4], 0, "ieee")}
        name = f"gram[{output}]"
        made = configs.specialisation(gram_kernel, name, dtype, constants, tile, "fma")
        yield made._replace(arguments={**made.arguments, "out": f"*{output}"}, aligned=("x", "y"))
