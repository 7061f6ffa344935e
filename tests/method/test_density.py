"""iw_g and the training bounds against log p(x) that is known exactly."""

from __future__ import annotations

from math import log, pi

import pytest
import torch
from torch import Tensor

from steinvae.config import MethodConfig
from steinvae.density import (
    evenly_spaced,
    fit_gaussian,
    gaussian_log_density,
    iw_g,
    log_mean_exp,
    negative_log_likelihood,
)
from steinvae.networks import Networks
from steinvae.objectives import Batch, iwae, vae
from steinvae.recognition import StochasticEncoder
from tests.method.models import linear_networks

NATS = 0.05


def test_iw_g_counts_the_decoders_as_a_mixture():
    model, networks = linear_networks(3, 1.8)
    pixels = torch.randn(6, 4)
    weights = networks.theta.flat.view(3, 2, 4)
    each = torch.stack([model.log_evidence(weight, pixels) for weight in weights])
    mixture, single = iw_g(networks, pixels, samples=5000, seed=0)
    assert (log_mean_exp(each, 0) - each.mean(0)).max() > NATS  # the two are told apart
    assert (mixture - log_mean_exp(each, 0)).abs().max() < NATS
    assert (single - each.mean(0)).abs().max() < NATS


GRID = torch.linspace(-9, 9, 4001, dtype=torch.float64)


