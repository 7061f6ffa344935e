"""The ops on a slice of the features: against the specification, and slices against the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from stein_kernels import _slice_ops, reference
from stein_kernels.testing import assert_relative_error, gaussian_problem

OPS = ("squared_distances", "displaced_products", "weighted_direction")
ops = torch.ops.stein_kernels


def sample_inputs(name, dtype=torch.float64, sizes=(2, 5, 4, 3), *, query=True, scores=True):
    """Arguments of the op of this name; (B, M, N, d) sizes."""
    b, m, n, d = sizes
    p = gaussian_problem(b, m, d, queries=n, dtype=dtype)
    y = p.query if query else None
    coefficients = reference.pair_weights(
        reference.squared_distances(p.x.to(p.bandwidth.dtype), y), p.bandwidth, None, False
    ).to(p.bandwidth.dtype)
    return {
        "squared_distances": (p.x, y),
        "displaced_products": (p.x, p.grad, y),
        "weighted_direction": (coefficients, p.x, p.grad if scores else None, y, p.bandwidth),
        "median_of_squared": (reference.squared_distances(p.x.to(p.bandwidth.dtype)),),
    }[name]


def leaves(arguments) -> Any:
    return tuple(v if v is None else v.detach().clone().requires_grad_() for v in arguments)


@pytest.mark.parametrize("query", [True, False])
@pytest.mark.parametrize("name", OPS)
def test_values(name, query):
    arguments = sample_inputs(name, query=query)
    expected = getattr(reference, name)(*arguments)
    # both in float64: sums of at most 5 terms of one size
    assert_relative_error(getattr(ops, name)(*arguments), expected, 1e-14)


@pytest.mark.parametrize("kernels", ["compiled"], indirect=True)
@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("name", OPS)
def test_accuracy_of_float32(name, shift, kernels):
    """Torch kernels sum in float64 and round once; the ops keep to the contract of all ops."""
    arguments = list(sample_inputs(name, torch.float32, (2, 9, 4, 40)))
    for at in {"weighted_direction": (1, 3), "displaced_products": (0, 2)}.get(name, (0, 1)):
        arguments[at] = arguments[at] + shift
    expected = getattr(reference, name)(*(v.double() for v in arguments))
    for kernel, limit in (
        (getattr(ops, name), 2e-6),
        (getattr(_slice_ops, name), torch.finfo(torch.float32).eps),
    ):
        actual = kernel(*arguments)
        assert actual.dtype == torch.float32
        assert_relative_error(actual, expected, limit)


def test_a_particle_is_exactly_zero_from_itself_and_its_copy():
    x = gaussian_problem(1, 5, 30, shift=1e4).x
    x[0, 3] = x[0, 1]
    squared = ops.squared_distances(x, None)[0]
    assert (squared.diagonal() == 0).all()
    assert squared[1, 3] == squared[3, 1] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_particle_that_is_not_finite_shows_on_the_diagonal(value):
    x = gaussian_problem(1, 5, 3).x
    x[0, 2, 1] = value
    squared = ops.squared_distances(x, None)
    assert squared[0].diagonal().isfinite().tolist() == [True, True, False, True, True]
    assert ops.median_of_squared(squared).isnan().all()


def test_slices_add_up(monkeypatch):
    """Of any width; and a run of the torch kernels is one too."""
    x, g, y = sample_inputs("displaced_products", sizes=(2, 5, 4, 10))
    for name, arguments in (("squared_distances", (x, y)), ("displaced_products", (x, g, y))):
        op = getattr(ops, name)
        slices = [op(*(v[..., part] for v in arguments)) for part in (slice(0, 7), slice(7, 10))]
        assert_relative_error(slices[0] + slices[1], op(*arguments), 1e-15)
    coefficients, *_, h = sample_inputs("weighted_direction", sizes=(2, 5, 4, 10))
    whole = ops.weighted_direction(coefficients, x, g, y, h)
    monkeypatch.setattr(_slice_ops, "RUN", 3 * 2 * (5 + 5 + 4))  # three features at a time
    part = _slice_ops.weighted_direction(coefficients, x, g, y, h)
    assert_relative_error(part, whole, 1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", list(_slice_ops.SCHEMAS))
def test_opcheck(name, dtype):
    arguments = sample_inputs(name, dtype)
    arguments = arguments if name == "median_of_squared" else leaves(arguments)
    opcheck(getattr(ops, name).default, arguments)


@pytest.mark.parametrize("sizes", [(0, 5, 4, 3), (2, 0, 4, 3), (2, 5, 0, 3), (2, 5, 4, 0)])
@pytest.mark.parametrize("name", OPS)
def test_opcheck_sizes(name, sizes):
    opcheck(getattr(ops, name).default, leaves(sample_inputs(name, sizes=sizes)))


@pytest.mark.parametrize("query", [True, False])
@pytest.mark.parametrize("name", OPS)
def test_derivatives_of_first_and_second_order(name, query):
    for scores in (True, False):
        arguments = leaves(sample_inputs(name, sizes=(1, 4, 3, 2), query=query, scores=scores))
        assert gradcheck(getattr(ops, name), arguments)
        assert gradgradcheck(getattr(ops, name), arguments)


@pytest.mark.parametrize("particles", [0, 1, 2, 3, 6, 7])
def test_median_by_sorting_and_by_selection(particles, monkeypatch):
    x = gaussian_problem(3, particles, 4, dtype=torch.float64).x
    squared = reference.squared_distances(x)
    expected = reference.median_distance(x)
    assert torch.equal(ops.median_of_squared(squared), expected)
    if particles > 1:
        monkeypatch.setattr(_slice_ops, "PAIRS_SORTED", 0)
        assert torch.equal(_slice_ops.median_of_squared(squared), expected)


def test_median_of_a_degenerate_set():
    x = torch.zeros(1, 4, 2)
    x[0, 0, 0] = 1.0  # 3 of 6 pairs are 1 apart, so the median is 1/2
    assert ops.median_of_squared(reference.squared_distances(x)) == 0.5
    x[0, 0, 0] = 0.0
    assert ops.median_of_squared(reference.squared_distances(x)) == 1.0
