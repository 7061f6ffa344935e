"""A Gaussian encoder with a noise network on top: no density, since it may fold."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steinvae.models.mlp import TanhMlp
from steinvae.recognition.base import StochasticEncoder
from steinvae.recognition.gaussian import GaussianEncoder
from steinvae.recognition.noise_network import noise_network
from steinvae.recognition.tangents import through
from steinvae.spectral import spectral_norm_bound

GAIN = 0.9
"""Bound on the Lipschitz constant of a flow block's residual; below 1 it is invertible."""


class NoiseResidual(nn.Module):
    """r(x, xi) = W3 tanh(W2 tanh(Wx features(x) + Wxi xi)), the non-Gaussian part of an encoder."""

    constant_gain: bool = True
    """Whether autograd takes rho for a constant. An exact ELBO gradient may not."""

    def __init__(self, features: int, hidden: int, codes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.from_image = TanhMlp((features, hidden), generator)
        self.from_noise = TanhMlp((codes, hidden), generator)
        self.rest = TanhMlp((hidden, hidden, codes), generator, last_scale=0.1)

    def forward(
        self, features: Float[Tensor, "B H"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        """features (B, H), noise (B or 1, S, d) -> (B, S, d)."""
        return self.rest((self.from_image(features)[:, None] + self.from_noise(noise)).tanh())

    def draw(
        self, features: Float[Tensor, "B H"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        """`forward` with a backward pass in closed form; differentiable once."""
        first = self.from_noise.last
        layers = [*self.rest.hidden, self.rest.last]
        return noise_network(
            self.from_image(features) + first.bias,
            noise,
            first.weight,
            [(layer.weight, layer.bias) for layer in layers],  # type: ignore[misc]
        )

    def with_jacobian(
        self, features: Float[Tensor, "B H"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S d d"]]:
        """r and dr/dxi transposed: entry (i, j) is d r_j / d xi_i."""
        mixed = self.from_image(features)[:, None] + self.from_noise(noise)
        return through(self.rest, mixed, self.from_noise.last.weight)

    def gain(self) -> Float[Tensor, ""]:
        """rho = min(1, 0.9 / Lip r): u -> u + rho r is injective."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.constant_gain):
            return (GAIN / self.lipschitz_bound()).clamp(max=1.0)

    def lipschitz_bound(self) -> Float[Tensor, ""]:
        """Upper bound of the Lipschitz constant in xi, scalar: the product of the layers' norms."""
        weights = [*self.from_noise.weights(), *self.rest.weights()]
        norms = (spectral_norm_bound(weight) for weight in weights)
        return functools.reduce(torch.mul, norms)  # the backward of prod waits for its factors


class ResidualEncoder(GaussianEncoder):
    """z = mu(x) + sigma(x) xi + r(x, xi). Training makes it fold, so it has no simple density."""

    injective = False
    linear = False
    orientation_known = False

    def __init__(
        self,
        pixels: int,
        hidden: Sequence[int],
        codes: int,
        generator: torch.Generator,
        noise_hidden: int | None = None,
    ) -> None:
        super().__init__(pixels, hidden, codes, generator)
        width = noise_hidden or hidden[-1]
        self.residual = NoiseResidual(self.trunk.outputs, width, codes, generator)

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        features = self.features(pixels)
        mean, log_sigma = self.moments(features)
        gaussian = mean[:, None] + log_sigma.exp()[:, None] * noise
        return gaussian + self.residual(features, noise)

    def draw(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        features = self.features(pixels)
        mean, log_sigma = self.moments(features)
        gaussian = mean[:, None] + log_sigma.exp()[:, None] * noise
        return gaussian + self.residual.draw(features, noise)

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d d"]:
        """diag sigma + dr/dxi."""
        features = self.features(pixels)
        _, log_sigma = self.moments(features)
        _, transposed = self.residual.with_jacobian(features, noise)
        return log_sigma.exp().diag_embed()[:, None] + transposed.mT

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """Refused: not injective."""
        return StochasticEncoder.codes_and_log_density(self, pixels, noise)
