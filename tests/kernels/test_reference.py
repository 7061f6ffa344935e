"""The specification against definitions written out by hand: loops, autograd, closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.func import jacrev

from stein_kernels import reference
from stein_kernels.testing import assert_relative_error, gaussian_problem

EXACT = 1e-12


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


def kernel(x, y, h):
    return torch.exp(-(x - y).square().sum() / h)


def looped_direction(p, targets, weight_of):
    """phi(y_j) = sum_i w_ij [k(x_i, y_j) g_i + grad_{x_i} k(x_i, y_j)], by autograd."""
    out = torch.zeros_like(targets)
    for j, y in enumerate(targets):
        for i in range(len(p.x)):
            x = p.x[i].clone().requires_grad_()
            k = kernel(x, y, p.bandwidth)
            (slope,) = torch.autograd.grad(k, x)
            out[j] += weight_of(i, j) * (k.detach() * p.grad[i] + slope)
    return out


def pair_kernel(p, i, j):
    """u(x_i, x_j) of Liu, Lee & Jordan 2016, theorem 3.6, all derivatives by autograd."""
    x, y = p.x[i].clone().requires_grad_(), p.x[j].clone().requires_grad_()
    k = kernel(x, y, p.bandwidth)
    (dx,) = torch.autograd.grad(k, x, create_graph=True)
    (dy,) = torch.autograd.grad(k, y, create_graph=True)
    mixed = sum(torch.autograd.grad(dx[a], y, retain_graph=True)[0][a] for a in range(len(x)))
    g_x, g_y = p.grad[i], p.grad[j]
    return (k * g_x @ g_y + g_x @ dy + g_y @ dx + mixed).item()


@pytest.fixture
def small():
    return gaussian_problem(7, 3, queries=5, dtype=torch.float64, seed=1)


def test_direction_is_the_double_loop(small):
    m = len(small.x)
    uniform = looped_direction(small, small.x, lambda i, j: 1 / m)
    actual = reference.svgd_direction(small.x, small.grad, bandwidth=small.bandwidth)
    assert_relative_error(actual, uniform, EXACT)


def test_weighted_direction_at_queries_is_the_double_loop(small):
    expected = looped_direction(small, small.query, lambda i, j: small.weights[i])
    options = small.options("weights", "query", "bandwidth")
    assert_relative_error(reference.svgd_direction(small.x, small.grad, **options), expected, EXACT)


def test_leave_one_out_divides_by_m_minus_1(small):
    m = len(small.x)
    expected = looped_direction(small, small.x, lambda i, j: (i != j) / (m - 1))
    actual = reference.svgd_direction(
        small.x, small.grad, bandwidth=small.bandwidth, leave_one_out=True
    )
    assert_relative_error(actual, expected, EXACT)


def test_leave_one_out_renormalises_weights(small):
    w = small.weights
    expected = looped_direction(small, small.x, lambda i, j: (i != j) * w[i] / (1 - w[j]))
    options = small.options("weights", "bandwidth")
    actual = reference.svgd_direction(small.x, small.grad, leave_one_out=True, **options)
    assert_relative_error(actual, expected, EXACT)


def test_batches_are_independent_sets():
    p = gaussian_problem(2, 3, 6, 4, dtype=torch.float64)
    options = p.options("weights", "query", "bandwidth")
    whole = reference.svgd_direction(p.x, p.grad, **options)
    for a, b in itertools.product(range(2), range(3)):
        one = {name: value[a, b] for name, value in options.items()}
        alone = reference.svgd_direction(p.x[a, b], p.grad[a, b], **one)
        assert_relative_error(whole[a, b], alone, EXACT)


def test_a_single_particle_follows_its_score():
    x, grad = double([[3.0, -1.0]]), double([[0.5, 2.0]])
    assert torch.equal(reference.svgd_direction(x, grad), grad)
    assert torch.equal(reference.svgd_direction(x, grad, leave_one_out=True), torch.zeros(1, 2))


def test_two_particles_on_a_line_in_closed_form():
    """x = 0, 2 with h = 4: k = 1/e, and the repulsion pushes them apart by (2/h) 2 / e / 2."""
    x, grad = double([[0.0], [2.0]]), double([[1.0], [-3.0]])
    phi = reference.svgd_direction(x, grad, bandwidth=4.0)
    k = math.exp(-1)
    expected = double([[(1 - 3 * k - k) / 2], [(k - 3 + k) / 2]])
    assert_relative_error(phi, expected, 1e-15)


def test_population_field_of_a_gaussian_in_closed_form():
    """q = N(0, s^2), p = N(0, 1) in d = 1, on a quadrature grid as weighted particles."""
    s, h = 0.7, 1.3
    c = 2 / h
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    weights = torch.softmax(-(x[:, 0] ** 2) / (2 * s**2), 0)
    y = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    phi = reference.svgd_direction(x, -x, weights=weights, query=y, bandwidth=h)
    mass = (1 + c * s**2) ** -0.5 * torch.exp(-c * y**2 / (2 * (1 + c * s**2)))
    assert_relative_error(phi, mass * c * y * (1 - s**2) / (1 + c * s**2), 1e-10)


@pytest.mark.parametrize("given", [(), ("weights",), ("query",), ("weights", "query")])
def test_divergence_is_the_trace_of_the_jacobian(small, given):
    options = small.options("bandwidth", *given)
    targets = options.pop("query", small.x)

    def field(y):
        return reference.svgd_direction(small.x, small.grad, query=y[None], **options)[0]

    expected = torch.stack([jacrev(field)(y).trace() for y in targets])
    actual = reference.stein_divergence(small.x, small.grad, **small.options("bandwidth", *given))
    assert_relative_error(actual, expected, EXACT)


@pytest.mark.parametrize("weighted", [False, True])
def test_leave_one_out_divergence_is_the_trace_of_the_other_particles_field(small, weighted):
    weights = small.weights if weighted else torch.full((7,), 1 / 7).double()
    actual = reference.stein_divergence(
        small.x,
        small.grad,
        weights=weights if weighted else None,
        bandwidth=small.bandwidth,
        leave_one_out=True,
    )
    for j, y in enumerate(small.x):
        others = [i for i in range(7) if i != j]
        w = weights[others] / weights[others].sum()

        def field(y, others=others, w=w):
            options = {"weights": w, "query": y[None], "bandwidth": small.bandwidth}
            return reference.svgd_direction(small.x[others], small.grad[others], **options)[0]

        assert_relative_error(actual[j], jacrev(field)(y).trace(), EXACT)


# --- kernel Stein discrepancy --------------------------------------------------------------------


def discrepancy(p, **options):
    return reference.kernel_stein_discrepancy(p.x, p.grad, bandwidth=p.bandwidth, **options).item()


def test_v_statistic_is_the_mean_of_the_pair_kernel_over_all_pairs(small):
    u = [[pair_kernel(small, i, j) for j in range(7)] for i in range(7)]
    assert discrepancy(small, statistic="v") == pytest.approx(np.mean(u), rel=EXACT)
    w = small.weights.numpy()
    weighted = discrepancy(small, weights=small.weights, statistic="v")
    assert weighted == pytest.approx(w @ np.array(u) @ w, rel=EXACT)


def test_u_statistic_is_the_mean_over_distinct_pairs(small):
    u = np.array([[pair_kernel(small, i, j) for j in range(7)] for i in range(7)])
    distinct = ~np.eye(7, dtype=bool)
    assert discrepancy(small) == pytest.approx(u[distinct].mean(), rel=1e-10)
    w = small.weights.numpy()
    pairs = w[:, None] * w[None] / (1 - w[None]) * distinct
    weighted = discrepancy(small, weights=small.weights)
    assert weighted == pytest.approx((pairs * u).sum(), rel=1e-10)


def test_v_statistic_is_score_times_direction_plus_divergence(small):
    options = small.options("weights", "bandwidth")
    phi = reference.svgd_direction(small.x, small.grad, **options)
    trace = reference.stein_divergence(small.x, small.grad, **options)
    expected = (small.weights * ((phi * small.grad).sum(-1) + trace)).sum()
    actual = discrepancy(small, weights=small.weights, statistic="v")
    assert actual == pytest.approx(expected.item(), rel=EXACT)


def test_leave_one_out_asks_for_the_u_statistic(small):
    assert discrepancy(small, statistic="v", leave_one_out=True) == discrepancy(small)
