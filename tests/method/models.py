"""A model whose every density is known: linear decoder, Gaussian noise."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor, nn

from steinvae.networks import Networks
from steinvae.particles import Parameter, ParticleEnsemble
from steinvae.recognition import StochasticEncoder

CODES, PIXELS = 2, 4


class LinearGaussian:
    """p(x | z, W) = N(z W, noise^2 I), p(z) = N(0, I)."""

    noise = 0.5
    parameters = (Parameter("weight", (CODES, PIXELS), 1.0),)

    def log_likelihood(self, theta: dict[str, Tensor], codes: Tensor, pixels: Tensor) -> Tensor:
        weight = theta["weight"]
        mean = torch.einsum("mbnd,mdx->mbnx", codes.expand(len(weight), -1, -1, -1), weight)
        apart = (pixels[:, None] - mean).square().sum(-1) / self.noise**2
        return -0.5 * (apart + PIXELS * log(2 * pi * self.noise**2))

    def log_evidence(self, weight: Tensor, pixels: Tensor) -> Tensor:
        """log N(x; 0, W^T W + noise^2 I): (B,)."""
        covariance = weight.T @ weight + self.noise**2 * torch.eye(PIXELS)
        return torch.distributions.MultivariateNormal(torch.zeros(PIXELS), covariance).log_prob(
            pixels
        )

    def posterior(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix that takes an image to its posterior mean, and the posterior covariance."""
        covariance = (weight @ weight.T / self.noise**2 + torch.eye(CODES)).inverse()
        return weight.T @ covariance / self.noise**2, covariance

    def mean_images(self, theta: dict[str, Tensor], codes: Tensor) -> Tensor:
        """Of the first decoder."""
        return codes @ theta["weight"][0]


class LinearEncoder(StochasticEncoder):
    """z = x A + xi L^T: contains the posterior of a linear Gaussian model."""

    codes = CODES

    def __init__(self, to_mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.to_mean, self.scale = nn.Parameter(to_mean), nn.Parameter(scale)

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        return (pixels @ self.to_mean)[:, None] + noise @ self.scale.T


def linear_networks(decoders: int, factor: float) -> tuple[LinearGaussian, Networks]:
    """`decoders` similar decoders, and the posterior of the first, its spread times `factor`."""
    model = LinearGaussian()
    theta = ParticleEnsemble(model.parameters, decoders, torch.Generator().manual_seed(5))
    theta.flat[1:] = theta.flat[:1] + 0.3 * theta.flat[1:]
    to_mean, covariance = model.posterior(theta.flat[0].view(CODES, PIXELS))
    encoder = LinearEncoder(to_mean, factor * torch.linalg.cholesky(covariance))
    return model, Networks(model, theta, encoder)
