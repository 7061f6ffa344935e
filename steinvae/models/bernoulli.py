"""Bernoulli pixels behind any network of logits.

Shapes: M decoders, B images of X pixels, n codes an image, d code dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class BernoulliPixels(ABC):
    """p(x | z, theta) = prod_i Bernoulli(x_i; sigmoid(l_i(z, theta))); a network gives l."""

    @abstractmethod
    def logits(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "#M n d"]
    ) -> Float[Tensor, "M n X"]:
        """l(z, theta): codes (M, n, d) or (1, n, d) for all decoders -> (M, n, X)."""

    def log_likelihood(
        self,
        theta: dict[str, Tensor],
        codes: Float[Tensor, "#M B n d"],
        pixels: Float[Tensor, "B X"],
    ) -> Float[Tensor, "M B n"]:
        """log p(x_b | z_bs, theta_m) in nats, summed over pixels.

        Shapes: codes (M or 1, B, n, d), pixels (B, X) in [0, 1] -> (M, B, n) float32.
        """
        images, samples = codes.shape[1:3]
        logits = self.logits(theta, codes.flatten(1, 2)).unflatten(1, (images, samples))
        target = pixels[:, None, :].expand_as(logits)
        return -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)

    def mean_images(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n X"]:
        """E[x | z_i, theta_m], the decoders taking turns: codes (n, d) -> (n, X) in [0, 1]."""
        means = self.logits(theta, codes[None]).sigmoid()
        order = torch.arange(len(codes), device=codes.device)
        return means[order % means.shape[0], order]

    def draw_images(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "n d"], generator: torch.Generator
    ) -> Float[Tensor, "n X"]:
        """x_i ~ p(x | z_i, theta) for the one decoder in theta: codes (n, d) -> (n, X) bits.

        The uniform draws are made on the CPU, so that a seed means the same images everywhere.
        """
        (means,) = self.logits(theta, codes[None]).sigmoid()
        draws = torch.rand(means.shape, generator=generator).to(means.device)
        return (draws < means).to(means.dtype)
