"""Small models whose exact answers are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from steinvae.config import Config, MethodConfig, ModelConfig
from steinvae.networks import Networks, build_networks

PIXELS = 6


@pytest.fixture
def make_networks() -> Callable[..., Networks]:
    """Networks of 6 pixels, 5 hidden units and `codes` dimensions, in float64."""

    def make(codes: int = 2, flow_blocks: int = 1, planar_layers: int = 2, **method) -> Networks:
        config = Config(
            model=ModelConfig(
                codes=codes, hidden=(5,), flow_blocks=flow_blocks, planar_layers=planar_layers
            ),
            method=MethodConfig(**{"theta_particles": 1, **method}),
        )
        networks = build_networks(config, PIXELS, "cpu")
        networks.theta.flat = networks.theta.flat.double()
        networks.encoder = networks.encoder.double()
        return networks

    return make


@pytest.fixture
def pixels() -> torch.Tensor:
    """(4, 6) bits in float64."""
    return (torch.rand(4, PIXELS) < 0.5).double()
