"""A Gaussian encoder of any covariance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.models.mlp import TanhMlp
from steinvae.recognition.base import standard_normal
from steinvae.recognition.gaussian import GaussianEncoder


class TriangularEncoder(GaussianEncoder):
    """z = mu(x) + L(x) xi, L = diag sigma(x) (I + N(x)), N strictly lower triangular.

    Injective whatever the weights are, det L the product of sigma. It starts near the diagonal.

    Errors: ValueError for one code dimension, which has no covariance.
    """

    def __init__(
        self, pixels: int, hidden: Sequence[int], codes: int, generator: torch.Generator
    ) -> None:
        if codes < 2:
            raise ValueError(
                f"model.codes must be at least 2 for a triangular encoder, got {codes}"
            )
        super().__init__(pixels, hidden, codes, generator)
        below = codes * (codes - 1) // 2
        self.below = TanhMlp((hidden[-1], below), generator, last_scale=0.1)
        rows, columns = torch.tril_indices(codes, codes, -1)
        self.register_buffer("entries", rows * codes + columns, persistent=False)

    def factor(self, features: Float[Tensor, "B H"]) -> Float[Tensor, "B d d"]:
        """L, (B, d, d), from the images' features."""
        _, log_sigma = self.moments(features)
        flat = features.new_zeros(len(features), self.codes**2)
        flat = flat.index_copy(1, self.entries, self.below(features))  # type: ignore[arg-type]
        unit = torch.eye(self.codes, dtype=flat.dtype, device=flat.device)
        return log_sigma.exp()[..., None] * (unit + flat.unflatten(1, (self.codes, self.codes)))

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        features = self.features(pixels)
        mean, _ = self.moments(features)
        return mean[:, None] + noise @ self.factor(features).mT

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d d"]:
        """L(x), for every code."""
        factor = self.factor(self.features(pixels))
        return factor[:, None].expand(-1, noise.shape[1], -1, -1)

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """log q = log N(xi) - sum log sigma."""
        features = self.features(pixels)
        mean, log_sigma = self.moments(features)
        codes = mean[:, None] + noise @ self.factor(features).mT
        return codes, standard_normal(noise) - log_sigma.sum(-1, keepdim=True)
