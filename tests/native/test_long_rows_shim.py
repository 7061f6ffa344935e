"""The CUDA kernels on long rows, run on a CPU through the flow, against the reference."""

from __future__ import annotations

import pytest
import torch

from stein_kernels.gpu import long_pairs
from tests.native import cuda_shim
from tests.native import long_rows_checks as checks
from tests.native.long_rows_checks import MIXES, Mix

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def kernels():
    return cuda_shim.library()


@pytest.mark.parametrize("m", [2, 31, 32, 33, 64, 65, 128, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sizes(kernels, m, dtype):
    checks.check_direction(kernels, (1, m, 150), dtype=dtype)


@pytest.mark.parametrize(("m", "d"), [(5, 129), (33, 301), (70, 690)])
def test_features(kernels, m, d):
    checks.check_direction(kernels, (2, m, d))
    checks.check_backward(kernels, (1, m, d))


def test_one_particle(kernels):
    checks.check_direction(kernels, (2, 1, 129))
    checks.check_direction(kernels, (2, 1, 129), Mix(query=True))
    checks.check_one_particle_backward(kernels)


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_options(kernels, mix, dtype):
    checks.check_direction(kernels, (2, 20, 133), mix, dtype, shift=3.0)
    checks.check_backward(kernels, (2, 20, 133), mix, dtype, shift=3.0)


@pytest.mark.parametrize("rule", ["liu_wang", "median", "median_squared"])
def test_rules(kernels, rule):
    checks.check_direction(kernels, (2, 33, 150), Mix(rule=rule))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("query", [False, True])
def test_dtypes(kernels, dtype, query):
    checks.check_direction(kernels, (2, 17, 144), Mix(query=query), dtype)
    checks.check_backward(kernels, (1, 17, 144), Mix(query=query), dtype)
    checks.check_gram(kernels, (2, 17, 144), query, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [160, 162, 163])
def test_rows_that_lie_apart(kernels, d, dtype):
    checks.check_direction(kernels, (2, 35, d), Mix(query=True), dtype, apart=True)
    checks.check_direction(kernels, (2, 35, d), Mix(), dtype, apart=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("query", [False, True])
def test_particles_far_from_the_origin(kernels, query, dtype):
    mix = Mix(query=query)
    checks.check_direction(kernels, (1, 40, 300), mix, dtype, shift=1e4)
    checks.check_backward(kernels, (1, 40, 300), mix, dtype, shift=1e4)
    checks.check_gram(kernels, (1, 40, 300), query, dtype, shift=1e4)


def test_targets_in_runs(kernels):
    """More than 2 d of them: the matrix would be larger than the particles."""
    checks.check_direction(kernels, (1, 10, 129), Mix(query=True), queries=300)
    checks.check_direction(kernels, (1, 280, 130), Mix(weights=True, rule="liu_wang"))


def test_few_features_of_a_large_set_go_in_parts(kernels, monkeypatch):
    monkeypatch.setattr(long_pairs, "SPAN", 64)
    checks.check_direction(kernels, (1, 40, 300))
    checks.check_direction(kernels, (1, 40, 300), Mix(query=True))


def test_equal_particles(kernels):
    checks.check_equal_particles(kernels, "ieee")


def test_a_set_that_is_not_finite_stays_alone(kernels):
    checks.check_nan_stays_in_its_set(kernels)


def test_same_bits_twice(kernels):
    checks.check_same_bits_twice(kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 20, 150), (2, 9, 144), (1, 70, 131)])
def test_adam(kernels, shape, dtype):
    checks.check_adam(kernels, shape, dtype)


def test_adam_leaves_a_lazy_clone_alone(kernels):
    """One that shares the memory of x until one of the two is written."""
    shape = (1, 4, 140)
    x, grad = torch.randn(shape), torch.randn(shape)
    kept, lazy = x.clone(), torch.ops.aten._lazy_clone(x)
    first, second, factors = torch.zeros(shape), torch.zeros(shape), torch.ones(9)
    coef, mass, own = torch.zeros(1, 4, 4), torch.zeros(1, 4), torch.ones(1, 4)
    kernels.long_direction_adam(
        *(coef, mass, own, x, grad, torch.ones(1), first, second, factors, "ieee")
    )
    assert torch.equal(lazy, kept)
    assert (x != kept).all()


def test_what_the_launches_refuse(kernels):
    x = torch.randn(1, 5, 200)
    centre, partial = torch.zeros(1, 200), torch.zeros(1, 1, 5, 5)
    kernels.long_products(x, x, centre, centre, partial, True, "ieee")
    for arguments, words in (
        ((x, x, centre, centre, partial, True, "tf32x3"), "precision"),
        ((x.mT.contiguous().mT, x, centre, centre, partial, False, "ieee"), "contiguous rows"),
        ((x, x.double(), centre, centre, partial, False, "ieee"), "rows like"),
        ((x, x, centre[:, 1:], centre, partial, False, "ieee"), "contiguous tensor"),
        ((x, x, centre, centre, partial[..., :4], False, "ieee"), "contiguous tensor"),
    ):
        with pytest.raises(RuntimeError, match=words):
            kernels.long_products(*arguments)
