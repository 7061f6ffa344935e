"""Both scores against an autograd of the whole log joint, written here a second time."""

from __future__ import annotations

from functools import partial
from itertools import pairwise, permutations

import pytest
import torch
from torch import Tensor

from steinvae.config import MethodConfig
from steinvae.gradients import Batch, encoder_gradients
from steinvae.models.mlp import BernoulliMlp
from steinvae.networks import Networks
from steinvae.objectives import regression_gradients, stein_vae
from steinvae.pairs import deal_codes
from steinvae.stein import posterior_scores, theta_direction

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def log_likelihood(networks: Networks, flat: Tensor, code: Tensor, x: Tensor) -> Tensor:
    """log p(x | z, theta) of one decoder (P,), one code (d,) and one image (X,)."""
    assert isinstance(networks.model, BernoulliMlp)
    widths = networks.model.widths
    start, activation = 0, code
    for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
        weight = flat[start : start + fan_in * fan_out].view(fan_in, fan_out)
        bias = flat[start + weight.numel() : start + weight.numel() + fan_out]
        start += weight.numel() + fan_out
        activation = activation @ weight + bias
        if index < len(widths) - 2:
            activation = activation.tanh()
    probability = activation.sigmoid()
    return (x * probability.log() + (1 - x) * (1 - probability).log()).sum()


def explicit_scores(
    networks: Networks, codes: Tensor, pixels: Tensor, data_size: int
) -> tuple[Tensor, Tensor]:
    """Eqs. 3 and 5 by loops over every pair, the priors once, N/B on the likelihood."""
    images, samples, _ = codes.shape
    decoders = networks.theta.particles
    free, flat = codes.clone().requires_grad_(), networks.theta.flat.clone().requires_grad_()
    pairs = torch.stack(
        [
            torch.stack(
                [
                    log_likelihood(networks, flat[m], free[b, s], pixels[b])
                    for b in range(images)
                    for s in range(samples)
                ]
            )
            for m in range(decoders)
        ]
    )
    to_codes = pairs.sum() / decoders - 0.5 * free.square().sum()
    to_theta = pairs.sum() * data_size / (images * samples) - 0.5 * flat.square().sum()
    (code_score,) = torch.autograd.grad(to_codes, free, retain_graph=True)
    (theta_score,) = torch.autograd.grad(to_theta, flat)
    return code_score, theta_score


@pytest.mark.parametrize("decoders", [1, 3])
def test_full_scores_equal_the_explicit_posterior(make_networks, pixels, decoders):
    networks = make_networks(theta_particles=decoders)
    codes = torch.randn(4, 6, 2, dtype=torch.float64)
    scores = posterior_scores(networks.model, networks.theta, codes, pixels, data_size=40)
    code_score, theta_score = explicit_scores(networks, codes, pixels, data_size=40)
    close(scores.codes, code_score)
    close(scores.theta, theta_score)


def test_prior_counts_once_and_the_likelihood_n_over_b_times(make_networks, pixels):
    networks = make_networks(theta_particles=2)
    codes = torch.randn(4, 3, 2, dtype=torch.float64)

    def theta_score(data_size: int) -> Tensor:
        return posterior_scores(
            networks.model, networks.theta, codes, pixels, data_size=data_size
        ).theta

    prior = 2 * theta_score(4) - theta_score(8)  # the part that does not grow with N
    close(prior, -networks.theta.flat)


def test_minibatch_scores_average_to_the_full_score(make_networks, pixels):
    networks = make_networks(theta_particles=2)
    codes = torch.randn(4, 3, 2, dtype=torch.float64)

    def theta_score(rows: slice) -> Tensor:
        return posterior_scores(
            networks.model, networks.theta, codes[rows], pixels[rows], data_size=4
        ).theta

    halves = (theta_score(slice(0, 2)) + theta_score(slice(2, 4))) / 2
    close(halves, theta_score(slice(0, 4)))


