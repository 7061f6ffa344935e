"""Values at the edge: not finite, all equal, huge, tiny, far from the origin."""

from __future__ import annotations

import math

import pytest
import torch

import stein_kernels as sk
from stein_kernels import reference
from stein_kernels.testing import assert_relative_error, gaussian_problem

BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


@BAD
@DTYPES
@pytest.mark.parametrize("row", [0, 16, 18])
def test_a_particle_that_is_not_finite_spoils_its_own_set_alone(kernels, bad, dtype, row):
    p = gaussian_problem(3, 19, 7, dtype=dtype)
    spoiled = p.x.clone()
    spoiled[1, row, 3] = bad
    phi = sk.svgd_direction(spoiled, p.grad)
    assert phi[1].isnan().all()
    assert torch.equal(phi[[0, 2]], sk.svgd_direction(p.x, p.grad)[[0, 2]])
    assert sk.median_bandwidth(spoiled)[1].isnan()
    assert sk.median_bandwidth(spoiled)[[0, 2]].isfinite().all()


@pytest.mark.parametrize("name", ["x", "grad", "weights", "query", "bandwidth"])
def test_nan_in_one_set_of_a_batch_stays_there(kernels, name):
    p = gaussian_problem(3, 19, 7)
    clean = p._asdict()
    spoiled = clean | {name: clean[name].clone()}
    spoiled[name].view(3, -1)[1, 0] = math.nan
    for op in (sk.svgd_direction, sk.stein_divergence):
        expected, actual = op(**clean), op(**spoiled)
        assert torch.equal(actual[[0, 2]], expected[[0, 2]])
        reached = actual[1, 0] if name == "query" else actual[1]
        assert reached.isnan().any()


@pytest.mark.parametrize("op", ["svgd_direction", "stein_divergence"])
def test_particles_of_weight_zero_pad_a_set_where_the_bandwidth_is_given(kernels, op):
    """A rule counts them: it takes all particles alike."""
    p = gaussian_problem(20, 7)
    x, grad = (torch.cat([value, torch.zeros(30, 7)]) for value in (p.x, p.grad))
    weights = torch.cat([p.weights, torch.zeros(30)])
    function = getattr(sk, op)
    h = sk.median_bandwidth(p.x)
    expected = function(p.x, p.grad, weights=p.weights, bandwidth=h)
    assert_relative_error(function(x, grad, weights=weights, bandwidth=h)[:20], expected, 1e-5)
    by_rule = function(x, grad, weights=weights)[:20]
    assert (by_rule - expected).norm() > 0.1 * expected.norm()


def test_nan_in_a_score_reaches_every_target_in_its_feature(kernels):
    p = gaussian_problem(19, 7)
    p.grad[4, 2] = math.nan
    phi = sk.svgd_direction(p.x, p.grad, bandwidth=5.0)
    assert phi[:, 2].isnan().all()


def test_nan_in_a_query_stays_in_its_row(kernels):
    p = gaussian_problem(19, 7)
    query = p.query.clone()
    query[3, 1] = math.nan
    expected = sk.svgd_direction(p.x, p.grad, query=p.query, bandwidth=5.0)
    phi = sk.svgd_direction(p.x, p.grad, query=query, bandwidth=5.0)
    assert phi[3].isnan().any()
    others = [0, 1, 2, 4]
    assert_relative_error(phi[others], expected[others], 1e-6)


@DTYPES
@pytest.mark.parametrize("at", [0.0, 3.0, 1e4])
def test_all_particles_equal(kernels, dtype, at):
    """Nothing repels, every kernel value is 1: each particle takes the mean score."""
    p = gaussian_problem(2, 19, 7, dtype=dtype)
    x = torch.full_like(p.x, at)
    phi = sk.svgd_direction(x, p.grad)
    mean = p.grad.double().mean(1, keepdim=True).expand(p.x.shape)
    assert_relative_error(phi, mean, 2 * torch.finfo(dtype).eps + 1e-6)
    assert torch.equal(sk.median_bandwidth(x, rule="median"), torch.ones(2, dtype=dtype))
    assert torch.equal(sk.rbf_gram(x), torch.ones(2, 19, 19, dtype=dtype))


def test_all_particles_equal_have_finite_gradients(kernels):
    p = gaussian_problem(19, 7)
    x = torch.full_like(p.x, 3.0).requires_grad_()
    sk.svgd_direction(x, p.grad).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kernels", ["compiled", "reference", "cuda"], indirect=True)
@pytest.mark.parametrize("h", [1e-30, 1e-10])
def test_a_tiny_bandwidth_isolates_the_particles(kernels, h):
    """Not the torch kernels: their matrix products in float64 need h above 1e-9 of the spread."""
    p = gaussian_problem(19, 7)
    phi = sk.svgd_direction(p.x, p.grad, bandwidth=h)
    assert_relative_error(phi, p.grad / 19, 1e-6)
    left_out = sk.svgd_direction(p.x, p.grad, bandwidth=h, leave_one_out=True)
    assert torch.equal(left_out, torch.zeros_like(p.x))


