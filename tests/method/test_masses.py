"""Masses of modes: weights move noise, and a normalised direction holds light modes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from stein_kernels import median_bandwidth
from steinvae.config import MethodConfig
from steinvae.gradients import Batch
from steinvae.masses import mass_direction
from steinvae.networks import Networks
from steinvae.objectives import stein_vae
from steinvae.particles import Parameter, ParticleEnsemble
from steinvae.recognition import StochasticEncoder, standard_normal
from steinvae.stein import normalised_direction
from steinvae.weights import local_log_density, local_width

FAR = 14.0


class TwoModes(StochasticEncoder):
    """z_0 = +-7 + xi_0 on either side of xi_0 = border, z_1 = xi_1: the first mode is the upper."""

    codes = 2

    def __init__(self, border: float) -> None:
        super().__init__()
        self.border = nn.Parameter(torch.tensor(border))

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        side = torch.where(noise[..., :1] > self.border, FAR / 2, -FAR / 2)
        codes = torch.cat([noise[..., :1] + side, noise[..., 1:]], -1)
        return codes.expand(len(pixels), -1, -1)


def mass(codes: Tensor) -> Tensor:
    return (codes[..., 0] > 0).double().mean(-1)


def log_mixture(codes: Tensor, share: float) -> Tensor:
    """log of share N((7, 0), I) + (1 - share) N((-7, 0), I), up to a constant."""
    centre = codes.new_tensor([FAR / 2, 0.0])
    first, second = (-0.5 * (codes - c).square().sum(-1) for c in (centre, -centre))
    weights = codes.new_tensor([share, 1 - share]).log()
    return torch.logaddexp(first + weights[0], second + weights[1])


class Mixture:
    """share N((7, 0), I) + (1 - share) N((-7, 0), I) as the joint of every image."""

    def __init__(self, share: float) -> None:
        self.share = share

    def log_likelihood(self, theta: dict[str, Tensor], codes: Tensor, pixels: Tensor) -> Tensor:
        return log_mixture(codes, self.share) - standard_normal(codes)


def networks_of(encoder: StochasticEncoder, share: float) -> Networks:
    theta = ParticleEnsemble((Parameter("none", (1,), 0.0),), 1, torch.Generator())
    return Networks(Mixture(share), theta, encoder)  # type: ignore[arg-type]


def test_noise_flows_by_the_formula():
    """v(y) by loops, for an encoder that returns the noise, which is one set for both images."""

    class Identity(StochasticEncoder):
        codes = 2

        def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
            return noise.expand(len(pixels), -1, -1)

    noise, reference = torch.randn(2, 3, 2).double(), torch.randn(1, 6, 2).double()
    got = mass_direction(networks_of(Identity(), 0.3), torch.zeros(2, 1), noise, noise, reference)
    h = median_bandwidth(reference[0])
    weights = (log_mixture(reference, 0.3) - local_log_density(reference)).softmax(-1)[0]
    expected = torch.zeros_like(noise)
    for b in range(2):
        for j in range(3):
            for xi, w in zip(reference[0], weights, strict=True):
                apart = noise[b, j] - xi
                kernel = torch.exp(-apart.square().sum() / h)
                expected[b, j] += (1 / 6 - w) * kernel * (2 / h * apart - xi)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_local_density_is_the_mixture_around_the_codes():
    codes = torch.randn(2, 9, 3).double()
    ordered = torch.cdist(codes, codes).sort(-1).values
    b = 2 * ordered[:, :, 2].median(-1).values  # rank 3, a code itself the first
    torch.testing.assert_close(2 * local_width(codes), b, rtol=1e-12, atol=0)
    for image in range(2):
        parts = torch.distributions.MultivariateNormal(codes[image], b[image] ** 2 * torch.eye(3))
        expected = parts.log_prob(codes[image][:, None]).logsumexp(-1) - torch.tensor(9.0).log()
        torch.testing.assert_close(local_log_density(codes)[image], expected, check_dtype=False)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_masses_move_towards_the_targets(share):
    """Half of the codes are in each mode; those next to the border go where mass is short.

    Within five standard errors of 400 sets of 50 codes nothing moves where the masses are right.
    """
    encoder, pixels = TwoModes(0.0), torch.zeros(400, 1)
    noise, reference = torch.randn(2, 400, 50, 2)

    def change(share: float) -> Tensor:
        codes = encoder(pixels, noise)
        moved = mass_direction(networks_of(encoder, share), pixels, noise, codes, reference)
        return mass(codes + moved) - mass(codes)

    def error(change: Tensor) -> Tensor:
        return change.std() / len(change) ** 0.5

    moved, level = change(share), change(0.5)
    assert moved.mean() * (share - 0.5) > 0
    assert moved.mean().abs() > 10 * error(moved)
    assert level.mean().abs() < 5 * error(level)


def test_normalised_direction_is_as_long_as_a_score_in_every_mode():
    """Two codes far from forty: their kernel sums differ twentyfold, normalised they do not."""
    around = torch.randn(1, 2, 2).double() * 0.1
    codes = torch.cat([around.repeat(1, 20, 1), around + 50], 1)
    score = torch.ones_like(codes)
    kernel = torch.exp(-torch.cdist(codes, codes).square() / 3.0).mean(-1, keepdim=True)
    got = normalised_direction(kernel * score, codes, 3.0)
    torch.testing.assert_close(got, score, rtol=1e-9, atol=0)


def test_masses_move_at_temperature_one_alone(make_networks, pixels):
    method = MethodConfig(theta_particles=1, code_particles=6, importance_samples=1, mass_rate=0.3)
    networks, noise = make_networks(), torch.randn(4, 6, 2).double()

    def gradient(temperature: float, reference: Tensor | None, **changes) -> Tensor:
        batch = Batch(pixels, noise, temperature=temperature, reference=reference)
        eta = stein_vae(networks, batch, replace(method, **changes), 100).eta
        return torch.cat([each.flatten() for each in eta])

    reference = torch.randn(4, 20, 2).double()
    torch.testing.assert_close(gradient(2.0, reference), gradient(2.0, None), rtol=0, atol=0)
    once = gradient(1.0, reference) - gradient(1.0, None)
    assert once.norm() > 1e-6
    twice = gradient(1.0, reference, mass_rate=0.6) - gradient(1.0, None)
    torch.testing.assert_close(twice, 2 * once, rtol=1e-9, atol=1e-12)
    normalised = gradient(2.0, None, normalise_direction=True)
    assert normalised.norm() > gradient(2.0, None).norm()  # k <= 1
