"""The CUDA C++ launches of small sets on the shim, through the flow, against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stein_kernels import testing
from stein_kernels.gpu import small_set
from stein_kernels.reference import RULES
from tests.native import cuda_shim
from tests.native import small_set_checks as checks

# Around the particles of a warp's set (28), of four warps' (60) and of the largest (256).
SIZES = [1, 2, 3, 16, 28, 29, 33, 60, 61, 64, 100, 128]
FEATURES = [1, 2, 8, 16, 17, 32, 33, 50]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def kernels() -> Any:
    return cuda_shim.library()


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    with testing.poison_empty():
        yield


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("d", [3, 20])
def test_sizes(kernels, m, d):
    checks.check_direction(kernels, (5 if m < 30 else 2, m, d))
    checks.check_backward(kernels, (5 if m < 30 else 2, m, d))


@pytest.mark.parametrize("d", FEATURES)
def test_features(kernels, d):
    for m in (19, 34):
        checks.check_direction(kernels, (2, m, d), weighted=True)
        checks.check_backward(kernels, (2, m, d), weighted=True)


@pytest.mark.parametrize("shape", [(1, 33, 130), (1, 5, 150), (1, 256, 18), (1, 189, 5)])
def test_many_features_or_particles(kernels, shape):
    checks.check_direction(kernels, shape)
    checks.check_backward(kernels, shape)


def test_the_largest_sets_of_float64(kernels):
    checks.check_direction(kernels, (1, 176, 17), torch.float64)
    checks.check_backward(kernels, (1, 176, 17), torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("bandwidth", [*RULES, None])
def test_options(kernels, bandwidth, left_out, weighted):
    options = {"weighted": weighted, "leave_one_out": left_out}
    for d in (5, 18):
        checks.check_direction(kernels, (2, 12, d), bandwidth=bandwidth, **options)
    checks.check_backward(kernels, (2, 12, 5), **options)


@pytest.mark.parametrize("m", [1, 2, 40, 66])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(kernels, dtype, m):
    for d in (4, 22):
        checks.check_direction(kernels, (2, m, d), dtype, weighted=True)
    checks.check_backward(kernels, (2, m, 22), dtype, weighted=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [2, 16, 50])
def test_particles_far_from_the_origin(kernels, d, dtype):
    checks.check_direction(kernels, (1, 48, d), dtype, shift=1e4)
    checks.check_backward(kernels, (1, 48, d), dtype, shift=1e4)


@pytest.mark.parametrize("d", [3, 18])
@pytest.mark.parametrize("rule", RULES)
def test_ties_and_degenerate_sets(kernels, rule, d):
    checks.check_ties_and_degenerate_sets(kernels, rule, d)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("m", [9, 33])
def test_a_set_that_is_not_finite_stays_alone(kernels, m, d, bad):
    checks.check_a_set_that_is_not_finite_stays_alone(kernels, m, d, bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_least_bandwidth(kernels, dtype):
    checks.check_least_bandwidth(kernels, dtype)


def test_an_outlier(kernels):
    checks.check_an_outlier(kernels)


@pytest.mark.parametrize("m", [10, 40])
def test_inputs_and_repeats(kernels, m):
    checks.check_other_tensors_are_left_alone(kernels, (2, m, 18))
    checks.check_same_bits_twice(kernels, (2, m, 18))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_limits_fit_the_shared_memory(kernels, dtype):
    """A set that the flow lets through is launched at both ends of the limits, and no larger one.

    The launches are refused before they start, so no kernel has to run on the shim for them.
    """
    most = small_set.PARTICLES["cuda"][torch.float64 if dtype == torch.float64 else torch.float32]
    x = torch.zeros(0, most, small_set.FEATURES, dtype=dtype)
    small_set.direction(kernels, x, x, None, None, "median", False)
    x = torch.zeros(0, most + 80, small_set.FEATURES, dtype=dtype)
    with pytest.raises(RuntimeError, match="do not fit the shared memory"):
        small_set.direction(kernels, x, x, None, None, "median", False)


def test_wrong_arguments_are_refused(kernels):
    p = testing.gaussian_problem(2, 5, 3)
    h, phi = p.bandwidth, torch.empty_like(p.x)
    for x, grad, w in [
        (p.x, p.grad[:, :4], p.weights),
        (p.x, p.grad.double(), p.weights),
        (p.x, p.grad, p.weights[:, :4]),
        (p.x.mT, p.grad.mT, p.weights),
    ]:
        with pytest.raises(RuntimeError, match="stein_kernels_cuda"):
            kernels.small_set(x, grad, w, h, h, phi, True, -1, False, 0.2)
