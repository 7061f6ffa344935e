"""Encoders of Poisson factor analysis whose topics are known, and what they see of a document.

Shapes: B documents of P words, S codes a document, V topics.
"""

from __future__ import annotations

from math import log1p

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steinvae.models.poisson_factor import PoissonFactor
from steinvae.recognition import StochasticEncoder


class RootCounts(nn.Module):
    """2 sqrt(x): the transform that makes the variance of a Poisson count about 1."""

    def forward(self, counts: Tensor) -> Tensor:
        """(..., P) -> (..., P)."""
        return 2 * counts.to_dense().sqrt()


class AnchoredEncoder(StochasticEncoder):
    """u = m(x) + s(x) v, with v the codes of another encoder: what it has to learn is standardised.

    m and s are guesses of the posterior's mean and spread from the topics, without parameters.
    `steps` fixed-point steps from z = 1,

        n_v = z_v sum_p x_p theta_vp / (z theta)_p,   z_v = (a + n_v) / (b + 1),

    are those of EM; then z ~ Gamma(a + n, b + 1), whose log has mean digamma(a + n) - log(b + 1)
    and variance trigamma(a + n). The codes of the two scores one standard deviation to either side
    are m - s and m + s. A network of 100 units cannot know 128 topics of 2,000 words as well as
    these products with theta do.

    The kernel of a Stein direction measures distances in units of s.
    """

    def __init__(self, core: StochasticEncoder, model: PoissonFactor, *, steps: int) -> None:
        super().__init__()
        self.core, self.codes, self.injective = core, core.codes, core.injective
        self._model, self._steps = model, steps

    def forward(
        self, pixels: Float[Tensor, "B P"], noise: Float[Tensor, "#B S V"]
    ) -> Float[Tensor, "B S V"]:
        mean, spread = self.anchor(pixels)
        return mean + spread * self.core(pixels, noise)

    def draw(
        self, pixels: Float[Tensor, "B P"], noise: Float[Tensor, "#B S V"]
    ) -> Float[Tensor, "B S V"]:
        """As `forward`, with the core's."""
        mean, spread = self.anchor(pixels)
        return mean + spread * self.core.draw(pixels, noise)

    def jacobian(
        self, pixels: Float[Tensor, "B P"], noise: Float[Tensor, "#B S V"]
    ) -> Float[Tensor, "B S V V"]:
        """diag s times the core's."""
        return self.anchor(pixels)[1][..., None] * self.core.jacobian(pixels, noise)

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B P"], noise: Float[Tensor, "#B S V"]
    ) -> tuple[Float[Tensor, "B S V"], Float[Tensor, "B S"]]:
        """log q of the core less sum log s."""
        mean, spread = self.anchor(pixels)
        codes, log_q = self.core.codes_and_log_density(pixels, noise)
        return mean + spread * codes, log_q - spread.log().sum(-1)

    def kernel_scale(self, pixels: Float[Tensor, "B P"]) -> Float[Tensor, "B 1 V"]:
        """s."""
        return self.anchor(pixels)[1]

    @torch.no_grad()
    def anchor(
        self, counts: Float[Tensor, "B P"]
    ) -> tuple[Float[Tensor, "B 1 V"], Float[Tensor, "B 1 V"]]:
        """m and s."""
        model, counts = self._model, counts.to_dense()
        topics, a, b = model.loadings.to(counts), model.shape, model.rate
        scores = counts.new_ones(len(counts), len(topics))
        tokens = torch.zeros_like(scores)
        for _ in range(self._steps):
            rates = (scores @ topics).clamp_min(torch.finfo(counts.dtype).tiny)
            tokens = scores * ((counts / rates) @ topics.T)
            scores = (a + tokens) / (1 + b)
        mean = torch.digamma(a + tokens) - log1p(b)
        spread = torch.polygamma(1, a + tokens).sqrt()
        low, high = (model.codes((mean + side * spread).exp()) for side in (-1, 1))
        return ((high + low) / 2)[:, None], ((high - low) / 2)[:, None]
