"""Tile tables of the kernels on packed clouds, and how a launch and a specialisation read them.

Chosen by what compiles without a spill for sm_80, sm_90 and sm_100 (resources.json), not yet by
measurement.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stein_kernels.triton.specialisation import Specialisation


class Tile(NamedTuple):
    """Rows and columns of a tile of pairs, how many of each a thread keeps, and the threads.

    ``registers``: where the assembler would stop at 128 for the sake of two blocks, and spill.
    """

    rows: int
    columns: int
    inner_rows: int = 1
    inner_columns: int = 1
    num_warps: int = 4
    num_stages: int = 1
    registers: int | None = None

    def options(self) -> dict[str, int | None]:
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "maxnreg": self.registers,
            "enable_fp_fusion": True,  # Triton changes its default with its version
        }


BLOCK = 128  # kernels take leading dimensions in blocks: that they are multiples is then known
WIDTHS = (16, 32, 64, 128)  # padded features of kernels that sum vectors by matrix products
DIRECT = (2, 4, 8, 16)  # padded features of the direct sums
TENSOR_CORE = ("tf32x3", "tf32")
NAMES = {torch.float32: "fp32", torch.float64: "fp64"}
INTEGERS = ("rows", "columns", "splits", "features", "row_blocks", "column_blocks", "same")
STRIDES = ("v_set", "v_row", "v_column")  # of a user's matrix, 64 bits wide
UNSPECIALISED = ("h", *INTEGERS)  # h is a user's tensor of any alignment; integers take any value


Table = dict[tuple[str, str, int], Tile]  # (dtype, precision, padded features)


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


def tabled(table: Table, dtype: str, precision: str, features: int) -> tuple[dict[str, Any], Tile]:
    """Constants and tile of a kernel that sums vectors over tiles of pairs."""
    padded = width(features, WIDTHS)
    tile = table[dtype, precision, padded]
    return {"SHAPE": (*tile[:4], padded, precision)}, tile


def specialisation(
    kernel: Any, name: str, dtype: str, constants: dict[str, Any], tile: Tile, instruction: str
) -> Specialisation:
    """A kernel whose pointers are packed, so aligned, but those that are left unspecialised."""
    names = inspect.signature(kernel.fn).parameters
    types = {**dict.fromkeys(INTEGERS, "i32"), **dict.fromkeys(STRIDES, "i64")}
    arguments = {
        argument: types.get(argument, f"*{dtype}")
        for argument in names
        if argument not in constants
    }
    aligned = tuple(argument for argument in arguments if argument not in UNSPECIALISED)
    return Specialisation(
        *(kernel, name, arguments, constants, aligned, tile.num_warps, tile.num_stages),
        *(instruction, tile.registers),
    )


ROLES = {"source": (True, False), "target": (False, True), "both": (True, True)}


def roles(kernel: Any, name: str, table: Table) -> Iterator[Specialisation]:
    """Every specialisation of a backward whose rows have the role of source, of target, or both."""
    for dtype, precision, padded in forms():
        constants, tile = tabled(table, dtype, precision, padded)
        instruction = "fma" if precision == "ieee" else "mma"
        for role, (source, target) in ROLES.items():
            label = f"{name}[d={padded},{role},{precision},{dtype}]"
            flags = {"AS_SOURCE": source, "AS_TARGET": target, **constants}
            yield specialisation(kernel, label, dtype, flags, tile, instruction)


class Pairs(NamedTuple):
    """What a launch goes over: clouds of rows and columns (B, D, ld) and their counts."""

    rows: Tensor
    columns: Tensor
    row_count: int
    column_count: int
    splits: int  # programs that share the columns of a row tile
    same: bool  # rows are columns, and the pair (i, i) is left out

    def arguments(self) -> tuple[int, ...]:
        """The values of ``INTEGERS``, in their order."""
        row_blocks, column_blocks = self.rows.shape[2] // BLOCK, self.columns.shape[2] // BLOCK
        counts = self.row_count, self.column_count, self.splits, self.rows.shape[1]
        return (*counts, row_blocks, column_blocks, int(self.same))


def launch(
    kernel: Any,
    pointers: tuple[Any, ...],
    pairs: Pairs,
    constants: dict[str, Any],
    tile: Tile,
) -> None:
    """Programs for every row tile, split and set, on one axis: the others end at 65,535."""
    programs = -(-pairs.row_count // tile.rows) * pairs.splits * pairs.rows.shape[0]
    kernel[(programs,)](*pointers, *pairs.arguments(), **constants, **tile.options())
