"""bfloat16 and float16: float32 inside, one rounding at the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import stein_kernels as sk
from stein_kernels import _slices, reference
from stein_kernels.testing import (
    assert_relative_error,
    assert_within_reference_error,
    gaussian_problem,
)

pytestmark = pytest.mark.parametrize("kernels", ["compiled", "composite", "cuda"], indirect=True)
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
NAMES = pytest.mark.parametrize("names", [(), ("weights",), ("query",), ("weights", "query")])


def in_single(p):
    """The half inputs, widened: what an implementation that accumulates in float32 works on."""
    return type(p)(*(value.float() for value in p))


@HALF
@NAMES
@pytest.mark.parametrize("op", ["svgd_direction", "stein_divergence"])
def test_pairs(kernels, dtype, names, op):
    p = gaussian_problem(3, 40, 12, dtype=dtype)
    actual = getattr(sk, op)(p.x, p.grad, **p.options("bandwidth", *names))
    assert actual.dtype == dtype
    single, double = in_single(p), p.double()
    low = getattr(reference, op)(single.x, single.grad, **single.options("bandwidth", *names))
    high = getattr(reference, op)(double.x, double.grad, **double.options("bandwidth", *names))
    assert_within_reference_error(actual, low, high)


@HALF
@pytest.mark.parametrize("names", [(), ("weights",)])
def test_leave_one_out(kernels, dtype, names):
    p = gaussian_problem(3, 40, 12, dtype=dtype)
    actual = sk.svgd_direction(p.x, p.grad, leave_one_out=True, **p.options("bandwidth", *names))
    assert actual.dtype == dtype
    low, high = (
        reference.svgd_direction(q.x, q.grad, leave_one_out=True, **q.options("bandwidth", *names))
        for q in (in_single(p), p.double())
    )
    assert_within_reference_error(actual, low, high)


@pytest.mark.parametrize(
    "values",
    [[1.0] + [2e-7] * 19, [6e4] + [6e3] * 19],
    ids=["one has nearly all", "a sum beyond float16"],
)
@pytest.mark.parametrize("op", ["svgd_direction", "stein_divergence"])
def test_weights_at_the_ends_of_the_range_renormalise(kernels, op, values):
    """W/(W - w_j) is up to 3e5 here, W up to 174,000; float16 ends at 65504."""
    p = gaussian_problem(20, 5, dtype=torch.float16)
    weights = torch.tensor(values).half()
    if op == "svgd_direction" and values[1] == 6e3:
        p = p._replace(x=p.x * 30, grad=p.grad / 30)  # the result has to fit, too
    options = {"weights": weights, "leave_one_out": True}
    actual = getattr(sk, op)(p.x, p.grad, **options)
    low, high = (
        getattr(reference, op)(q.x, q.grad, **options | {"weights": weights.to(q.x.dtype)})
        for q in (in_single(p), p.double())
    )
    assert actual.dtype == torch.float16
    assert high.abs().max() < torch.finfo(torch.float16).max
    assert_within_reference_error(actual, low, high)


@HALF
@pytest.mark.parametrize("rule", reference.RULES)
def test_rules(kernels, dtype, rule):
    p = gaussian_problem(3, 40, 12, dtype=dtype)
    single, double = in_single(p), p.double()
    h = sk.median_bandwidth(p.x, rule=rule)
    assert h.dtype == reference.median_bandwidth(p.x, rule=rule).dtype == torch.float32
    exact_h = reference.median_bandwidth(double.x, rule=rule)
    assert_within_reference_error(h, reference.median_bandwidth(single.x, rule=rule), exact_h)
    phi = sk.svgd_direction(p.x, p.grad, bandwidth=rule)
    low, high = (reference.svgd_direction(q.x, q.grad, bandwidth=rule) for q in (single, double))
    assert phi.dtype == dtype
    assert_within_reference_error(phi, low, high)


@HALF
def test_gram_and_discrepancy(kernels, dtype):
    p = gaussian_problem(3, 40, 12, dtype=dtype)
    single, double = in_single(p), p.double()
    gram = sk.rbf_gram(p.x, p.query, bandwidth=p.bandwidth)
    low, high = (reference.rbf_gram(q.x, q.query, bandwidth=q.bandwidth) for q in (single, double))
    assert gram.dtype == dtype
    assert_within_reference_error(gram, low, high)
    discrepancy = sk.kernel_stein_discrepancy(p.x, p.grad, bandwidth=p.bandwidth, statistic="v")
    low, high = (
        reference.kernel_stein_discrepancy(q.x, q.grad, bandwidth=q.bandwidth, statistic="v")
        for q in (single, double)
    )
    assert discrepancy.dtype == dtype
    assert_within_reference_error(discrepancy, low, high)


@HALF
def test_bandwidth_tensor_in_the_half_type(kernels, dtype):
    p = gaussian_problem(3, 40, 12, dtype=dtype)
    half = p.bandwidth.to(dtype)
    actual = sk.svgd_direction(p.x, p.grad, bandwidth=half)
    expected = sk.svgd_direction(p.x, p.grad, bandwidth=half.float())
    assert torch.equal(actual, expected)


def test_float16_norms_beyond_its_range(kernels):
    """|x|^2 = 4e8 overflows float16 (65504); the spread of 1 is what counts."""
    x = gaussian_problem(30, 16, dtype=torch.float16).x + 5000
    grad = gaussian_problem(30, 16, dtype=torch.float16, seed=1).grad
    actual = sk.svgd_direction(x, grad)
    exact = reference.svgd_direction(x.double(), grad.double())
    assert_within_reference_error(actual, reference.svgd_direction(x.float(), grad.float()), exact)


@HALF
def test_a_bandwidth_beyond_the_range_of_float16(kernels, dtype):
    """h = 2e7 at a spread of 200 in 1,000 dimensions; float16 ends at 65504."""
    x = (gaussian_problem(50, 1000, dtype=torch.float64).x * 200).to(dtype)
    score = -x / 40000
    exact = reference.median_bandwidth(x.double())
    h = sk.median_bandwidth(x)
    assert_relative_error(h, exact, 1e-5)
    by_rule = sk.svgd_direction(x, score)
    assert_relative_error(sk.svgd_direction(x, score, bandwidth=h), by_rule, torch.finfo(dtype).eps)
    weights = torch.full_like(x[:, 0], 1 / 50)
    expected = sk.kernel_stein_discrepancy(x.float(), score.float(), statistic="v")
    mixes: list[dict[str, Any]] = [{}, {"bandwidth": h}, {"weights": weights}]
    for options in mixes:
        found = sk.kernel_stein_discrepancy(x, score, statistic="v", **options)
        assert found.dtype == dtype
        assert found.item() == pytest.approx(expected.item(), rel=0.02)


@HALF
def test_a_bandwidth_beyond_the_range_of_float16_on_slices(kernels, dtype):
    """The functions of sharded features, on the one slice that there is."""

    class Alone:
        def sum(self, partial):
            return partial

        def spread(self, value):
            return value

    x = (gaussian_problem(50, 1000, dtype=torch.float64).x * 200).to(dtype)
    score = -x / 40000
    h = _slices.median_bandwidth(Alone(), 1000, x=x)
    assert h.dtype == torch.float32
    assert_relative_error(h, sk.median_bandwidth(x), 1e-5)
    expected = sk.kernel_stein_discrepancy(x, score, statistic="v")
    for bandwidth in ("liu_wang", h):
        found = _slices.kernel_stein_discrepancy(
            *(Alone(), 1000), x=x, score=score, statistic="v", bandwidth=bandwidth
        )
        assert found.dtype == dtype
        assert_relative_error(found, expected, torch.finfo(dtype).eps)


@HALF
def test_gradients_come_back_in_the_half_type(kernels, dtype):
    p = gaussian_problem(2, 20, 6, dtype=dtype)
    leaves = p.x, p.grad, p.weights, p.query
    v = gaussian_problem(2, 5, 6, dtype=dtype, seed=7).x

    def gradients(direction, dtype):
        x, grad, weights, query = inputs = [
            value.detach().to(dtype).requires_grad_() for value in leaves
        ]
        h = p.bandwidth.double() if dtype is torch.float64 else p.bandwidth
        phi = direction(x, grad, weights=weights, query=query, bandwidth=h)
        return torch.autograd.grad(phi, inputs, v.to(dtype))

    actual = gradients(sk.svgd_direction, dtype)
    low = gradients(reference.svgd_direction, torch.float32)
    high = gradients(reference.svgd_direction, torch.float64)
    for got, low_one, high_one in zip(actual, low, high, strict=True):
        assert got.dtype == dtype
        assert_within_reference_error(got, low_one, high_one)
