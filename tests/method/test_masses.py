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
from steinvae.objectives import stein_vae
from steinvae.recognition import StochasticEncoder
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


def test_noise_flows_by_the_formula():
    """v(y) by loops, for an encoder that returns the noise: leave-one-out, weights renormalised."""

    class Identity(StochasticEncoder):
        codes = 2

        def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
            return noise

    noise, log_joint = torch.randn(2, 6, 2).double(), torch.randn(2, 6).double()
    got = mass_direction(Identity(), torch.zeros(2, 1), noise, noise, log_joint)
    h = median_bandwidth(noise)
    weights = (log_joint - local_log_density(noise)).softmax(-1)
    expected = torch.zeros_like(noise)
    for b in range(2):
        for j in range(6):
            for i in {*range(6)} - {j}:
                apart = noise[b, j] - noise[b, i]
                pull = torch.exp(-apart.square().sum() / h[b]) * (2 / h[b] * apart - noise[b, i])
                expected[b, j] += (1 / 5 - weights[b, i] / (1 - weights[b, j])) * pull
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
    encoder, noise, pixels = TwoModes(0.0), torch.randn(400, 50, 2), torch.zeros(400, 1)
    codes = encoder(pixels, noise)
    moved = codes + mass_direction(encoder, pixels, noise, codes, log_mixture(codes, share))
    change = mass(moved) - mass(codes)
    error = change.std() / len(change) ** 0.5
    assert change.mean() * (share - 0.5) > 0
    assert change.mean().abs() > 10 * error
    level = codes + mass_direction(encoder, pixels, noise, codes, log_mixture(codes, 0.5))
    change = mass(level) - mass(codes)
    assert change.mean().abs() < 5 * change.std() / len(change) ** 0.5


def test_normalised_direction_is_as_long_as_a_score_in_every_mode():
    """Two codes far from forty: their kernel sums differ twentyfold, normalised they do not."""
    around = torch.randn(1, 2, 2).double() * 0.1
    codes = torch.cat([around.repeat(1, 20, 1), around + 50], 1)
    score = torch.ones_like(codes)
    kernel = torch.exp(-torch.cdist(codes, codes).square() / 3.0).mean(-1, keepdim=True)
    got = normalised_direction(kernel * score, codes, 3.0)
    torch.testing.assert_close(got, score, rtol=1e-9, atol=0)


def test_masses_move_at_temperature_one_alone_and_not_at_rate_zero(make_networks, pixels):
    method = MethodConfig(theta_particles=1, code_particles=6, importance_samples=1)
    moving = replace(method, mass_rate=0.3)
    networks, noise = make_networks(), torch.randn(4, 6, 2).double()

    def gradient(method: MethodConfig, temperature: float, shared: bool = False) -> Tensor:
        batch = Batch(pixels, noise[:1] if shared else noise, temperature=temperature)
        eta = stein_vae(networks, batch, method, 100).eta
        return torch.cat([each.flatten() for each in eta])

    torch.testing.assert_close(gradient(moving, 2.0), gradient(method, 2.0), rtol=0, atol=0)
    assert (gradient(moving, 1.0) - gradient(method, 1.0)).norm() > 1e-6
    assert (gradient(moving, 1.0, shared=True) - gradient(method, 1.0, shared=True)).norm() > 1e-6
    normalised = replace(method, normalise_direction=True)
    assert gradient(normalised, 2.0).norm() > gradient(method, 2.0).norm()  # k <= 1
