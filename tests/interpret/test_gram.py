"""The launches ``gram`` and ``gram_backward`` against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from stein_kernels.triton.gram import gram
from stein_kernels.triton.gram_backward import gram_backward
from tests.interpret import formulas

SIZES = [(1, 65, 33, "ieee"), (16, 31, 34, "ieee"), (40, 64, 32, "ieee"), (128, 17, 16, "ieee")]
PRODUCTS = [(20, 65, 17, "tf32x3"), (64, 33, 40, "tf32"), (100, 30, 33, "tf32x3")]
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def problem(features, rows, columns, dtype, same=False):
    generator = torch.Generator().manual_seed(features * 1000 + rows + columns)
    row = formulas.side(generator, (2, features, rows), dtype, v=2).x
    column = row if same else formulas.side(generator, (2, features, columns), dtype, v=2).x
    v = torch.randn(2, rows, columns, generator=generator, dtype=dtype)
    return row, column, v, formulas.bandwidth(2, features, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("same", [False, True], ids=["other", "same"])
@pytest.mark.parametrize(
    ("features", "rows", "columns"), [(1, 65, 40), (18, 31, 65), (100, 64, 64)]
)
def test_gram(features, rows, columns, same, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    row, column, _, h = problem(features, rows, columns, wide, same)
    columns = rows if same else columns
    out = torch.full((2, rows, columns), math.nan, dtype=dtype)
    gram(formulas.packed(row, wide), formulas.packed(column, wide), h.to(wide), out, same)
    expected = formulas.gram(row, column, h)
    if dtype in ROUNDING:
        assert (out.double() - expected).abs().max() <= ROUNDING[dtype]
    else:
        formulas.assert_close(out.double(), expected, dtype)
    if same:
        assert (out.diagonal(0, 1, 2) == 1).all()


def test_gram_writes_nothing_around_the_matrix():
    """The matrix lies between two guards: masks, not padding, end its rows."""
    row, column, _, h = problem(3, 33, 5, torch.float32)
    memory = torch.full((2 * 33 * 5 + 128,), math.nan)
    out = memory[64:-64].view(2, 33, 5)
    rows, columns = formulas.packed(row, torch.float32), formulas.packed(column, torch.float32)
    gram(rows, columns, h.float(), out, False)
    assert memory[:64].isnan().all()
    assert memory[-64:].isnan().all()
    assert not out.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded"])
@pytest.mark.parametrize(("features", "rows", "columns", "precision"), [*SIZES, *PRODUCTS])
def test_gram_backward(features, rows, columns, precision, layout, dtype):
    if dtype == torch.float64 and (precision != "ieee" or layout == "expanded"):
        pytest.skip("float64 takes no tensor core, and one layout less")
    check_backward(features, rows, columns, precision, layout, dtype)


@pytest.mark.parametrize("splits", [2, 5])
def test_splits_share_the_columns(splits):
    check_backward(3, 33, 130, "ieee", "transposed", torch.float32, splits)


def check_backward(features, rows, columns, precision, layout, dtype, splits=1):
    row, column, v, h = problem(features, rows, columns, dtype)
    if layout == "transposed":
        v = v.mT.contiguous().mT
    elif layout == "expanded":
        v = v[:, :1, :1].expand_as(v)
    cloud = formulas.packed(row, dtype)
    out, sums = (
        cloud.new_full((splits, *cloud.shape), math.nan),
        cloud.new_full((splits, 2, 128), math.nan),
    )
    others = formulas.packed(column, dtype)
    gram_backward(cloud, others, v, h.to(dtype), out, sums, rows, columns, precision)
    vectors, scalars = formulas.gram_backward(row, column, v.double(), h)
    formulas.assert_close(formulas.splits_of(out, rows), vectors, dtype)
    formulas.assert_close(formulas.splits_of(sums, rows), scalars, dtype)