def test_a_query_far_from_every_particle_gets_zero(kernels):
    p = gaussian_problem(19, 7)
    phi = sk.svgd_direction(p.x, p.grad, query=p.query + 1e6, bandwidth=5.0)
    assert torch.equal(phi, torch.zeros_like(p.query))


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_units_of_length(kernels, scale):
    """Lengths times s, scores over s, h times s^2: the same direction in the new unit."""
    p = gaussian_problem(2, 33, 5)
    small = sk.svgd_direction(p.x, p.grad)
    scaled = sk.svgd_direction(p.x * scale, p.grad / scale)
    assert_relative_error(scaled.double() * scale, small, 1e-5)


@pytest.mark.parametrize("kernels", ["compiled", "composite", "reference"], indirect=True)
@pytest.mark.parametrize("rule", reference.RULES)
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-19])
@pytest.mark.parametrize("most_coincide", [False, True])
def test_a_spread_whose_square_leaves_float32(kernels, rule, scale, most_coincide):
    x = torch.randn(10, 3) * scale
    x[2 if most_coincide else 10 :] = 0
    h = sk.median_bandwidth(x, rule=rule)
    assert h > 0
    assert sk.svgd_direction(x, torch.randn(10, 3), bandwidth=rule).isfinite().all()


@pytest.mark.parametrize("d", [2, 9, 40, 300])
def test_mean_far_above_the_spread(kernels, d):
    """Mean 1e5, spread 1: float32 holds the coordinates to 0.008, and the kernel loses no more."""
    p = gaussian_problem(50, d, shift=1e5)
    exact = reference.svgd_direction(p.x.double(), p.grad.double())
    assert_relative_error(sk.svgd_direction(p.x, p.grad), exact, 4e-6)


def test_two_clusters_far_apart(kernels):
    """Centring cannot help here: the spread inside each cluster is 1e-4 of the distance."""
    p = gaussian_problem(64, 12)
    x = p.x.clone()
    x[::2] += 1e4
    exact = reference.svgd_direction(x.double(), p.grad.double(), bandwidth=4.0)
    phi = sk.svgd_direction(x, p.grad, bandwidth=4.0)
    assert_relative_error(phi, exact, 1e-5)


@pytest.mark.parametrize("kernels", ["compiled", "composite"], indirect=True)
@pytest.mark.parametrize("gap", [30.0, 1e3, 1e4])
@pytest.mark.parametrize("far", ["one particle", "every second"])
@pytest.mark.parametrize("shape", [(40, 17), (600, 20), (30, 300), (20, 5000)], ids=str)
@pytest.mark.parametrize("query", [False, True])
def test_far_off_particles_cost_the_others_no_digit(kernels, gap, far, shape, query):
    """At any number of features, in every flow, whether the bandwidth knows of them or not."""
    p = gaussian_problem(*shape, queries=33)
    x = p.x.clone()
    x[: 1 if far == "one particle" else None : 2] += gap
    y = x[:33] + 0.5 if query else None
    for h in (sk.median_bandwidth(x), torch.tensor(float(shape[1]))):
        phi = sk.svgd_direction(x, p.grad, weights=p.weights, query=y, bandwidth=h)[:33]
        exact = reference.svgd_direction(
            x.double(),
            p.grad.double(),
            weights=p.weights.double(),
            query=(x[:33] if y is None else y).double(),
            bandwidth=h.double(),
        )
        assert_relative_error(phi, exact, 2e-6)


@pytest.mark.parametrize("gap", [1e3, 2e4])
@pytest.mark.parametrize("far", ["one particle", "every second"])
def test_sums_of_differences_take_the_coordinates_as_given(kernels, gap, far):
    """On a GPU too: the direction of up to 16 features and the Gram matrix round at no distance."""
    p = gaussian_problem(60, 7)
    x = p.x.clone()
    x[: 1 if far == "one particle" else None : 2] += gap
    y = x[:33] + 0.5
    phi = sk.svgd_direction(x, p.grad, query=y, bandwidth=4.0)
    exact = reference.svgd_direction(x.double(), p.grad.double(), query=y.double(), bandwidth=4.0)
    assert_relative_error(phi, exact, 2e-6)
    gram = reference.rbf_gram(x.double(), y.double(), bandwidth=4.0)
    assert_relative_error(sk.rbf_gram(x, y, bandwidth=4.0), gram, 2e-6)


def test_a_bandwidth_tensor_of_zero_or_below_stays_in_its_set(kernels):
    """Its sign is not read (that would wait for the device): NaN or garbage, in that set alone."""
    p = gaussian_problem(3, 9, 2)
    h = torch.tensor([1.0, 0.0, 1.0])
    phi = sk.svgd_direction(p.x, p.grad, bandwidth=h)
    expected = sk.svgd_direction(p.x, p.grad, bandwidth=torch.ones(3))
    assert torch.equal(phi[[0, 2]], expected[[0, 2]])
    assert not phi[1].isfinite().all()


def test_inputs_are_left_alone(kernels):
    p = gaussian_problem(3, 9, 2)
    before = [value.clone() for value in p]
    sk.svgd_direction(p.x, p.grad, **p.options("weights", "query", "bandwidth"))
    sk.kernel_stein_discrepancy(p.x, p.grad)
    for value, copy in zip(p, before, strict=True):
        assert torch.equal(value, copy)
    assert sk.svgd_direction(p.x, p.grad).data_ptr() not in {value.data_ptr() for value in p}
