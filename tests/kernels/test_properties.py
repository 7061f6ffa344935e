"""What holds for every set of particles: symmetries, limits, and pieces that make up a whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import stein_kernels as sk
from stein_kernels.testing import assert_relative_error, gaussian_problem, generator

# Tile edges of vector registers and blocks, primes, and the degenerate counts.
COUNTS = st.sampled_from([1, 2, 3, 7, 13, 15, 16, 17, 31, 63, 64, 65, 97, 127, 129])
FEATURES = st.sampled_from([1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 129])
FLOAT32 = 5e-6  # both sides of an identity carry an error of at most 2e-6


class Case(NamedTuple):
    m: int
    n: int
    d: int
    batch: int
    seed: int
    dtype: torch.dtype

    def problem(self):
        return gaussian_problem(
            *(self.batch, self.m, self.d), queries=self.n, seed=self.seed, dtype=self.dtype
        )

    @property
    def limit(self):
        return FLOAT32 if self.dtype == torch.float32 else 1e-12


CASES = st.builds(
    Case,
    m=COUNTS,
    n=COUNTS,
    d=FEATURES,
    batch=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)


def options_of(p, weighted, at_query):
    names = ["bandwidth", *(["weights"] if weighted else []), *(["query"] if at_query else [])]
    return p.options(*names)


@given(CASES, st.booleans(), st.booleans())
def test_permuting_sources_changes_nothing_and_targets_follow(kernels, case, weighted, at_query):
    p = case.problem()
    order = torch.randperm(case.m, generator=generator(case.seed))
    options = options_of(p, weighted, at_query)
    phi = sk.svgd_direction(p.x, p.grad, **options)
    if weighted:
        options["weights"] = p.weights[:, order]
    permuted = sk.svgd_direction(p.x[:, order], p.grad[:, order], **options)
    assert_relative_error(permuted, phi if at_query else phi[:, order], case.limit)


@given(CASES, st.booleans(), st.sampled_from([-3.0, 17.0, 1000.0]))
def test_translation_changes_nothing(kernels, case, weighted, shift):
    """On a lattice of 1/1024 the shift is exact: both inputs hold the same differences."""
    p = case.problem()
    x, query = ((value * 1024).round() / 1024 for value in (p.x, p.query))
    options = options_of(p, weighted, False)
    here = sk.svgd_direction(x, p.grad, query=query, **options)
    there = sk.svgd_direction(x + shift, p.grad, query=query + shift, **options)
    assert_relative_error(there, here, case.limit)
    torch.testing.assert_close(
        sk.median_bandwidth(x + shift), sk.median_bandwidth(x), rtol=case.limit, atol=0
    )


@given(CASES, st.booleans())
def test_rotation_turns_the_direction(kernels, case, weighted):
    p = case._replace(dtype=torch.float64).problem()
    square = torch.randn(case.d, case.d, dtype=torch.float64, generator=generator(case.seed))
    turn = torch.linalg.qr(square).Q
    options = options_of(p, weighted, False)
    phi = sk.svgd_direction(p.x, p.grad, **options)
    turned = sk.svgd_direction(p.x @ turn, p.grad @ turn, **options)
    assert_relative_error(turned, phi @ turn, 1e-11)
    divergence = sk.stein_divergence(p.x, p.grad, **options)
    turned = sk.stein_divergence(p.x @ turn, p.grad @ turn, **options)
    scale = 2 / p.bandwidth.min() * case.d  # the self term: near 0 the sum has no scale of its own
    assert (turned - divergence).abs().max() <= 1e-11 * scale


@given(CASES)
def test_repulsion_between_particles_cancels_in_the_sum(kernels, case):
    """grad = 0 leaves (c/M) sum_i k_ij (x_j - x_i), antisymmetric in (i, j)."""
    p = case.problem()
    repulsion = sk.svgd_direction(p.x, torch.zeros_like(p.x), bandwidth=p.bandwidth).double()
    total, size = repulsion.sum(1).abs().max(), repulsion.abs().max() * case.m
    assert total <= case.limit * size


@given(CASES)
def test_gram_is_a_kernel_matrix(kernels, case):
    p = case.problem()
    gram = sk.rbf_gram(p.x, bandwidth=p.bandwidth).double()
    assert_relative_error(gram, gram.mT, case.limit)
    torch.testing.assert_close(
        gram.diagonal(dim1=1, dim2=2), torch.ones(case.batch, case.m).double(), rtol=0, atol=1e-6
    )
    assert gram.min() >= 0
    assert gram.max() <= 1 + 1e-6
    assert torch.linalg.eigvalsh((gram + gram.mT) / 2).min() >= -1e-6 * case.m


@given(CASES)
def test_gram_of_two_sets_transposes(kernels, case):
    p = case.problem()
    forth = sk.rbf_gram(p.x, p.query, bandwidth=p.bandwidth)
    back = sk.rbf_gram(p.query, p.x, bandwidth=p.bandwidth)
    assert_relative_error(back.mT, forth, case.limit)


@given(CASES, st.booleans())
def test_targets_are_independent(kernels, case, weighted):
    """The query in two pieces is the query whole."""
    p = case.problem()
    options = options_of(p, weighted, False)
    cut = case.n // 3
    for op in (sk.svgd_direction, sk.stein_divergence):
        whole = op(p.x, p.grad, query=p.query, **options)
        pieces = [
            op(p.x, p.grad, query=part, **options) for part in (p.query[:, :cut], p.query[:, cut:])
        ]
        # a divergence near 0 has no scale of its own: its terms have that of the self term, c d
        scale = whole.abs().max() + 2 / p.bandwidth.min() * case.d * (op is sk.stein_divergence)
        assert (torch.cat(pieces, 1) - whole).abs().max() <= case.limit * scale


@given(CASES, st.booleans(), st.booleans())
def test_sets_of_a_batch_are_independent_to_the_bit(kernels, case, weighted, by_rule):
    p = case.problem()
    options = options_of(p, weighted, True)
    if by_rule:
        options["bandwidth"] = "liu_wang"
    whole = sk.svgd_direction(p.x, p.grad, **options)
    for b in range(case.batch):
        alone: dict[str, Any] = {
            name: value if isinstance(value, str) else value[b : b + 1]
            for name, value in options.items()
        }
        piece = sk.svgd_direction(p.x[b : b + 1], p.grad[b : b + 1], **alone)
        if kernels == "compiled":
            assert torch.equal(piece, whole[b : b + 1])
        else:  # torch's batched matrix product may split its sums by the batch size
            assert_relative_error(piece, whole[b : b + 1], case.limit)


@given(CASES)
def test_uniform_weights_are_no_weights(kernels, case):
    p = case.problem()
    uniform = torch.full_like(p.weights, 1 / case.m)
    for op in (sk.svgd_direction, sk.stein_divergence):
        for left_out in (False, True):
            options = {"bandwidth": p.bandwidth, "leave_one_out": left_out}
            plain = op(p.x, p.grad, **options)
            weighted = op(p.x, p.grad, weights=uniform, **options)
            scale = plain.double().abs().max() + 2 / p.bandwidth.min() * case.d
            assert (weighted - plain).abs().max() <= case.limit * scale


@given(CASES, st.booleans())
def test_the_particles_as_query_are_no_query(kernels, case, weighted):
    p = case.problem()
    options = options_of(p, weighted, False)
    plain = sk.svgd_direction(p.x, p.grad, **options)
    queried = sk.svgd_direction(p.x, p.grad, query=p.x.clone(), **options)
    assert_relative_error(queried, plain, case.limit)


@given(CASES)
def test_leaving_the_pair_out_drops_the_own_score(kernels, case):
    """phi_loo = (M phi - g_j) / (M - 1); a particle alone has nobody left: 0."""
    p = case.problem()
    left_out = sk.svgd_direction(p.x, p.grad, bandwidth=p.bandwidth, leave_one_out=True)
    if case.m == 1:
        assert torch.equal(left_out, torch.zeros_like(p.x))
        return
    phi = sk.svgd_direction(p.x, p.grad, bandwidth=p.bandwidth).double()
    expected = (case.m * phi - p.grad) / (case.m - 1)
    scale = case.m * phi.abs().max() / (case.m - 1) + p.grad.abs().max()
    assert (left_out - expected).abs().max() <= case.limit * scale


@given(CASES, st.booleans())
def test_a_wide_kernel_gives_every_target_the_mean_score(kernels, case, weighted):
    p = case.problem()
    weights = p.weights if weighted else None
    phi = sk.svgd_direction(p.x, p.grad, weights=weights, query=p.query, bandwidth=1e12)
    w = p.weights.double() if weighted else torch.full_like(p.weights.double(), 1 / case.m)
    mean = (w[..., None] * p.grad.double()).sum(1, keepdim=True)
    scale = (w[..., None] * p.grad.double().abs()).sum(1).max()
    assert (phi - mean).abs().max() <= case.limit * scale + 1e-8


@given(CASES)
def test_a_narrow_kernel_leaves_every_particle_alone(kernels, case):
    """h far below the squared distances: k_ij = 0 for i != j, and phi_j = g_j / M, without NaN.

    The limit in float64 is that of a matrix product, |x|^2 eps / h.
    """
    p = case._replace(d=max(case.d, 5)).problem()
    phi = sk.svgd_direction(p.x, p.grad, bandwidth=1e-6)
    limit = FLOAT32 if case.dtype == torch.float32 else 1e-8 * p.x.shape[-1]
    assert_relative_error(phi, p.grad / case.m, limit)


@given(CASES)
def test_the_v_statistic_is_never_negative(kernels, case):
    p = case.problem()
    value = sk.kernel_stein_discrepancy(p.x, p.grad, bandwidth=p.bandwidth, statistic="v")
    assert (value >= -case.limit * p.grad.square().sum(-1).max()).all()


@pytest.mark.parametrize("statistic", ["u", "v"])
@given(CASES)
def test_discrepancy_is_direction_and_divergence(kernels, statistic, case):
    p = case.problem()
    options = {"bandwidth": p.bandwidth, "leave_one_out": statistic == "u"}
    phi = sk.svgd_direction(p.x, p.grad, **options).double()
    divergence = sk.stein_divergence(p.x, p.grad, **options).double()
    drive = (phi * p.grad).sum(-1)
    value = sk.kernel_stein_discrepancy(p.x, p.grad, bandwidth=p.bandwidth, statistic=statistic)
    scale = (drive.abs() + divergence.abs()).mean(-1) + 1e-30
    assert ((value - (drive + divergence).mean(-1)).abs() / scale).max() <= case.limit
