"""ELBO and S-ELBO against exact values, and the alarm for encoders that fold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steinvae.density.elbo import EncoderBounds, encoder_bounds, log_density, minority_of_signs
from steinvae.density.importance import iw_g
from steinvae.density.likelihood import image_noise, log_mean_exp
from steinvae.density.units import active_units, unit_activity
from steinvae.networks import Networks
from steinvae.particles import ParticleEnsemble
from steinvae.recognition import StochasticEncoder, make_encoder
from steinvae.recognition.residual import ResidualEncoder
from tests.method.models import CODES, PIXELS, LinearEncoder, LinearGaussian, linear_networks

NATS = 0.05
MODEL = LinearGaussian()


class KnownEncoder(LinearEncoder):
    """The linear encoder, declared to be what it is."""

    injective = True


def known_networks(decoders: int, factor: float) -> Networks:
    _, networks = linear_networks(decoders, factor)
    given = networks.encoder
    assert isinstance(given, LinearEncoder)
    networks.encoder = KnownEncoder(given.to_mean.data, given.scale.data)
    return networks


def weights(networks: Networks) -> Tensor:
    return networks.theta.flat.view(-1, CODES, PIXELS)


def exact(networks: Networks, pixels: Tensor) -> Tensor:
    each = [MODEL.log_evidence(weight, pixels) for weight in weights(networks)]
    return log_mean_exp(torch.stack(each), 0)


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_s_elbo_of_a_linear_gaussian_model_is_exact(factor):
    """And the ELBO is below by KL(q, posterior) = d (factor^2 - 1) / 2 - d log factor."""
    networks, pixels = known_networks(1, factor), torch.randn(6, PIXELS)
    bounds = encoder_bounds(networks, pixels, seed=0)
    apart = CODES * ((factor**2 - 1) / 2 - torch.tensor(factor).log())
    truth = exact(networks, pixels)
    assert (bounds.s_elbo["mixture"] - truth).abs().max() < NATS
    assert (bounds.elbo["mixture"] + apart - truth).abs().max() < NATS
    assert bounds.minority == 0
    assert not bounds.flagged
    assert (bounds.effective > (0.99 if factor == 1 else 0.3) * bounds.samples).all()


def test_treatments_of_the_decoders_are_ordered():
    networks, pixels = known_networks(3, 1.8), torch.randn(6, PIXELS)
    bounds = encoder_bounds(networks, pixels, seed=0)
    assert (bounds.s_elbo["mixture"] - exact(networks, pixels)).abs().max() < NATS
    assert (bounds.s_elbo["average"] < bounds.s_elbo["mixture"] - NATS).all()
    assert (bounds.elbo["average"] < bounds.elbo["mixture"] - NATS).all()


class Fold(StochasticEncoder):
    """z = mean + (|xi_1|, xi_2): every code has two pre-images, as often one sign as the other."""

    codes = CODES

    def __init__(self, to_mean: Tensor, width: float) -> None:
        super().__init__()
        self.to_mean, self.width = to_mean, width

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        folded = torch.cat([noise[..., :1].abs(), noise[..., 1:]], dim=-1)
        return (pixels @ self.to_mean - self.width)[:, None] + 2 * self.width * folded


def test_folding_encoder_is_flagged_and_bounds_nothing():
    """Codes cover most of the posterior twice: S-ELBO lands log 2 above log p(x)."""
    networks = known_networks(1, 1.0)
    to_mean, covariance = MODEL.posterior(weights(networks)[0])
    networks.encoder = Fold(to_mean, 3 * covariance.diagonal().max().sqrt().item())
    pixels = torch.randn(6, PIXELS)
    bounds = encoder_bounds(networks, pixels, samples=20_000, seed=0)
    excess = bounds.s_elbo["mixture"] - exact(networks, pixels)
    assert (excess - torch.tensor(2.0).log()).abs().max() < 0.1
    assert bounds.flagged
    assert not bounds.injective
    assert bounds.minority == pytest.approx(0.5, abs=0.02)
    assert bounds.determinants == 6 * 20_000


@pytest.mark.parametrize("kind", ["gaussian", "flow", "residual", "concat"])
def test_density_is_that_of_the_jacobian_of_the_public_forward(kind):
    """By torch.func through `forward` alone, one code at a time."""
    encoder = make_encoder(kind, 6, (9, 7), 3, torch.Generator().manual_seed(1)).double()
    pixels, noise = torch.rand(2, 6).double(), torch.randn(2, 80, 3).double()
    codes, log_q, signs = log_density(encoder, pixels, noise)

    def one(x: Tensor, xi: Tensor) -> Tensor:
        return encoder(x[None], xi[None, None])[0, 0]

    jacobian = torch.func.vmap(torch.func.jacrev(one, argnums=1), in_dims=(None, 0))
    for image in range(2):
        sign, log_det = torch.linalg.slogdet(jacobian(pixels[image], noise[image]))
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(noise[image]).sum(-1)
        torch.testing.assert_close(log_q[image], normal - log_det)
        known = ~signs[image].isnan()
        assert int(known.sum()) == (64 if encoder.injective else 80)
        torch.testing.assert_close(signs[image][known], sign[known])
    torch.testing.assert_close(codes, encoder(pixels, noise))


def test_minority_counts_the_rarer_sign_and_zero():
    assert minority_of_signs(torch.tensor([1.0, 1.0, 1.0, -1.0])) == 0.25
    assert minority_of_signs(torch.tensor([-1.0, -1.0, torch.nan])) == 0
    assert minority_of_signs(torch.tensor([-1.0, 0.0])) == 0.5


def bounds_of(minority: float) -> EncoderBounds:
    empty = torch.zeros(1)
    return EncoderBounds(
        elbo={"mixture": empty},
        s_elbo={"mixture": empty},
        effective=empty,
        samples=1,
        minority=minority,
        determinants=1,
        injective=False,
    )


def test_flag_is_raised_above_one_percent():
    assert not bounds_of(0.01).flagged
    assert bounds_of(0.011).flagged


class WiderNoise(LinearEncoder):
    """Three noise dimensions, two codes."""

    noise_dimension = 3


def test_density_is_refused_where_noise_and_codes_differ_in_dimension():
    networks = known_networks(1, 1.0)
    networks.encoder = WiderNoise(torch.zeros(PIXELS, CODES), torch.zeros(CODES, 3))
    with pytest.raises(ValueError, match="WiderNoise maps 3 noise dimensions to 2 codes"):
        encoder_bounds(networks, torch.zeros(1, PIXELS), samples=3, seed=0)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        encoder_bounds(networks, torch.zeros(1, PIXELS), samples=0, seed=0)


def test_iw_g_asks_nothing_of_the_dimension_of_the_noise():
    """The same posterior from three noise dimensions as from two."""
    networks, pixels = known_networks(1, 1.0), torch.randn(6, PIXELS)
    given = networks.encoder
    assert isinstance(given, LinearEncoder)
    scale = torch.cat([given.scale.data, torch.zeros(CODES, 1)], dim=1)
    networks.encoder = WiderNoise(given.to_mean.data, scale)
    mixture, _ = iw_g(networks, pixels, samples=5000, seed=0)
    assert (mixture - exact(networks, pixels)).abs().max() < NATS


def test_image_has_its_own_noise():
    networks, pixels = known_networks(2, 1.3), torch.randn(3, PIXELS)
    whole = encoder_bounds(networks, pixels, samples=10, seed=2).s_elbo["mixture"]
    first = encoder_bounds(networks, pixels[:1], samples=10, seed=2).s_elbo["mixture"]
    torch.testing.assert_close(first, whole[:1])
    other = encoder_bounds(networks, pixels, samples=10, seed=3).s_elbo["mixture"]
    assert (other != whole).all()


def test_idle_unit_is_not_active_though_its_samples_vary():
    """Unit 0 follows the image with variance 0.04, unit 1 is the prior whatever the image."""
    theta = ParticleEnsemble(MODEL.parameters, 1, torch.Generator().manual_seed(0))
    to_mean = torch.zeros(PIXELS, CODES)
    to_mean[0, 0] = 0.2
    networks = Networks(MODEL, theta, LinearEncoder(to_mean, torch.eye(CODES)))
    activity = unit_activity(networks, torch.randn(2_000, PIXELS), samples=64, seed=0)
    assert activity[0].item() == pytest.approx(0.04, abs=0.006)
    assert abs(activity[1]) < 0.002
    assert active_units(activity) == 1
    with pytest.raises(ValueError, match="needs 2 images"):
        unit_activity(networks, torch.randn(1, PIXELS), seed=0)


@torch.no_grad()
def test_minority_is_the_mean_over_images():
    """Of an encoder that folds, for some images more than for others."""
    _, networks = linear_networks(1, 1.0)
    encoder = make_encoder("residual", PIXELS, (5,), CODES, torch.Generator().manual_seed(0))
    assert isinstance(encoder, ResidualEncoder)
    encoder.residual.rest.last.weight.mul_(40)  # type: ignore[operator, union-attr]
    networks.encoder, pixels = encoder, 2 * torch.randn(6, PIXELS)
    found = encoder_bounds(networks, pixels, samples=50, seed=3)
    noise = image_noise(3, range(6), (50, CODES), "cpu", "elbo")
    positive = (torch.linalg.det(encoder.jacobian(pixels, noise)) > 0).double().mean(1)
    shares = torch.minimum(positive, 1 - positive)
    assert shares.min() + 0.05 < shares.max()
    assert found.minority == pytest.approx(shares.mean().item())
