"""Planar normalizing flow, a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from math import e, log

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steinvae.models.mlp import TanhMlp
from steinvae.recognition.base import StochasticEncoder, standard_normal
from steinvae.recognition.gaussian import GaussianEncoder

_SOFTPLUS_ONE = log(e - 1)
"""Where softplus is 1."""


class PlanarEncoder(GaussianEncoder):
    """`depth` planar layers z -> z + u tanh(w.z + b) on mu + sigma xi; u, w, b depend on x.

    Source: Rezende & Mohamed 2015, eqs. 10 to 12 and appendix A.1. u is moved along w so that
    w.u > -1, which makes a layer invertible; the softplus of A.1 is shifted to leave u = 0 alone,
    so that layers start near the identity.
    """

    linear = False

    def __init__(
        self,
        pixels: int,
        hidden: Sequence[int],
        codes: int,
        generator: torch.Generator,
        depth: int = 1,
    ) -> None:
        super().__init__(pixels, hidden, codes, generator)
        self.depth = depth
        self.layers = TanhMlp((hidden[-1], depth * (2 * codes + 1)), generator, last_scale=0.1)

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        return self.codes_and_log_density(pixels, noise)[0]

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d d"]:
        """By d backward passes."""
        return StochasticEncoder.jacobian(self, pixels, noise)

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """log q = log N(xi) - sum log sigma - sum over layers of log(1 + (1 - tanh^2) w.u)."""
        features = self.features(pixels)
        mean, log_sigma = self.moments(features)
        codes = mean[:, None] + log_sigma.exp()[:, None] * noise
        log_det = log_sigma.sum(-1, keepdim=True)
        for layer in self.layers(features).chunk(self.depth, dim=-1):
            raw, normal, shift = layer.split([self.codes, self.codes, 1], dim=-1)
            inner = (raw * normal).sum(-1, keepdim=True)
            allowed = F.softplus(inner + _SOFTPLUS_ONE) - 1  # > -1, and 0 at 0
            tiny = torch.finfo(normal.dtype).tiny
            square = normal.square().sum(-1, keepdim=True).clamp_min(tiny)
            along = raw + (allowed - inner) / square * normal
            height = (codes @ normal[:, :, None] + shift[:, None]).tanh()
            codes = codes + along[:, None] * height
            slope = (1 - height.square()) * allowed[:, None]
            log_det = log_det + slope.squeeze(-1).log1p()
        return codes, standard_normal(noise) - log_det