def quadrature(networks: Networks, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x), posterior mean and standard deviation of a 1-D code, each (B,): trapezium rule."""
    codes = GRID[None, None, :, None].expand(1, len(pixels), -1, 1)
    log_joint = networks.model.log_likelihood(networks.theta.leaves(), codes, pixels)[0].detach()
    joint = (log_joint - 0.5 * (GRID.square() + log(2 * pi))).exp()
    evidence = torch.trapezoid(joint, GRID, dim=-1)
    mean = torch.trapezoid(joint * GRID, GRID, dim=-1) / evidence
    square = torch.trapezoid(joint * GRID.square(), GRID, dim=-1) / evidence
    return evidence.log(), mean, (square - mean.square()).sqrt()


class GivenMoments(StochasticEncoder):
    """Draws from N(mean_b, deviation_b^2), whatever the pixels of image b are."""

    codes = 1

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.mean, self.deviation = mean[:, None, None], deviation[:, None, None]

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        return self.mean + self.deviation * noise


@torch.no_grad()
def test_iw_g_of_a_bernoulli_mlp_agrees_with_quadrature(make_networks, pixels):
    networks = make_networks(codes=1)
    networks.theta.flat *= 2  # away from a flat likelihood
    exact, mean, deviation = quadrature(networks, pixels)
    networks.encoder = GivenMoments(mean.float(), 1.5 * deviation.float())
    networks.theta.flat = networks.theta.flat.float()
    mixture, _ = iw_g(networks, pixels.float(), samples=5000, seed=1)
    assert (mixture - exact).abs().max() < NATS


@torch.no_grad()
def test_estimate_does_not_depend_on_how_images_are_grouped(make_networks, pixels):
    networks = make_networks(codes=2)
    networks.encoder, networks.theta.flat = networks.encoder.float(), networks.theta.flat.float()
    together, _ = iw_g(networks, pixels.float(), samples=50, seed=3)
    first, _ = iw_g(networks, pixels[:1].float(), samples=50, seed=3)
    torch.testing.assert_close(together[:1], first)


def test_training_bounds_are_ordered_below_the_evidence(make_networks, pixels):
    """Negative ELBO > negative IWAE bound (50) > exact, on average over noise."""
    networks = make_networks(codes=1, name="vae")
    networks.theta.flat *= 2
    exact = -quadrature(networks, pixels)[0].mean()
    draws, samples = 200, 50
    bounds = torch.zeros(2, dtype=torch.float64)
    for _ in range(draws):
        batch = Batch(pixels, torch.randn(4, samples, 1, dtype=torch.float64))
        method = MethodConfig(code_particles=samples)
        bounds[0] += vae(networks, batch, method, 4).stats["negative_elbo"] / draws
        bounds[1] += iwae(networks, batch, method, 4).stats["negative_bound"] / draws
    assert bounds[0] > bounds[1] + 0.1
    assert bounds[1] > exact + 0.1


def test_baseline_gradient_is_that_of_the_bound_and_the_prior(make_networks, pixels):
    """Finite difference along a random direction in theta, the prior divided by N."""
    networks = make_networks(name="vae")
    batch = Batch(pixels, torch.randn(4, 3, 2, dtype=torch.float64))
    along = torch.randn_like(networks.theta.flat)

    def loss(shift: float) -> float:
        networks.theta.flat += shift * along
        value = vae(networks, batch, MethodConfig(), 7).stats["negative_elbo"]
        value = value + 0.5 * networks.theta.flat.square().sum() / 7
        networks.theta.flat -= shift * along
        return value.item()

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    gradient = vae(networks, batch, MethodConfig(), 7).theta
    assert (gradient * along).sum().item() == pytest.approx(slope, rel=1e-6)


def test_fitted_gaussian_density():
    codes = (
        torch.randn(3, 500, 2, dtype=torch.float64)
        @ torch.tensor([[1.0, 0.5], [0.0, 2.0]]).double()
    )
    mean, scale_tril = fit_gaussian(codes, 1.2)
    noise = torch.randn(3, 10, 2, dtype=torch.float64)
    points = mean[:, None] + noise @ scale_tril.transpose(1, 2)
    exact = torch.distributions.MultivariateNormal(mean[:, None], scale_tril=scale_tril[:, None])
    torch.testing.assert_close(gaussian_log_density(noise, scale_tril), exact.log_prob(points))
    spread = scale_tril @ scale_tril.transpose(1, 2) / 1.2**2
    torch.testing.assert_close(spread[0], codes[0].T.cov(), rtol=1e-5, atol=1e-5)


def test_collapsed_encoder_still_has_a_proper_proposal():
    _, scale_tril = fit_gaussian(torch.zeros(1, 64, 3), 1.2)
    assert (scale_tril.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_log_mean_exp_survives_large_magnitudes():
    values = torch.tensor([-1e4, -1e4 + 1.0, -1e4 - 50.0])
    assert values.double().exp().sum() == 0
    shifted = (values.double() + 1e4).exp().mean().log() - 1e4
    torch.testing.assert_close(log_mean_exp(values, 0), shifted)


@torch.no_grad()
def test_standard_error_is_over_images(make_networks, pixels):
    networks = make_networks(codes=2)
    networks.encoder, networks.theta.flat = networks.encoder.float(), networks.theta.flat.float()
    estimate = negative_log_likelihood(networks, pixels.float(), samples=20, seed=0)
    assert estimate.estimator == "iw_g(20)"
    assert estimate.images == 4
    assert estimate.value == pytest.approx(estimate.per_image.mean().item())
    assert estimate.standard_error == pytest.approx(estimate.per_image.std().item() / 2)


@pytest.mark.parametrize(("count", "wanted"), [(10, 3), (10, 10), (10, 0), (10, 99), (10_000, 500)])
def test_evenly_spaced_indices(count, wanted):
    indices = evenly_spaced(count, wanted)
    assert len(indices) == (min(wanted, count) or count)
    assert len(set(indices.tolist())) == len(indices)
    gaps = indices.diff()
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("proposal", ["fitted", "diagonal"])
@pytest.mark.parametrize("factor", [0.9, 1.0, 1.5])
def test_iw_g_of_a_linear_gaussian_model_is_exact(factor, proposal):
    """Also with an encoder that is too narrow or too wide."""
    model, networks = linear_networks(1, factor)
    pixels = torch.randn(6, 4)
    exact = model.log_evidence(networks.theta.flat[0].view(2, 4), pixels)
    mixture, single = iw_g(networks, pixels, samples=5000, seed=0, proposal=proposal)
    assert (mixture - exact).abs().max() < NATS
    torch.testing.assert_close(mixture, single)


@pytest.mark.parametrize(("count", "wanted"), [(10, 3), (10, 10), (10_000, 500), (7, 1)])
def test_evenly_spaced_indices_reach_to_the_end(count, wanted):
    """A test set sorted by class gives every class its share."""
    indices = evenly_spaced(count, wanted)
    gap = -(-count // wanted)
    assert indices.min() < gap
    assert indices.max() >= count - gap