def test_strat_scores_average_to_the_full_scores_over_assignments(make_networks, pixels):
    networks = make_networks(theta_particles=2)
    codes = torch.randn(4, 4, 2, dtype=torch.float64)
    full = posterior_scores(networks.model, networks.theta, codes, pixels, data_size=40)
    orders = list(permutations(range(4)))
    code_score, theta_score = torch.zeros_like(full.codes), torch.zeros_like(full.theta)
    for order in orders:
        scores = posterior_scores(
            networks.model,
            networks.theta,
            codes,
            pixels,
            pairing="strat",
            permutation=torch.tensor(order),
            data_size=40,
        )
        code_score += scores.codes / len(orders)
        theta_score += scores.theta / len(orders)
    close(code_score, full.codes)
    close(theta_score, full.theta)


def test_strat_evaluates_each_code_once(make_networks, pixels):
    networks = make_networks(theta_particles=3)
    codes = torch.randn(4, 6, 2, dtype=torch.float64)
    scores = posterior_scores(
        networks.model, networks.theta, codes, pixels, data_size=4, pairing="strat"
    )
    assert scores.log_likelihood.shape == (3, 4, 2)


def test_strat_with_one_decoder_is_full(make_networks, pixels):
    networks = make_networks(theta_particles=1)
    codes = torch.randn(4, 6, 2, dtype=torch.float64)
    arguments = (networks.model, networks.theta, codes, pixels)
    full = posterior_scores(*arguments, data_size=9, pairing="full")
    strat = posterior_scores(*arguments, data_size=9, pairing="strat")
    close(strat.codes, full.codes)
    close(strat.theta, full.theta)


def test_dealing_an_uneven_number_of_codes_is_refused():
    with pytest.raises(ValueError, match="code_particles must be a multiple of 3, got 4"):
        deal_codes(torch.zeros(2, 4, 1), 3, None)


def test_one_decoder_follows_its_own_score():
    theta, score = torch.randn(1, 30), torch.randn(1, 30)
    direction = theta_direction(theta, score, bandwidth="liu_wang", data_size=50)
    torch.testing.assert_close(direction, score / 50)


def test_theta_direction_is_the_paper_s_average_over_all_decoders():
    theta, score = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    h, expected = 2.5, torch.zeros(3, 4).double()
    for j in range(3):
        for i in range(3):  # i = j included: decoders persist
            apart = theta[j] - theta[i]
            kernel = torch.exp(-apart.square().sum() / h)
            expected[j] += kernel * (score[i] + 2 / h * apart) / 3
    direction = theta_direction(theta, score, bandwidth=h, data_size=10)
    close(direction, expected / 10)


def test_encoder_gradient_descends(make_networks, pixels):
    """Moving the encoder against the gradient moves the codes along the direction."""
    networks = make_networks()
    noise = torch.randn(4, 5, 2, dtype=torch.float64)
    codes = networks.encoder(pixels, noise)
    direction = torch.randn_like(codes)
    gradients = encoder_gradients(networks, codes, direction)
    with torch.no_grad():
        for parameter, gradient in zip(networks.eta(), gradients, strict=True):
            parameter -= 1e-4 * gradient
        moved = networks.encoder(pixels, noise) - codes
    assert (moved * direction).sum() > 0


@pytest.mark.parametrize("beside", [{}, {"normalise_direction": True}, {"mass_rate": 0.3}], ids=str)
def test_first_regression_step_is_the_gradient_of_eq_7(make_networks, pixels, beside):
    networks = make_networks()
    method = MethodConfig(regression_steps=2, code_step=0.3, **beside)
    noise, reference = torch.randn(4, 5, 2).double(), torch.randn(4, 9, 2).double()
    batch = Batch(pixels, noise, reference=reference if method.mass_rate else None)
    gradients = stein_vae(networks, batch, method, data_size=40)
    assert gradients.targets is not None
    codes = networks.encoder(batch.pixels, batch.noise)
    loss = (codes - gradients.targets).square().sum() / (2 * 0.3 * 4 * 5)
    expected = torch.autograd.grad(loss, networks.eta())
    again = regression_gradients(networks, batch, gradients.targets, 0.3)
    for first, second, third in zip(gradients.eta, again, expected, strict=True):
        close(first, third)
        close(second, third)
