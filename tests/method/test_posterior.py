"""Algorithm 1 on a model whose posterior is known: the encoder must find it."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from steinvae.config import MethodConfig
from steinvae.objectives import Batch, stein_vae
from tests.method.models import CODES, PIXELS, LinearEncoder, linear_networks


def learned_covariance(
    self_term: Literal["leave_one_out", "include"],
) -> tuple[Tensor, Tensor]:
    """Encoder's and exact posterior covariance after 800 steps on 16 images of 50 codes."""
    model, networks = linear_networks(decoders=1, factor=1.0)
    weight = networks.theta.flat[0].view(CODES, PIXELS)
    to_mean, exact = model.posterior(weight)
    encoder = networks.encoder
    assert isinstance(encoder, LinearEncoder)
    with torch.no_grad():  # start far away
        encoder.scale.copy_(0.6 * torch.eye(CODES))
        encoder.to_mean.zero_()
    generator = torch.Generator().manual_seed(2)
    adam = torch.optim.Adam(networks.eta(), lr=2e-2)
    method = MethodConfig(code_particles=50, self_term=self_term)
    for step in range(800):
        codes = torch.randn(16, CODES, generator=generator)
        pixels = codes @ weight + 0.5 * torch.randn(16, PIXELS, generator=generator)
        batch = Batch(pixels, torch.randn(16, 50, CODES, generator=generator))
        gradients = stein_vae(networks, batch, method, 16)
        for parameter, gradient in zip(networks.eta(), gradients.eta, strict=True):
            parameter.grad = gradient
        adam.param_groups[0]["lr"] = 2e-2 * (1 - step / 800)
        adam.step()
    torch.testing.assert_close(encoder.to_mean.detach(), to_mean, rtol=0.1, atol=0.05)
    return (encoder.scale @ encoder.scale.T).detach(), exact


def test_codes_have_the_posterior_covariance():
    learned, exact = learned_covariance("leave_one_out")
    assert (learned - exact).norm() < 0.05 * exact.norm()


def test_with_the_self_term_they_do_not():
    """Two dimensions and 50 codes: the law of test_sampler.py says 0.76 of the variance."""
    learned, exact = learned_covariance("include")
    assert learned.trace() == pytest.approx(0.76 * exact.trace().item(), rel=0.1)
