"""Launches of the kernels on sets of long rows: tile tables, strides, and what may be compiled."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stein_kernels.triton.long_rows_kernels import large_kernel, products_kernel, whole_kernel
from stein_kernels.triton.specialisation import Specialisation


class Tile(NamedTuple):
    """Particles (rows, columns) and features of a tile, and the threads that share it."""

    rows: int
    columns: int
    features: int
    num_warps: int
    num_stages: int


WHOLE = 128  # particles of a set that a launch centres by itself; of float64, half of it
PROGRAMS = 264  # that share the feature blocks of a whole set: two for each of 132 multiprocessors

# By (precision, dtype of the rows): of a whole set, the narrowest tile that holds it, and of larger
# sets and queries. Chosen by what compiles without a spill for sm_80, sm_90 and sm_100, not yet by
# measurement.
PRODUCTS = {
    ("tensor", "fp32"): (
        Tile(32, 32, 64, 8, 3),
        Tile(64, 64, 32, 8, 3),
        Tile(128, 64, 16, 8, 5),
    ),
    ("tensor", "half"): (
        Tile(32, 32, 64, 8, 3),
        Tile(64, 64, 16, 8, 3),
        Tile(128, 64, 16, 8, 5),
    ),
    ("ieee", "fp32"): (Tile(32, 32, 32, 8, 2), Tile(128, 32, 16, 4, 2)),
    ("ieee", "fp64"): (Tile(32, 32, 32, 4, 2), Tile(64, 64, 16, 8, 2)),
}
LARGE_PRODUCTS = {
    ("tensor", "fp32"): Tile(128, 64, 16, 8, 4),
    ("tensor", "half"): Tile(128, 64, 16, 8, 4),
    ("ieee", "fp32"): Tile(64, 64, 32, 8, 2),
    ("ieee", "fp64"): Tile(64, 64, 16, 8, 2),
}
DIRECTION = {
    ("tensor", "fp32"): (Tile(32, 32, 64, 8, 3), Tile(64, 64, 32, 8, 3)),
    ("tensor", "half"): (Tile(32, 32, 128, 8, 2), Tile(64, 64, 32, 8, 3)),
    ("ieee", "fp32"): (Tile(32, 32, 64, 4, 2),),
    ("ieee", "fp64"): (Tile(32, 32, 32, 4, 2),),
}
# Sources, targets, features; the narrower tile where rows are not aligned or Adam joins in.
LARGE_DIRECTION = {
    ("tensor", "fp32"): (Tile(32, 128, 64, 8, 3), Tile(32, 128, 32, 8, 3)),
    ("tensor", "half"): (Tile(32, 128, 64, 8, 3), Tile(32, 128, 32, 8, 3)),
    ("ieee", "fp32"): (Tile(16, 64, 64, 8, 2), Tile(16, 64, 64, 8, 2)),
    ("ieee", "fp64"): (Tile(32, 64, 32, 8, 1), Tile(32, 64, 32, 8, 1)),
}
FUSED = (torch.float32, torch.bfloat16)  # parameters that an optimiser steps in one launch
USER = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}


def _key(precision: str, dtype: torch.dtype) -> tuple[str, str]:
    """Where a precision stands in a table: tf32 and tf32x3 share their tiles."""
    kind = USER[dtype] if dtype in (torch.float32, torch.float64) else "half"
    return ("ieee" if precision == "ieee" else "tensor"), kind


def _precision(precision: str, rows: Tensor, whole: bool) -> str:
    """What is compiled: tf32 pays where a set is large, and half types lose nothing by tf32x3."""
    if rows.dtype == torch.float64:
        return "ieee"
    if rows.dtype != torch.float32 or (whole and precision == "tf32"):
        return "tf32x3"
    return precision


def _products_tile(tile: Tile, key: tuple[str, str], unit: int) -> Tile:
    """Addresses of rows that are not aligned take registers: more warps share them."""
    crowded = key == ("ieee", "fp32") and unit == 1 and tile.rows == WHOLE
    return tile._replace(num_warps=8) if crowded else tile


def _direction_tiles(key: tuple[str, str], unit: int) -> tuple[Tile, ...]:
    """Tiles that hold a whole set; rows of a half type must be aligned, or registers are short."""
    return () if key[1] == "half" and unit == 1 else DIRECTION[key]


def _narrowest(tiles: tuple[Tile, ...], particles: int) -> Tile | None:
    return next((tile for tile in tiles if particles <= tile.rows), None)


def _unit(*rows: Tensor) -> int:
    """Features in 16 bytes where every row of every tensor starts at a multiple of that, else 1.

    Errors: ValueError for rows whose features the kernels' 32-bit counter cannot number.
    """
    if rows[0].shape[2] >= 2**31:
        raise ValueError(
            f"the Triton kernels take fewer than 2^31 features, got {rows[0].shape[2]:,}; "
            "use_backend('cuda') takes any number"
        )
    unit = 16 // rows[0].element_size()
    aligned = all(
        value.data_ptr() % 16 == 0 and value.shape[2] % unit == 0 and value.stride(1) % unit == 0
        for value in rows
    )
    return unit if aligned else 1


def _strides(rows: Tensor, unit: int) -> tuple[int, int]:
    """Rows from set to set, and from row to row the units."""
    step = rows.stride(1)
    total = rows.stride(0) // step if rows.shape[0] > 1 else rows.shape[1]
    return total, step // unit


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def long_products(
    row: Tensor,
    col: Tensor,
    row_centre: Tensor,
    col_centre: Tensor,
    partial: Tensor,
    same: bool,
    precision: str,
) -> None:
    """partial[s]_rc = sum over the features of split s of (row_r - centre) . (col_c - centre).

    row (B, R, d), col (B, C, d) in one dtype, their last dimension contiguous and their sets a
    whole number of rows apart; centres (B, d) and partial (S, B, R, C) of T. ``same``: col is row,
    what lies under the diagonal may stay unwritten, and a set of up to ``WHOLE`` rows is centred on
    its own mean, whatever the centres hold.
    """
    (b, r, d), c = row.shape, col.shape[1]
    whole, splits, unit = same and r <= WHOLE, partial.shape[0], _unit(row, col)
    precision = _precision(precision, row, whole)
    key = _key(precision, row.dtype)
    fitting = _narrowest(PRODUCTS[key], r) if whole else None
    whole, tile = fitting is not None, fitting or LARGE_PRODUCTS[key]
    tile = _products_tile(tile, key, unit)
    span = _cdiv(_cdiv(d, splits), tile.features)
    products_kernel[(_cdiv(r, tile.rows) * _cdiv(c, tile.columns) * splits * b,)](
        *(row, col, row_centre, col_centre, partial, r, c, d // unit, span, splits, int(same)),
        *(*_strides(row, unit), *_strides(col, unit)),
        *(tile.rows, tile.columns, tile.features, whole, unit, precision),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )


def long_direction(
    coef: Tensor,
    mass: Tensor,
    own: Tensor,
    x: Tensor,
    grad: Tensor,
    y: Tensor,
    h: Tensor,
    out: Tensor,
    origin: int,
    precision: str,
) -> None:
    """out_j = sum_i coef_ij (g_i - c x_i) + c mass_j y_j + own_j g_j, x and y less a centre.

    coef (B, M, N), mass and own (B, N), h (B,) of T, contiguous; x, grad (B, M, d), y and out
    (B, N, d) in one dtype, rows as in ``long_products``. mass_j = sum_i coef_ij makes the centre
    cancel. Where origin >= 0 target j is source origin + j; else own is not read.
    """
    _direction(coef, mass, own, x, grad, y, h, out, (h, h, h), origin, precision, adam=False)


def long_direction_adam(
    coef: Tensor,
    mass: Tensor,
    own: Tensor,
    x: Tensor,
    grad: Tensor,
    h: Tensor,
    first: Tensor,
    second: Tensor,
    factors: Tensor,
    precision: str,
) -> None:
    """One step of Adam along the direction, which is not written: x, first and second change.

    The arguments of ``long_direction`` for a set of up to ``WHOLE`` sources that are the targets;
    first and second (B, M, d) contiguous of T. factors (9,) of T: lr / (1 - b1^t),
    1 / sqrt(1 - b2^t), b1, 1 - b1, b2, 1 - b2, eps, 1 - lr decay, and the sign by which grad is
    the score.
    """
    moments = first, second, factors
    _direction(coef, mass, own, x, grad, x, h, x, moments, 0, precision, adam=True)


def _direction(
    coef: Tensor,
    mass: Tensor,
    own: Tensor,
    x: Tensor,
    grad: Tensor,
    y: Tensor,
    h: Tensor,
    out: Tensor,
    moments: tuple[Tensor, Tensor, Tensor],
    origin: int,
    precision: str,
    adam: bool,
) -> None:
    (b, m, d), n = x.shape, y.shape[1]
    same = origin >= 0 and n == m and m <= WHOLE
    precision = "tf32x3" if adam and x.dtype in FUSED else _precision(precision, x, same)
    unit = _unit(x, grad, y, out, *(moments[:2] if adam else ()))
    strides = [_strides(value, unit) for value in (x, grad, y, out)]
    key = _key(precision, x.dtype)
    tile = _narrowest(_direction_tiles(key, unit), m) if same else None
    if tile is None:
        tile = LARGE_DIRECTION[key][adam or unit == 1]
        large_kernel[(_cdiv(n, tile.columns) * _cdiv(d, tile.features) * b,)](
            *(coef, mass, own, x, grad, y, h, out, *moments, m, n, d // unit, origin),
            *(*strides[0], *strides[1], *strides[2], *strides[3]),
            *(tile.rows, tile.columns, tile.features, adam, unit, precision),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=True,
        )
        return
    total = _cdiv(d, tile.features)
    blocks = _cdiv(total, max(1, PROGRAMS // b))
    whole_kernel[(_cdiv(total, blocks) * b,)](
        *(coef, mass, own, x, grad, h, out, *moments, m, d // unit, blocks),
        *(*strides[0], *strides[1], *strides[3]),
        *(tile.rows, tile.features, adam, unit, precision),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=True,
    )


# --- what the launches can reach -----------------------------------------------------------------

_USER_POINTERS = {"row", "col", "x", "grad", "y", "out"}
_WIDE_POINTERS = {"row_centre", "col_centre", "partial", "coef", "mass", "own", "centre", "h"}
_WIDE_POINTERS |= {"first", "second", "factors"}


def specialisations() -> Iterator[Specialisation]:
    """Every kernel by dtype, precision, tile and whether rows are aligned."""
    for user, wide, precision in _forms():
        key = _key(precision, user)
        for unit in (1, 16 // user.itemsize):
            common = {"UNIT": unit, "PRECISION": precision}
            sets = precision != "tf32"  # whole ones
            products = [(tile, True) for tile in PRODUCTS[key]] if sets else []
            for listed, whole in [*products, (LARGE_PRODUCTS[key], False)]:
                tile = _products_tile(listed, key, unit)
                sizes = {"BR": tile.rows, "BC": tile.columns, "BK": tile.features}
                constants = {**sizes, "WHOLE": whole, **common}
                yield _specialisation(products_kernel, user, wide, constants, tile)
            fused = (False, True) if user in FUSED and precision == "tf32x3" else (False,)
            for tile in _direction_tiles(key, unit) if sets else ():
                for adam in fused:
                    constants = {"P": tile.rows, "BF": tile.features, "ADAM": adam, **common}
                    yield _specialisation(whole_kernel, user, wide, constants, tile)
            for adam in fused:
                tile = LARGE_DIRECTION[key][adam or unit == 1]
                sizes = {"BM": tile.rows, "BN": tile.columns, "BF": tile.features}
                constants = {**sizes, "ADAM": adam, **common}
                yield _specialisation(large_kernel, user, wide, constants, tile)


def _forms() -> Iterator[tuple[torch.dtype, str, str]]:
    """Dtype of the rows, type of the sums, precision: what ``_precision`` leads to."""
    yield torch.float64, "fp64", "ieee"
    yield from ((torch.float32, "fp32", precision) for precision in ("tf32x3", "tf32", "ieee"))
    yield from ((dtype, "fp32", "tf32x3") for dtype in (torch.bfloat16, torch.float16))


def _specialisation(
    kernel: Any, user: torch.dtype, wide: str, constants: dict[str, Any], tile: Tile
) -> Specialisation:
    def kind(name: str) -> str:
        if name in _USER_POINTERS:
            return f"*{USER[user]}"
        return f"*{wide}" if name in _WIDE_POINTERS else "i32"

    names = inspect.signature(kernel.fn).parameters
    ending = ",".join(str(value) for value in constants.values())
    return Specialisation(
        kernel=kernel,
        name=f"long_rows_{kernel.fn.__name__}[{USER[user]},{ending}]",
        arguments={name: kind(name) for name in names if name not in constants},
        constants=constants,
        aligned=(),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        instruction="fma" if constants["PRECISION"] == "ieee" else "mma",
    )
