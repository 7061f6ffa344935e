"""Triton's launches on long rows in the interpreter, through the flow, against the reference."""

from __future__ import annotations

import pytest
import torch

from stein_kernels.gpu import long_pairs
from stein_kernels.triton import long_rows, median
from tests.native import long_rows_checks as checks
from tests.native.long_rows_checks import MIXES, Mix

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class kernels:
    long_products = staticmethod(long_rows.long_products)
    long_direction = staticmethod(long_rows.long_direction)
    long_direction_adam = staticmethod(long_rows.long_direction_adam)
    median_sample = staticmethod(median.median_sample)
    median_pass = staticmethod(median.median_pass)
    median_refine = staticmethod(median.median_refine)


@pytest.mark.parametrize(("m", "d"), [(2, 131), (31, 200), (32, 256), (33, 301), (70, 690)])
def test_sizes(m, d):
    checks.check_direction(kernels, (2, m, d), precision="tf32x3")
    checks.check_backward(kernels, (1, m, d), precision="tf32x3")


def test_one_particle():
    checks.check_direction(kernels, (2, 1, 129), precision="tf32x3")
    checks.check_direction(kernels, (2, 1, 129), Mix(query=True))
    checks.check_one_particle_backward(kernels)


@pytest.mark.parametrize("m", [65, 128, 129, 150])
def test_around_the_largest_whole_set(m):
    checks.check_direction(kernels, (1, m, 160), precision="tf32x3")


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_options(mix, dtype):
    checks.check_direction(kernels, (2, 20, 133), mix, dtype, shift=3.0)
    checks.check_backward(kernels, (2, 20, 133), mix, dtype, shift=3.0)


@pytest.mark.parametrize("rule", ["liu_wang", "median", "median_squared"])
def test_rules(rule):
    checks.check_direction(kernels, (2, 33, 150), Mix(rule=rule), precision="tf32x3")


def test_rule_of_the_particles_with_a_query():
    checks.check_direction(
        kernels, (1, 140, 129), Mix(query=True, rule="liu_wang"), precision="tf32"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("query", [False, True])
def test_dtypes(dtype, query):
    checks.check_direction(kernels, (2, 17, 144), Mix(query=query), dtype, precision="tf32x3")
    checks.check_backward(kernels, (1, 17, 144), Mix(query=query), dtype)
    checks.check_gram(kernels, (2, 17, 144), query, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [160, 163])
def test_rows_that_lie_apart(d, dtype):
    mix = Mix(query=True)
    checks.check_direction(kernels, (2, 35, d), mix, dtype, apart=True, precision="tf32x3")
    checks.check_direction(kernels, (2, 35, d), Mix(), dtype, apart=True, precision="tf32x3")
    checks.check_backward(kernels, (2, 9, d), mix, dtype, apart=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("query", [False, True])
def test_particles_far_from_the_origin(query, dtype):
    mix = Mix(query=query)
    checks.check_direction(kernels, (1, 40, 300), mix, dtype, shift=1e4, precision="tf32x3")
    checks.check_backward(kernels, (1, 40, 300), mix, dtype, shift=1e4)
    checks.check_gram(kernels, (1, 40, 300), query, dtype, shift=1e4)


def test_targets_in_runs():
    """More than 2 d of them: the matrix would be larger than the particles."""
    checks.check_direction(kernels, (1, 10, 129), Mix(query=True), queries=300)
    checks.check_direction(kernels, (1, 280, 130), Mix(weights=True, rule="liu_wang"))


def test_few_features_of_a_large_set_go_in_parts(monkeypatch):
    monkeypatch.setattr(long_pairs, "SPAN", 64)
    assert long_pairs.splits(1, 40, 40, 300, same=True) == 4
    assert long_pairs.splits(1, 5000, 5000, 208000, same=True) == 3
    checks.check_direction(kernels, (1, 40, 300), precision="tf32x3")
    checks.check_direction(kernels, (1, 40, 300), Mix(query=True))


def test_equal_particles():
    checks.check_equal_particles(kernels, "tf32x3")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_set_that_is_not_finite_stays_alone():
    checks.check_nan_stays_in_its_set(kernels)


def test_same_bits_twice():
    checks.check_same_bits_twice(kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 20, 150), (2, 9, 144), (1, 70, 131)])
def test_adam(shape, dtype):
    checks.check_adam(kernels, shape, dtype)


# --- tf32x3: the interpreter multiplies in float32, so its rounding is emulated here --------------


def top_bits(values: torch.Tensor) -> torch.Tensor:
    """The 10 bits after the first that a tensor core reads of a float32; the rest is cut off."""
    return (values.view(torch.int32) & -0x2000).view(torch.float32)


def emulated_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b as tf32x3: two parts of each factor, the product of the small parts left out."""
    high, other = top_bits(a), top_bits(b)
    low, rest = top_bits(a - high), top_bits(b - other)
    return low @ other + high @ rest + high @ other


class emulated:
    """The launches as torch, 32 features or sources at a time; sums in float64 would flatter."""

    @staticmethod
    def long_products(row, col, row_centre, col_centre, partial, same, precision):
        whole = same and row.shape[1] <= long_rows.WHOLE
        left = row - (row.mean(1, keepdim=True) if whole else row_centre[:, None])
        right = left if same else col - col_centre[:, None]
        total, lost = torch.zeros_like(partial[0]), torch.zeros_like(partial[0])
        for at in range(0, row.shape[2], 32):
            a, b = left[..., at : at + 32].contiguous(), right[..., at : at + 32].contiguous()
            block = emulated_product(a, b.mT.contiguous()) - lost
            risen = total + block
            lost, total = (risen - total) - block, risen
        partial.zero_()
        partial[0] = total

    @staticmethod
    def long_direction(coef, mass, own, x, grad, y, h, out, origin, precision):
        c, centre = (2 / h)[:, None, None], x[:, :32].mean(1, keepdim=True)
        drive = grad - c * (x - centre)
        total = torch.zeros_like(out)
        for at in range(0, x.shape[1], 32):
            part = coef[:, at : at + 32].mT.contiguous()
            total += emulated_product(part, drive[:, at : at + 32].contiguous())
        total += c * mass[..., None] * (y - centre)
        out.copy_(total + own[..., None] * grad if origin >= 0 else total)


@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("query", [False, True])
def test_tf32x3_is_as_exact_as_float32(query, shift):
    checks.check_long(emulated, (100, 20000), query, shift)
