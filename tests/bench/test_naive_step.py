"""The rival of the training step computes the same update."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench import naive_step
from steinvae.config import Config, MethodConfig, ModelConfig
from steinvae.gradients import Batch
from steinvae.networks import build_networks
from steinvae.objectives import OBJECTIVES

# float64, sums of fewer than 1e3 terms of order one
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("decoders", [1, 3])
@pytest.mark.parametrize("name", ["stein_vae", "stein_viwae"])
@pytest.mark.parametrize("pairing", ["strat", "full"])
def test_naive_gradients_are_ours(name, decoders, pairing):
    """6 codes have 15 pairs and 3 decoders 3: for odd counts torch.median is the median."""
    group = 2 if name == "stein_viwae" else 1
    method = MethodConfig(
        name=name,
        code_particles=6 // group,
        importance_samples=group,
        theta_particles=decoders,
        pairing=pairing,
    )
    networks = build_networks(
        Config(model=ModelConfig(codes=2, hidden=(5,)), method=method), 7, "cpu"
    )
    networks.theta.flat, networks.encoder = networks.theta.flat.double(), networks.encoder.double()
    pixels = (torch.rand(4, 7) < 0.5).double()
    batch = Batch(pixels, torch.randn(4, 6, 2).double())
    ours = OBJECTIVES[name](networks, batch, method, 40)
    theta, eta = naive_step.gradients(networks, batch, method, 40)
    close(theta, ours.theta)
    for first, second in zip(eta, ours.eta, strict=True):
        close(first, second)
