"""A mixture of Gaussians seen through a linear map, whose posterior is known: Pu et al. 2017, 5.1.

    p(z) = sum_i pi_i N(z; mu_i, I),   p(x | z) = N(x; theta z, sigma^2 I)
    p(z | x) = sum_i p_i N(z; m_i, Lambda^-1)
    Lambda = theta^T theta / sigma^2 + I,   m_i = Lambda^-1 (theta^T x / sigma^2 + mu_i)
    p_i ~ pi_i exp( (m_i^T Lambda m_i - mu_i^T mu_i) / 2 )

Appendix C prints -mu_i in m_i, y for x, p(x) p(z) for p(x | z) p(z), and weights without the factor
-1/2 in the exponent: at the data of section 5.1 that swaps the two modes.

Shapes: B points x of X numbers, K components, n codes a point, d code dimensions. Units: nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.particles import Parameter, ParticleEnsemble


@dataclass(frozen=True, eq=False)
class MixturePosterior:
    """p(z | x_b) = sum_i p_bi N(z; m_bi, Lambda^-1) for B points."""

    log_weights: Float[Tensor, "B K"]
    """log p_bi, normalised."""

    means: Float[Tensor, "B K d"]

    precision: Float[Tensor, "d d"]
    """Lambda, the same for all points and components."""

    def log_components(self, codes: Float[Tensor, "B n d"]) -> Float[Tensor, "B n K"]:
        """log [ p_i N(z; m_i, Lambda^-1) ]."""
        apart = codes[:, :, None] - self.means[:, None]
        square = torch.einsum("bnkd,de,bnke->bnk", apart, self.precision, apart)
        scale = torch.logdet(self.precision) - codes.shape[-1] * log(2 * pi)
        return self.log_weights[:, None] + 0.5 * (scale - square)

    def log_density(self, codes: Float[Tensor, "B n d"]) -> Float[Tensor, "B n"]:
        """log p(z | x)."""
        return self.log_components(codes).logsumexp(-1)

    def responsibilities(self, codes: Float[Tensor, "B n d"]) -> Float[Tensor, "B n K"]:
        """r_i(z), the probability that z came from component i; under p(z | x) its mean is p_i."""
        return self.log_components(codes).softmax(-1)

    def score(self, codes: Float[Tensor, "B n d"]) -> Float[Tensor, "B n d"]:
        """grad_z log p(z | x) = sum_i r_i(z) Lambda (m_i - z)."""
        centre = self.responsibilities(codes) @ self.means
        return (centre - codes) @ self.precision

    def whiten(self, codes: Float[Tensor, "B n d"]) -> Float[Tensor, "B n d"]:
        """L^T z with Lambda = L L^T: every component then has unit covariance."""
        return codes @ torch.linalg.cholesky(self.precision)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "B n d"]:
        """`count` independent exact draws a point: a component, then L^-T of standard normals."""
        points, _, dimension = self.means.shape
        chosen = torch.multinomial(
            self.log_weights.exp(), count, replacement=True, generator=generator
        )
        noise = torch.randn(points, count, dimension, dtype=self.means.dtype, generator=generator)
        factor = torch.linalg.cholesky(self.precision)
        spread = torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT
        return self.means.gather(1, chosen[..., None].expand(-1, -1, dimension)) + spread


class GaussianMixture:
    """The generative model, theta known; a `GenerativeModel`, so that every method trains on it.

    Training takes N(0, I) for the prior of codes. The mixture stands in the likelihood instead, as
    the ratio of the two, and every sum of both is the joint density log p(x, z) as it must be:

        log_likelihood = log p(x | z) + log sum_i pi_i exp(mu_i . z - |mu_i|^2 / 2)
    """

    def __init__(
        self,
        theta: Float[Tensor, "X d"],
        means: Float[Tensor, "K d"],
        noise: float,
        weights: Float[Tensor, " K"] | None = None,
    ) -> None:
        """theta maps codes to x, `noise` is sigma; mixture weights are equal where not given."""
        if not 0 < noise < float("inf"):
            raise ValueError(f"GaussianMixture: noise must be positive and finite, got {noise}")
        self.theta, self.means, self.noise = theta, means, noise
        equal = means.new_full(means.shape[:1], 1 / len(means))
        self.log_prior_weights = (equal if weights is None else weights / weights.sum()).log()
        self.parameters = (Parameter("theta", tuple(theta.shape), 0.0),)

    def ensemble(self) -> ParticleEnsemble:
        """The known theta as the one particle of an ensemble, float32."""
        ensemble = ParticleEnsemble(self.parameters, 1, torch.Generator())
        ensemble.flat.copy_(self.theta.reshape(1, -1))
        return ensemble

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "n X"]:
        """x ~ p(x): (count, X)."""
        chosen = torch.multinomial(
            self.log_prior_weights.exp(), count, replacement=True, generator=generator
        )
        shape, dtype = self.means.shape[1:], self.means.dtype
        codes = torch.randn(count, *shape, dtype=dtype, generator=generator) + self.means[chosen]
        noise = torch.randn(count, len(self.theta), dtype=dtype, generator=generator)
        return codes @ self.theta.mT + self.noise * noise

    def posterior(self, points: Float[Tensor, "B X"]) -> MixturePosterior:
        """p(z | x) in the dtype of the model."""
        theta, mu = self.theta, self.means
        precision = theta.mT @ theta / self.noise**2
        precision = precision + torch.eye(len(precision), dtype=theta.dtype)
        natural = (points.to(theta.dtype) @ theta / self.noise**2)[:, None] + mu  # (B, K, d)
        means = torch.linalg.solve(precision, natural.mT).mT
        exponent = 0.5 * ((means * natural).sum(-1) - mu.square().sum(-1))
        log_weights = (self.log_prior_weights + exponent).log_softmax(-1)
        return MixturePosterior(log_weights, means, precision)

    def log_likelihood(
        self,
        theta: dict[str, Tensor],
        codes: Float[Tensor, "#M B n d"],
        pixels: Float[Tensor, "B X"],
    ) -> Float[Tensor, "M B n"]:
        """log p(x_b, z_bs | theta_m) - log N(z_bs; 0, I): (M or 1, B, n, d) -> (M, B, n)."""
        weight, mu = theta["theta"], self.means.to(codes)
        means = codes.expand(len(weight), -1, -1, -1) @ weight.mT[:, None]
        square = (pixels[:, None] - means).square().sum(-1) / self.noise**2
        seen = -0.5 * (square + pixels.shape[-1] * log(2 * pi * self.noise**2))
        offset = self.log_prior_weights.to(codes) - 0.5 * mu.square().sum(-1)
        return seen + (codes @ mu.mT + offset).logsumexp(-1)

    def mean_images(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n X"]:
        """E[x | z_i] = theta z_i, the decoders taking turns: (n, d) -> (n, X)."""
        means = codes @ theta["theta"].mT
        order = torch.arange(len(codes), device=codes.device)
        return means[order % len(means), order]


def section_5_1(noise: float) -> GaussianMixture:
    """The data of section 5.1 in float64: mu = (5, 5) and (-5, -5), theta = (2 -1; 1 -2)."""
    theta = torch.tensor([[2.0, -1.0], [1.0, -2.0]], dtype=torch.float64)
    means = torch.tensor([[5.0, 5.0], [-5.0, -5.0]], dtype=torch.float64)
    return GaussianMixture(theta, means, noise)
