"""Stein VIWAE: weights where they belong, against formulas written out pair by pair."""

from __future__ import annotations

from functools import partial
from itertools import permutations

import pytest
import torch
from torch import Tensor

from steinvae.config import MethodConfig
from steinvae.gradients import Batch, encoder_gradients
from steinvae.networks import Networks
from steinvae.objectives import stein_vae, stein_viwae
from steinvae.pairs import Pairing
from steinvae.stein import Scores, code_direction, posterior_scores
from steinvae.weights import log_prior_over_q
from tests.method.test_scores import explicit_scores, log_likelihood

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)
KINDS = ("theta", "z", "both", "paper", "none")
H = 1.3


def pair_table(networks: Networks, flat: Tensor, codes: Tensor, pixels: Tensor) -> Tensor:
    """log p(x_b | z_bs, theta_m) of every pair, one at a time: (M, B, S)."""
    rows = [
        [
            [log_likelihood(networks, theta, z, x) for z in row]
            for row, x in zip(codes, pixels, strict=True)
        ]
        for theta in flat
    ]
    return torch.stack([torch.stack([torch.stack(line) for line in table]) for table in rows])


def direction(codes: Tensor, score: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_ij k_ij [g_i + c (y_j - x_i)] of one set by loops; weights (source, target)."""
    count = len(codes)
    out = torch.zeros_like(codes)
    for j in range(count):
        for i in range(count):
            apart = codes[j] - codes[i]
            kernel = torch.exp(-apart.square().sum() / H)
            out[j] += weights[i, j] * kernel * (score[i] + 2 / H * apart)
    return out


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("log_q", ["gauss", "jac", "kde"])
@pytest.mark.parametrize("pairing", ["full", "strat"])
def test_groups_of_one_are_stein_vae_bit_for_bit(make_networks, pixels, weights, log_q, pairing):
    shared = {"code_particles": 6, "theta_particles": 3, "pairing": pairing}
    one = MethodConfig(
        name="stein_viwae", importance_samples=1, weights=weights, log_q=log_q, **shared
    )  # type: ignore[arg-type]
    plain = MethodConfig(**shared)  # type: ignore[arg-type]
    noise = torch.randn(4, 6, 2).double()
    batch = Batch(pixels, noise, torch.randperm(6), monitor=True)
    networks = make_networks(**shared)
    first, second = stein_viwae(networks, batch, one, 40), stein_vae(networks, batch, plain, 40)
    assert torch.equal(first.theta, second.theta)
    assert all(torch.equal(a, b) for a, b in zip(first.eta, second.eta, strict=True))
    assert first.stats == second.stats


@pytest.mark.parametrize("decoders", [1, 3])
def test_weighted_decoder_score_is_that_of_the_importance_weighted_bound(
    make_networks, pixels, decoders
):
    """sum_i softmax_i(log w) grad log p = grad logsumexp_i(log w); the codes are unweighted."""
    networks = make_networks(theta_particles=decoders)
    codes, ratio = torch.randn(4, 6, 2).double(), torch.randn(4, 6).double()
    scores = posterior_scores(
        *(networks.model, networks.theta, codes, pixels),
        data_size=40,
        pairing=Pairing("full", group=3),
        log_ratio=ratio,
    )
    flat = networks.theta.flat.clone().requires_grad_()
    log_weights = pair_table(networks, flat, codes, pixels) + ratio
    bound = log_weights.unflatten(-1, (2, 3)).logsumexp(-1).mean(-1)  # over groups
    objective = 40 / 4 * bound.sum() - 0.5 * flat.square().sum()
    (expected,) = torch.autograd.grad(objective, flat)
    close(scores.theta, expected)
    close(scores.codes, explicit_scores(networks, codes, pixels, 40)[0])
    assert scores.weights is not None
    close(scores.weights.unflatten(-1, (2, 3)).sum(-1), torch.ones(decoders, 4, 2).double())


def test_code_without_weight_still_has_its_score(make_networks, pixels):
    """A weight of e^-400 is zero in every arithmetic; the code's own score must not suffer."""
    networks = make_networks()
    codes = torch.randn(4, 3, 2).double()
    ratio = torch.tensor([0.0, -400.0, 0.0]).double().expand(4, 3)
    arguments = (networks.model, networks.theta, codes, pixels)
    weighted = posterior_scores(
        *arguments, data_size=40, pairing=Pairing("full", group=3), log_ratio=ratio
    )
    close(weighted.codes, posterior_scores(*arguments, data_size=40).codes)
    assert weighted.weights is not None
    assert weighted.weights[..., 1].max() < 1e-100


def test_weights_in_float32_lose_no_score(make_networks, pixels):
    networks = make_networks(theta_particles=2)
    codes, ratio = torch.randn(4, 6, 2).double(), 30 * torch.randn(4, 6).double()
    pairing = Pairing("full", group=3)
    arguments = {"data_size": 40, "pairing": pairing}
    exact = posterior_scores(
        networks.model, networks.theta, codes, pixels, log_ratio=ratio, **arguments
    )
    networks.theta.flat = networks.theta.flat.float()
    single = posterior_scores(
        *(networks.model, networks.theta, codes.float(), pixels.float()),
        log_ratio=ratio.float(),
        **arguments,
    )
    torch.testing.assert_close(single.codes.double(), exact.codes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(single.theta.double(), exact.theta, rtol=1e-4, atol=1e-3)


def test_dealt_groups_average_to_all_pairs(make_networks, pixels):
    """`strat` keeps a group together, so weighted scores stay unbiased over assignments."""
    networks = make_networks(theta_particles=2)
    codes, ratio = torch.randn(4, 8, 2).double(), torch.randn(4, 8).double()

    def scores(pairing: Pairing) -> Scores:
        return posterior_scores(
            *(networks.model, networks.theta, codes, pixels),
            data_size=40,
            pairing=pairing,
            log_ratio=ratio,
        )

    full = scores(Pairing("full", group=2))
    orders = [torch.tensor(order) for order in permutations(range(4))]
    dealt = [scores(Pairing("strat", 2, order)) for order in orders]
    close(torch.stack([item.codes for item in dealt]).mean(0), full.codes)
    close(torch.stack([item.theta for item in dealt]).mean(0), full.theta)
    assert dealt[0].log_likelihood.shape == (2, 4, 4)


@pytest.mark.parametrize("ratio", [None, torch.linspace(-2, 1, 24).view(4, 6).double()])
def test_decoding_image_by_image_changes_nothing(make_networks, pixels, monkeypatch, ratio):
    networks = make_networks(theta_particles=2)
    codes = torch.randn(4, 6, 2).double()

    def scores() -> Scores:
        return posterior_scores(
            *(networks.model, networks.theta, codes, pixels),
            data_size=40,
            pairing=Pairing("full", group=3),
            log_ratio=ratio,
        )

    whole = scores()
    monkeypatch.setattr("steinvae.pairs.PAIRS_AT_ONCE", 1)
    for first, second in zip(scores(), whole, strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            close(first, second)


@pytest.mark.parametrize(("groups", "group"), [(1, 4), (2, 3), (3, 1)])
@pytest.mark.parametrize("left_out", [True, False])
def test_weighted_code_direction_is_eq_13(groups, group, left_out):
    """Leaving out the own group and dividing by groups - 1, or the own code of a single group."""
    count = groups * group
    codes, score = torch.randn(2, count, 3).double(), torch.randn(2, count, 3).double()
    weights = torch.randn(2, groups, group).double().softmax(-1).flatten(1)
    measured = code_direction(
        codes, score, bandwidth=H, leave_one_out=left_out, weights=weights, group=group
    )
    for b in range(2):
        source = (weights[b] / groups)[:, None].repeat(1, count)
        for j in range(count):
            own = (
                range(j, j + 1)
                if groups == 1
                else range(j // group * group, (j // group + 1) * group)
            )
            if left_out:
                source[list(own), j] = 0
                source[:, j] /= source[:, j].sum()
        close(measured[b], direction(codes[b], score[b], source))


def prepare(
    make_networks, pixels, **settings
) -> tuple[Networks, Batch, MethodConfig, Tensor, Tensor]:
    """Networks, a batch, its method, the codes and log p(z) - log q(z | x)."""
    method = MethodConfig(name="stein_viwae", bandwidth=H, theta_bandwidth=40.0, **settings)
    networks = make_networks(name="stein_viwae", **settings)
    batch = Batch(pixels, torch.randn(4, method.codes_per_image, 2).double())
    codes = networks.encoder(pixels, batch.noise).detach()
    ratio = log_prior_over_q(
        networks.encoder, codes, pixels, batch.noise, estimator=method.log_q, bandwidth=H
    )
    return networks, batch, method, codes, ratio


@pytest.mark.parametrize("weights", ["z", "both"])
@pytest.mark.parametrize("log_q", ["gauss", "jac", "kde"])
def test_code_weights_average_densities_over_decoders(make_networks, pixels, weights, log_q):
    networks, batch, method, codes, ratio = prepare(
        make_networks,
        pixels,
        weights=weights,
        log_q=log_q,
        code_particles=2,
        importance_samples=3,
        theta_particles=2,
    )
    gradients = stein_viwae(networks, batch, method, 40)
    table = pair_table(networks, networks.theta.flat, codes, pixels)
    omega = (table + ratio).exp().mean(0).unflatten(1, (2, 3))
    normal = (omega / omega.sum(-1, keepdim=True)).flatten(1)
    score, _ = explicit_scores(networks, codes, pixels, 40)
    to_codes = torch.zeros_like(codes)
    for b in range(4):
        source = normal[b][:, None].repeat(1, 6)
        for j in range(6):
            own = slice(j // 3 * 3, j // 3 * 3 + 3)
            source[own, j] = 0  # the other group's weights sum to 1
        to_codes[b] = direction(codes[b], score[b], source)
    expected = encoder_gradients(networks, networks.encoder(pixels, batch.noise), to_codes)
    for first, second in zip(gradients.eta, expected, strict=True):
        close(first, second)
    size = normal.unflatten(1, (2, 3)).square().sum(-1).reciprocal().mean()
    close(gradients.stats["effective_samples"], size)
    unweighted = stein_viwae(
        networks,
        batch,
        MethodConfig(
            name="stein_viwae",
            bandwidth=H,
            theta_bandwidth=40.0,
            weights="none",
            code_particles=2,
            importance_samples=3,
            theta_particles=2,
        ),
        40,
    )
    same = torch.equal(gradients.theta, unweighted.theta)
    assert same == (weights == "z")  # `both` weights the decoders' score too


def test_literal_weights_are_eqs_12_and_13(make_networks, pixels):
    """Two tuples of three decoders and codes; member i of a tuple meets only members i."""
    tuples, k = 2, 3
    networks, batch, method, codes, ratio = prepare(
        make_networks,
        pixels,
        weights="paper",
        self_term="include",
        code_particles=tuples,
        importance_samples=k,
        theta_particles=tuples,
    )
    assert networks.theta.particles == tuples * k
    gradients = stein_viwae(networks, batch, method, 40)
    free, flat = codes.clone().requires_grad_(), networks.theta.flat.clone().requires_grad_()
    table = pair_table(networks, flat, free, pixels)
    seen = [[a % k == s % k for s in range(tuples * k)] for a in range(tuples * k)]
    mask = torch.tensor(seen)[:, None, :].double()
    (code_score,) = torch.autograd.grad((table * mask).sum() / tuples, free, retain_graph=True)
    (theta_score,) = torch.autograd.grad((table * mask).sum() * 40 / (4 * tuples), flat)
    omega = ((table + ratio).exp() * mask).detach()
    per_image = torch.stack([omega[i::k, :, i::k].sum((0, 2)) for i in range(k)], dim=1)  # (B, k)
    per_code = per_image / per_image.sum(1, keepdim=True)
    to_codes = torch.stack(
        [
            direction(
                codes[b],
                code_score[b] - codes[b],
                (per_code[b].repeat(tuples) / tuples)[:, None].repeat(1, 6),
            )
            for b in range(4)
        ]
    )
    expected = encoder_gradients(networks, networks.encoder(pixels, batch.noise), to_codes)
    for first, second in zip(gradients.eta, expected, strict=True):
        close(first, second)
    of_theta = (per_image.sum(0) / per_image.sum()).repeat(tuples) / tuples
    particles, to_theta = networks.theta.flat, torch.zeros_like(networks.theta.flat)
    for j in range(tuples * k):
        for i in range(tuples * k):
            apart = particles[j] - particles[i]
            kernel = torch.exp(-apart.square().sum() / 40.0)
            pull = theta_score[i] - particles[i] + 2 / 40.0 * apart
            to_theta[j] += of_theta[i] * kernel * pull / 40
    close(gradients.theta, -to_theta)
    assert 1 <= gradients.stats["effective_decoders"] <= k


def test_literal_pairs_may_be_dealt(make_networks, pixels):
    """`strat` within a slice: decoder (j, i) sees one code of slice i; on average that is full."""
    settings = {
        "weights": "none",
        "code_particles": 2,
        "importance_samples": 3,
        "theta_particles": 2,
    }
    networks, _, _, codes, _ = prepare(make_networks, pixels, **settings)
    theta = type(networks.theta)(networks.theta.parameters, 6, torch.Generator())
    theta.flat = theta.flat.double()

    def scores(pairing: Pairing) -> Scores:
        return posterior_scores(networks.model, theta, codes, pixels, data_size=40, pairing=pairing)

    full = scores(Pairing("full", 3, sliced=True))
    dealt = [
        scores(Pairing("strat", 3, torch.tensor(order), sliced=True)) for order in ((0, 1), (1, 0))
    ]
    assert full.log_likelihood.shape == (6, 4, 2)
    assert dealt[0].log_likelihood.shape == (6, 4, 1)
    close((dealt[0].codes + dealt[1].codes) / 2, full.codes)
    close((dealt[0].theta + dealt[1].theta) / 2, full.theta)


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("self_term", ["leave_one_out", "include"])
@pytest.mark.parametrize("pairing", ["full", "strat"])
def test_every_combination_gives_finite_gradients(
    make_networks, pixels, weights, self_term, pairing
):
    settings = {"code_particles": 4, "importance_samples": 3, "theta_particles": 2}
    settings |= {"weights": weights, "self_term": self_term, "pairing": pairing}
    networks, batch, method, _, _ = prepare(make_networks, pixels, **settings)
    batch = batch._replace(permutation=torch.randperm(4), monitor=True)
    gradients = stein_viwae(networks, batch, method, 40)
    assert gradients.theta.isfinite().all()
    assert all(item.isfinite().all() for item in gradients.eta)
    if weights != "none":
        assert 1 <= gradients.stats["effective_samples"] <= 3 + 1e-9
