"""The encoder of an ordinary VAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.models.mlp import Activation, TanhMlp
from steinvae.recognition.base import StochasticEncoder, standard_normal

LOG_SIGMA_START = -1.0
"""Initial log standard deviation: posteriors of images are narrower than the prior."""


class GaussianEncoder(StochasticEncoder):
    """z = mu(x) + sigma(x) xi: the encoder of an ordinary VAE (Kingma & Welling 2014)."""

    injective = True
    linear = True
    orientation_known = True

    activation: Activation = staticmethod(torch.tanh)
    """Of the last layer of the trunk, which applies its own to the others."""

    def __init__(
        self, pixels: int, hidden: Sequence[int], codes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.codes = codes
        self.trunk = self.make_trunk((pixels, *hidden), generator)
        self.head = TanhMlp((self.trunk.outputs, 2 * codes), generator)
        with torch.no_grad():
            self.head.last.bias[codes:] = LOG_SIGMA_START

    @staticmethod
    def make_trunk(widths: Sequence[int], generator: torch.Generator) -> TanhMlp:
        """What gives features, before their last activation."""
        return TanhMlp(widths, generator)

    def start_at_prior(self) -> None:
        """Make mu about 0 and sigma about 1, where most of hundreds of codes will stay."""
        with torch.no_grad():
            self.head.last.weight.mul_(0.1)
            self.head.last.bias.zero_()

    def features(self, pixels: Float[Tensor, "B X"]) -> Float[Tensor, "B H"]:
        """Hidden features of the images, (B, X) -> (B, H)."""
        return self.activation(self.trunk(pixels))

    def moments(
        self, features: Float[Tensor, "B H"]
    ) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B d"]]:
        """mu and log sigma, each (B, d)."""
        mean, log_sigma = self.head(features).chunk(2, dim=-1)
        return mean, log_sigma

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        mean, log_sigma = self.moments(self.features(pixels))
        return mean[:, None] + log_sigma.exp()[:, None] * noise

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d d"]:
        """diag sigma(x)."""
        _, log_sigma = self.moments(self.features(pixels))
        return log_sigma.exp().diag_embed()[:, None].expand(-1, noise.shape[1], -1, -1)

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """log q = log N(xi) - sum log sigma."""
        mean, log_sigma = self.moments(self.features(pixels))
        codes = mean[:, None] + log_sigma.exp()[:, None] * noise
        return codes, standard_normal(noise) - log_sigma.sum(-1, keepdim=True)
