"""The injective encoder: a stack of gain-bounded residual blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steinvae.recognition.base import standard_normal
from steinvae.recognition.residual import NoiseResidual, ResidualEncoder


class FlowEncoder(ResidualEncoder):
    """z = mu(x) + sigma(x) T(xi), T a stack of blocks u -> u + rho r(x, u): injective in xi.

    Every block has singular values in [0.1, 1.9] for every x, so the codes have a density and
    det df/dxi > 0. One block cannot put mass on modes far apart; `depth` of them stretch up to
    1.9^depth. rho = min(1, 0.9 / Lip r).
    """

    injective = True

    def __init__(
        self,
        pixels: int,
        hidden: Sequence[int],
        codes: int,
        generator: torch.Generator,
        depth: int = 1,
        noise_hidden: int | None = None,
    ) -> None:
        super().__init__(pixels, hidden, codes, generator, noise_hidden)
        width = noise_hidden or hidden[-1]
        features = self.trunk.outputs
        further = (NoiseResidual(features, width, codes, generator) for _ in range(depth - 1))
        self.further = nn.ModuleList(further)

    @property
    def blocks(self) -> list[NoiseResidual]:
        """The residuals r, the one next to the noise first."""
        return [self.residual, *self.further]  # type: ignore[list-item]

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        return self._transport(pixels, noise, NoiseResidual.forward)

    def draw(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        return self._transport(pixels, noise, NoiseResidual.draw)

    def _transport(
        self,
        pixels: Tensor,
        noise: Tensor,
        residual: Callable[[NoiseResidual, Tensor, Tensor], Tensor],
    ) -> Tensor:
        features = self.features(pixels)
        mean, log_sigma = self.moments(features)
        bent = noise
        for block in self.blocks:
            bent = bent + block.gain() * residual(block, features, bent)
        return mean[:, None] + log_sigma.exp()[:, None] * bent

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d d"]:
        """diag sigma times the product of the blocks' Jacobians I + rho dr/du."""
        features = self.features(pixels)
        _, log_sigma = self.moments(features)
        _, factors = self._bend(features, noise)
        product = factors[0]
        for factor in factors[1:]:
            product = product @ factor  # transposed, so the later block is on the right
        return log_sigma.exp()[:, None, :, None] * product.mT

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """log q = log N(xi) - sum log sigma - sum over blocks of log det (I + rho dr/du)."""
        features = self.features(pixels)
        mean, log_sigma = self.moments(features)
        bent, factors = self._bend(features, noise)
        log_det = log_sigma.sum(-1, keepdim=True)
        for factor in factors:
            log_det = log_det + torch.linalg.slogdet(factor).logabsdet
        return mean[:, None] + log_sigma.exp()[:, None] * bent, standard_normal(noise) - log_det

    def _bend(
        self, features: Float[Tensor, "B H"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], list[Tensor]]:
        """T(xi), and every block's transposed Jacobian (B, S, d, d)."""
        identity = torch.eye(self.codes, dtype=noise.dtype, device=noise.device)
        bent, factors = noise, []
        for block in self.blocks:
            gain = block.gain()
            moved, transposed = block.with_jacobian(features, bent)
            bent = bent + gain * moved
            factors.append(identity + gain * transposed)
        return bent, factors
