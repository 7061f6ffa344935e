"""What every recognition network offers: codes, a Jacobian, and a density where it is one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log, pi

import torch
from jaxtyping import Float
from torch import Tensor, nn


class StochasticEncoder(nn.Module, ABC):
    """Common surface: `forward` draws codes; `codes` is d."""

    codes: int

    injective: bool = False
    """Whether f(x, .) is injective whatever the weights are, so that the codes have a density."""

    linear: bool = False
    """Whether f(x, .) is affine, so that its Jacobian is the same at all noise."""

    orientation_known: bool = False
    """Whether det df/dxi is a product of positive numbers, so that its sign need not be tested."""

    @abstractmethod
    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S e"]
    ) -> Float[Tensor, "B S d"]:
        """pixels (B, X), noise (B or 1, S, e) -> codes (B, S, d); e = d except in a user's own."""

    def draw(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S e"]
    ) -> Float[Tensor, "B S d"]:
        """`forward` for training: differentiable once, and as fast as a network can make it."""
        return self(pixels, noise)

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S e"]
    ) -> Float[Tensor, "B S d e"]:
        """df/dxi by d backward passes; the networks here override it with one forward pass."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            free = noise.expand(len(pixels), -1, -1).detach().requires_grad_()
            rows = [
                torch.autograd.grad(code.sum(), free, retain_graph=True, create_graph=graph)[0]
                for code in self(pixels, free).unbind(-1)
            ]
        return torch.stack(rows, dim=-2)

    def kernel_scale(self, pixels: Float[Tensor, "B X"]) -> Float[Tensor, "B 1 d"] | None:
        """Units of distance of the codes' kernel, positive, or None for code units.

        An encoder that knows the rough spread of its posteriors says so here: one bandwidth does
        not fit dimensions of very different spread.
        """
        return None

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """Codes f(x, xi) and log q of each in nats, differentiable in the parameters and in xi.

        Errors: TypeError where f(x, .) is not injective: log N(xi) - log |det df/dxi| then counts
        one pre-image of several and is no density.
        """
        if not self.injective:
            raise TypeError(f"{type(self).__name__} is not injective, its codes have no density")
        if noise.shape[-1] != self.codes:
            raise ValueError(
                f"{type(self).__name__} takes {noise.shape[-1]} noise dimensions to {self.codes} "
                "of a code: without a square Jacobian its codes have no density"
            )
        log_det = torch.linalg.slogdet(self.jacobian(pixels, noise)).logabsdet
        return self(pixels, noise), standard_normal(noise) - log_det


def gaussian_rate(
    mean: Float[Tensor, "*B d"], log_sigma: Float[Tensor, "*B d"]
) -> Float[Tensor, "*B"]:
    """KL(N(mean, sigma^2) || N(0, I)) in nats: (..., d) -> (...)."""
    return 0.5 * (mean.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(-1)


def standard_normal(noise: Float[Tensor, "*B d"]) -> Float[Tensor, "*B"]:
    """log N(xi; 0, I) in nats: (..., d) -> (...)."""
    return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * log(2 * pi))
