"""Sizes between the loops of a kernel, and empty ones, against the reference in float64."""

from __future__ import annotations

import pytest
import torch

import stein_kernels as sk
from stein_kernels import reference
from stein_kernels.testing import assert_relative_error, gaussian_problem

SIZES = [0, 1, 2, 3, 7, 13, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129]
OPS = ["svgd_direction", "stein_divergence"]


@pytest.fixture(autouse=True)
def _scratch_full_of_nan(kernels):
    """Whatever buffers a kernel keeps between calls hold NaN before the test reads a short one."""
    if kernels != "reference":
        spoiled = torch.full((1, 140, 140), torch.nan)
        for query in (None, spoiled):
            for op in OPS:
                getattr(sk, op)(spoiled, spoiled, query=query, bandwidth=1.0)


def compare(op, p, limit=2e-6, **options):
    q = p.double()
    exact = {
        name: value.double() if torch.is_tensor(value) else value for name, value in options.items()
    }
    actual = getattr(sk, op)(p.x, p.grad, **options)
    expected = getattr(reference, op)(q.x, q.grad, **exact)
    scale = (
        2 / p.bandwidth.min().item() * p.x.shape[-1]
        if op == "stein_divergence" and p.x.numel()
        else 0
    )
    assert actual.shape == expected.shape
    assert actual.dtype == p.x.dtype
    if expected.numel():
        error = (actual - expected).abs().max()
        assert error <= limit * (expected.abs().max() + scale)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("m", [0, 1, 2, 17, 64])
def test_features(kernels, op, m, d):
    p = gaussian_problem(2, m, d, queries=9)
    compare(op, p, bandwidth=p.bandwidth)
    compare(op, p, **p.options("bandwidth", "weights", "query"))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("d", [1, 3, 16, 33])
def test_particles(kernels, op, m, d):
    p = gaussian_problem(2, m, d)
    compare(op, p, bandwidth=p.bandwidth)
    compare(op, p, bandwidth=p.bandwidth, leave_one_out=True)
    compare(op, p, weights=p.weights, bandwidth=p.bandwidth)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("m", [0, 1, 5, 64, 129])
def test_targets(kernels, op, m, n):
    p = gaussian_problem(2, m, 6, queries=n)
    compare(op, p, **p.options("bandwidth", "query"))


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3), (3, 0, 2), (1, 1, 1)])
@pytest.mark.parametrize("m", [0, 1, 4])
def test_batches(kernels, batch, m):
    p = gaussian_problem(*batch, m, 3)
    for op in OPS:
        compare(op, p, **p.options("weights", "query", "bandwidth"))
        compare(op, p, weights=p.weights, bandwidth=p.bandwidth, leave_one_out=True)
    assert sk.median_bandwidth(p.x).shape == batch
    assert sk.rbf_gram(p.x, p.query).shape == (*batch, m, 5)
    for statistic in ("u", "v"):
        assert sk.kernel_stein_discrepancy(p.x, p.grad, statistic=statistic).shape == batch


@pytest.mark.parametrize("kernels", ["compiled", "reference"], indirect=True)
def test_meta_tensors_have_the_shapes_alone(kernels):
    p = gaussian_problem(2, 5, 3)
    there = type(p)(*(value.to("meta") for value in p))
    x = there.x.requires_grad_()
    for op in (*OPS, "kernel_stein_discrepancy"):
        for options in ({}, {"bandwidth": 2.0}, p.options("weights", "bandwidth")):
            on_meta = {
                n: getattr(there, n) if torch.is_tensor(v) else v for n, v in options.items()
            }
            found = getattr(sk, op)(x, there.grad, leave_one_out=True, **on_meta)
            assert found.is_meta
            assert found.shape == getattr(sk, op)(p.x, p.grad, **options).shape
            assert torch.autograd.grad(found.sum(), x)[0].shape == p.x.shape
    assert sk.median_bandwidth(x).shape == (2,)
    assert sk.rbf_gram(x, there.query).shape == (2, 5, 5)


@pytest.mark.parametrize("rule", reference.RULES)
@pytest.mark.parametrize("m", [0, 1, 2, 3])
@pytest.mark.parametrize("d", [0, 1, 2])
def test_rules_on_few_particles(kernels, rule, m, d):
    p = gaussian_problem(2, m, d)
    h = sk.median_bandwidth(p.x, rule=rule)
    assert_relative_error(h, reference.median_bandwidth(p.x.double(), rule=rule), 1e-6)
    assert (h > 0).all()
    compare("svgd_direction", p, bandwidth=rule)


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("n", [0, 1, 17, 64])
@pytest.mark.parametrize("d", [0, 1, 16, 33])
def test_gram(kernels, m, n, d):
    p = gaussian_problem(2, m, d, queries=n)
    for y in (None, p.query):
        exact = reference.rbf_gram(
            *(p.x.double(), None if y is None else y.double()), bandwidth=p.bandwidth.double()
        )
        assert_relative_error(sk.rbf_gram(p.x, y, bandwidth=p.bandwidth), exact, 1e-6)


def test_empty_batches_have_gradients(kernels):
    for shape in [(0, 4, 3), (2, 0, 3), (2, 4, 0), (2, 1, 3)]:
        p = gaussian_problem(*shape)
        x, grad, weights, query = (
            value.requires_grad_() for value in (p.x, p.grad, p.weights, p.query)
        )
        phi = sk.svgd_direction(x, grad, weights=weights, query=query, bandwidth=p.bandwidth)
        for value, gradient in zip(
            (x, grad, weights, query),
            torch.autograd.grad(phi.sum(), (x, grad, weights, query)),
            strict=True,
        ):
            assert gradient.shape == value.shape
            assert gradient.isfinite().all()


def test_batch_shapes_of_weights_query_and_bandwidth_broadcast(kernels):
    p = gaussian_problem(2, 3, 6, 4)
    weights, query = p.weights[:1, :1], p.query[:, :1]
    actual = sk.svgd_direction(p.x, p.grad, weights=weights, query=query, bandwidth=0.7)
    expected = sk.svgd_direction(
        p.x,
        p.grad,
        weights=weights.expand(2, 3, 6).clone(),
        query=query.expand(2, 3, 5, 4).clone(),
        bandwidth=torch.full((2, 3), 0.7),
    )
    assert_relative_error(actual, expected, 1e-7)
