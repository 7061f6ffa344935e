"""Strides, views and storage offsets: a result depends on the values alone, to the bit."""

from __future__ import annotations

import pytest
import torch

import stein_kernels as sk
from stein_kernels.testing import gaussian_problem, poison_empty

pytestmark = pytest.mark.parametrize("kernels", ["compiled", "composite", "cuda"], indirect=True)


def sliced(value):
    """Every other element of a larger tensor along each axis, with an odd offset."""
    large = torch.full([2 * n + 3 for n in value.shape], torch.nan, dtype=value.dtype)
    view = large[tuple(slice(1, 2 * n + 1, 2) for n in value.shape)]
    view.copy_(value)
    return view


def transposed(value):
    return value.mT.contiguous().mT if value.dim() > 1 else value


def features_first(value):
    """Like channels-last: the last axis has the largest stride."""
    return value.movedim(-1, 0).contiguous().movedim(0, -1)


def batch_last(value):
    return value.movedim(0, -1).contiguous().movedim(-1, 0)


def padded_rows(value):
    """Rows of a wider matrix: unit stride inside, a gap between."""
    wide = torch.full((*value.shape[:-1], value.shape[-1] + 3), torch.nan, dtype=value.dtype)
    wide[..., : value.shape[-1]] = value
    return wide[..., : value.shape[-1]]


def negated(value):
    """A view with the lazy negation bit, as the imaginary part of a conjugate has."""
    view = torch.complex(torch.zeros_like(value), -value).conj().imag
    assert view.is_neg()
    return view


def flipped(value):
    """Torch has no negative strides; the gather that stands for them."""
    return value.flip(-1).contiguous().flip(-1)


LAYOUTS = [sliced, transposed, features_first, batch_last, padded_rows, negated, flipped]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("only", [None, "x", "grad", "weights", "query"])
def test_views(kernels, layout, only):
    p = gaussian_problem(3, 19, 7, queries=11)
    viewed = {
        name: layout(value) if only in (None, name) else value
        for name, value in p._asdict().items()
        if name != "bandwidth"
    }
    for op in (sk.svgd_direction, sk.stein_divergence):
        expected = op(p.x, p.grad, **p.options("weights", "query", "bandwidth"))
        actual = op(**viewed, bandwidth=p.bandwidth)
        assert torch.equal(actual, expected)
    assert torch.equal(sk.median_bandwidth(viewed["x"]), sk.median_bandwidth(p.x))
    assert torch.equal(sk.rbf_gram(viewed["x"], viewed["query"]), sk.rbf_gram(p.x, p.query))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_expanded(kernels, axis):
    """Stride 0 along the batch, the particles or the features."""
    p = gaussian_problem(3, 19, 7, queries=11)
    shape = p.x.shape
    x, grad = (value.narrow(axis, 0, 1).expand(shape) for value in (p.x, p.grad))
    query = p.query.narrow(axis, 0, 1).expand(p.query.shape)
    bandwidth = p.bandwidth[:1].expand(3)
    expected = sk.svgd_direction(
        x.clone(), grad.clone(), query=query.clone(), bandwidth=bandwidth.clone()
    )
    actual = sk.svgd_direction(x, grad, query=query, bandwidth=bandwidth)
    assert torch.equal(actual, expected)
    assert torch.equal(sk.median_bandwidth(x), sk.median_bandwidth(x.clone()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_the_output_in_any_layout(kernels, layout):
    p = gaussian_problem(3, 19, 7, queries=11)
    inputs = [value.requires_grad_() for value in (p.x, p.grad, p.weights, p.query, p.bandwidth)]
    x, grad, weights, query, h = inputs
    v = gaussian_problem(3, 11, 7, seed=5).x

    def gradients(v):
        phi = sk.svgd_direction(x, grad, weights=weights, query=query, bandwidth=h)
        return torch.autograd.grad(phi, inputs, v)

    for actual, expected in zip(gradients(layout(v)), gradients(v), strict=True):
        assert torch.equal(actual, expected)


def test_expanded_gradient_of_the_output(kernels):
    """``phi.sum().backward()`` hands the kernel a scalar with stride 0 everywhere."""
    p = gaussian_problem(3, 19, 7)
    x = p.x.requires_grad_()
    (summed,) = torch.autograd.grad(sk.svgd_direction(x, p.grad, bandwidth=p.bandwidth).sum(), x)
    phi = sk.svgd_direction(x, p.grad, bandwidth=p.bandwidth)
    (full,) = torch.autograd.grad(phi, x, torch.ones_like(phi))
    assert torch.equal(summed, full)


def test_storage_offset_beyond_two_to_the_31(kernels):
    """The view starts 2^30 elements, 2^32 bytes, into its storage; only touched pages are real."""
    p = gaussian_problem(2, 19, 7)
    elements = p.x.numel()
    with poison_empty(False):
        storage = torch.empty(2**32 + 8 * elements, dtype=torch.uint8).view(torch.float32)
    x = storage.as_strided(p.x.shape, p.x.stride(), 2**30).copy_(p.x)
    grad = storage.as_strided(p.x.shape, p.x.stride(), 2**30 + elements).copy_(p.grad)
    expected = sk.svgd_direction(p.x, p.grad)
    assert torch.equal(sk.svgd_direction(x, grad), expected)


def test_strides_beyond_two_to_the_31(kernels):
    """Two sets 2^31 + 2^20 elements apart in float16: 4.3 GB of address space, two pages real."""
    p = gaussian_problem(2, 5, 3, dtype=torch.float16)
    gap = 2**31 + 2**20
    with poison_empty(False):
        storage = torch.empty(2 * (gap + 32), dtype=torch.uint8).view(torch.float16)
    x = storage.as_strided(p.x.shape, (gap, 3, 1), 1).copy_(p.x)
    assert torch.equal(sk.svgd_direction(x, p.grad), sk.svgd_direction(p.x, p.grad))
    assert torch.equal(sk.median_bandwidth(x), sk.median_bandwidth(p.x))


@pytest.mark.parametrize("op", ["svgd_direction", "stein_divergence", "rbf_gram"])
@pytest.mark.parametrize("shape", [(19, 5), (270, 18), (9, 2051)], ids=str)
def test_a_bandwidth_may_begin_anywhere(kernels, op, shape):
    """One of several that are kept in one tensor, and its gradient."""
    p = gaussian_problem(*shape)
    arguments = (p.x,) if op == "rbf_gram" else (p.x, p.grad)
    found = []
    for h in ((torch.arange(1.0, 4.0) * shape[1])[1], torch.tensor(2.0 * shape[1])):
        h.requires_grad_()
        value = getattr(sk, op)(*arguments, bandwidth=h)
        found.append((value.detach(), *torch.autograd.grad(value.sum(), h)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
