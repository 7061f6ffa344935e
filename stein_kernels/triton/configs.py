"""Tile tables of the kernels on packed clouds, and how a launch and a specialisation read them.

Chosen by what compiles without a spill for sm_80, sm_90 and sm_100, not yet by measurement.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from stein_kernels.triton.specialisation import Specialisation


class Tile(NamedTuple):
    """Rows and columns of a tile of pairs, how many of each a thread keeps, and the threads."""

    rows: int
    columns: int
    inner_rows: int = 1
    inner_columns: int = 1
    num_warps: int = 4
    num_stages: int = 1

    def constants(self) -> dict[str, int]:
        names = ("BR", "BC", "RI", "CI")
        return dict(zip(names, self[:4], strict=True))

    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


BLOCK = 128  # kernels take leading dimensions in blocks: that they are multiples is then known
WIDTHS = (16, 32, 64, 128)  # padded features of kernels that sum vectors by matrix products
DIRECT = (2, 4, 8, 16)  # padded features of the direct sums
TENSOR_CORE = ("tf32x3", "tf32")
NAMES = {torch.float32: "fp32", torch.float64: "fp64"}
INTEGERS = ("rows", "columns", "splits", "features", "row_blocks", "column_blocks", "same")
UNSPECIALISED = ("h", *INTEGERS)  # h is a user's tensor of any alignment; integers take any value


def width(features: int, widths: tuple[int, ...]) -> int:
    """The narrowest padding that holds the features."""
    return next(padded for padded in widths if padded >= features)


def precision_of(precision: str, features: int, dtype: torch.dtype) -> str:
    """float64 and up to 16 features take no tensor core: differences cost no more there."""
    return "ieee" if dtype == torch.float64 or features <= WIDTHS[0] else precision


def forms() -> Iterator[tuple[str, str, int]]:
    """Every (dtype, precision, padded features) that ``precision_of`` and ``width`` lead to."""
    for dtype in NAMES.values():
        yield from ((dtype, "ieee", padded) for padded in WIDTHS)
    for precision in TENSOR_CORE:
        yield from (("fp32", precision, padded) for padded in WIDTHS[1:])


def specialisation(
    kernel: Any, name: str, dtype: str, constants: dict[str, Any], tile: Tile, instruction: str
) -> Specialisation:
    """A kernel whose pointers are packed, so aligned, but those that are left unspecialised."""
    names = inspect.signature(kernel.fn).parameters
    arguments = {
        argument: "i32" if argument in INTEGERS else f"*{dtype}"
        for argument in names
        if argument not in constants
    }
    aligned = tuple(argument for argument in arguments if argument not in UNSPECIALISED)
    return Specialisation(kernel, name, arguments, constants, aligned, *tile[4:], instruction)


def launch(
    kernel: Any,
    inputs: tuple[Any, ...],
    rows: int,
    columns: int,
    same: bool,
    constants: dict[str, Any],
    tile: Tile,
) -> None:
    """Launch on pointers of which the first is a cloud of rows (B, D, ld), the second of columns.

    The last but one is the output (S, ...). Programs for every row tile, split and set lie on one
    axis: the others end at 65,535.
    """
    row_cloud, column_cloud, splits = inputs[0], inputs[1], inputs[-2].shape[0]
    sets, features, _ = row_cloud.shape
    kernel[(-(-rows // tile.rows) * splits * sets,)](
        *(*inputs, rows, columns, splits, features),
        *(row_cloud.shape[-1] // BLOCK, column_cloud.shape[-1] // BLOCK, int(same)),
        **constants,
        **tile.options(),
    )
