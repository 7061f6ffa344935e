"""The launch ``divergence_backward`` against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch

from stein_kernels.triton.divergence_backward import divergence_backward
from tests.interpret import formulas

ROLES = {"source": (True, False), "target": (False, True), "both": (True, True)}
# Features of every padding, rows and columns at and across tiles of 16 to 64.
SIZES = [(1, 33, 17), (16, 64, 32), (17, 31, 34), (40, 16, 33), (100, 17, 16)]
PRODUCTS = [(20, 33, 40, "tf32x3"), (64, 16, 33, "tf32"), (128, 17, 20, "tf32x3")]


def launch(pointers, *rest):
    divergence_backward(*pointers, *rest)


def check(features, rows, columns, dtype, same, role, precision="ieee", splits=1, spare=0):
    generator = torch.Generator().manual_seed(features * 1000 + rows + columns)
    row = formulas.side(generator, (2, features, rows), dtype, v=2)
    column = row if same else formulas.side(generator, (2, features, columns), dtype, v=2)
    h = formulas.bandwidth(2, features, dtype)
    ends = [
        formulas.packed(value, dtype, spare)
        for side in (row, column)
        for value in (side.x, side.drive, side.scalar, side.weight, side.cotangent)
    ]
    ld = ends[0].shape[-1]
    out = ends[0].new_full((splits, 3, 2, features, ld), math.nan)
    scalars = ends[0].new_full((splits, 3, 2, ld), math.nan)
    columns = rows if same else columns
    launch([*ends, h.to(dtype), out, scalars], rows, columns, same, *ROLES[role], precision)
    vectors, sums = formulas.divergence_backward(row, column, h, same, *ROLES[role])
    formulas.assert_slots(out, vectors, rows, dtype)
    formulas.assert_slots(scalars, sums, rows, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("role", "same"), [(role, False) for role in ROLES] + [("both", True)])
@pytest.mark.parametrize(("features", "rows", "columns"), SIZES)
def test_roles(features, rows, columns, role, same, dtype):
    check(features, rows, columns, dtype, same, role)


@pytest.mark.parametrize(("role", "same"), [("source", False), ("target", True), ("both", True)])
@pytest.mark.parametrize(("features", "rows", "columns", "precision"), PRODUCTS)
def test_products_on_tensor_cores(features, rows, columns, precision, role, same):
    check(features, rows, columns, torch.float32, same, role, precision)


@pytest.mark.parametrize("splits", [2, 5])
def test_splits_share_the_columns(splits):
    check(20, 40, 40, torch.float32, True, "both", splits=splits, spare=1)


def test_leading_dimensions_are_independent():
    check(3, 33, 130, torch.float64, False, "both", splits=2)
