"""Triton's launches of small sets in the interpreter, through the flow, against the reference."""

from __future__ import annotations

import pytest
import torch

from stein_kernels.gpu import small_set
from stein_kernels.reference import RULES
from stein_kernels.triton import small_set as triton_small_set
from stein_kernels.triton.small_set_backward import small_set_backward
from tests.native import small_set_checks as checks

SIZES = [1, 2, 3, 16, 17, 31, 33, 64, 100, 128]
FEATURES = [1, 2, 8, 16, 17, 50]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class kernels:
    small_set = staticmethod(triton_small_set.small_set)
    small_set_backward = staticmethod(small_set_backward)


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("d", [3, 20])
def test_sizes(m, d):
    checks.check_direction(kernels, (2, m, d))
    checks.check_backward(kernels, (2, m, d))


@pytest.mark.parametrize("d", FEATURES)
def test_features(d):
    checks.check_direction(kernels, (2, 19, d), weighted=True)
    checks.check_backward(kernels, (2, 19, d), weighted=True)


def test_many_features():
    checks.check_direction(kernels, (1, 33, 130))
    checks.check_backward(kernels, (1, 33, 130))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("bandwidth", [*RULES, None])
def test_options(bandwidth, left_out, weighted):
    options = {"weighted": weighted, "leave_one_out": left_out}
    for d in (5, 18):
        checks.check_direction(kernels, (2, 12, d), bandwidth=bandwidth, **options)
    checks.check_backward(kernels, (2, 12, 5), **options)


@pytest.mark.parametrize("m", [1, 2, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, m):
    for d in (4, 22):
        checks.check_direction(kernels, (2, m, d), dtype, weighted=True)
    checks.check_backward(kernels, (2, m, 22), dtype, weighted=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [2, 16, 50])
def test_particles_far_from_the_origin(d, dtype):
    checks.check_direction(kernels, (1, 48, d), dtype, shift=1e4)
    checks.check_backward(kernels, (1, 48, d), dtype, shift=1e4)


@pytest.mark.parametrize("d", [3, 18])
@pytest.mark.parametrize("rule", RULES)
def test_ties_and_degenerate_sets(rule, d):
    checks.check_ties_and_degenerate_sets(kernels, rule, d)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("d", [3, 20])
def test_a_set_that_is_not_finite_stays_alone(d, bad):
    checks.check_a_set_that_is_not_finite_stays_alone(kernels, 9, d, bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_least_bandwidth(dtype):
    checks.check_least_bandwidth(kernels, dtype)


def test_an_outlier():
    checks.check_an_outlier(kernels)


def test_inputs_and_repeats():
    checks.check_other_tensors_are_left_alone(kernels, (2, 10, 18))
    checks.check_same_bits_twice(kernels, (2, 10, 18))


def test_limits_are_those_of_the_tiles():
    for dtype, name in ((torch.float32, "fp32"), (torch.float64, "fp64")):
        assert small_set.PARTICLES["triton"][dtype] == triton_small_set.LIMIT[name]
    assert RULES == triton_small_set.RULES
    assert small_set.fits("triton", 128, 2048, torch.bfloat16)
    assert not small_set.fits("triton", 65, 2, torch.float64)
    assert not small_set.fits("triton", 2, 2049, torch.float32)
