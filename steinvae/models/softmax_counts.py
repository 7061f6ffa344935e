"""Words of a document behind a softmax: the decoder of NVDM (Miao, Yu & Blunsom 2016).

Shapes: M decoders, B documents over V words, n codes a document, d code dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.particles import Parameter


class SoftmaxCounts:
    """p(x | z, theta) = prod_w softmax(z W + b)_w^{x_w}: the words in their order, N given.

    The length N = sum_w x_w is conditioned on, and there is no multinomial coefficient: it would
    count the orders that a bag of words stands for, and perplexities are those of one order.
    """

    normalised = True
    """Over the sequences of N words."""

    def __init__(self, codes: int, words: int) -> None:
        self.parameters: Sequence[Parameter] = (
            Parameter("weight", (codes, words), codes**-0.5),
            Parameter("bias", (1, words), 0.0),
        )

    def logits(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "#M n d"]
    ) -> Float[Tensor, "M n V"]:
        """z W + b: codes (M, n, d), or (1, n, d) for all decoders -> (M, n, V)."""
        weight = theta["weight"]
        return torch.baddbmm(theta["bias"], codes.expand(len(weight), -1, -1), weight)

    def log_likelihood(
        self,
        theta: dict[str, Tensor],
        codes: Float[Tensor, "#M B n d"],
        pixels: Float[Tensor, "B V"],
    ) -> Float[Tensor, "M B n"]:
        """log p(x_b | z_bs, theta_m) in nats, summed over the words of a document.

        Shapes: codes (M or 1, B, n, d), counts (B, V) -> (M, B, n) float32. Sparse counts are made
        dense here: there are n logits for each of their zeros too.
        """
        pixels = pixels.to_dense()
        documents, samples = codes.shape[1:3]
        logits = self.logits(theta, codes.flatten(1, 2)).unflatten(1, (documents, samples))
        picked = (logits @ pixels[:, :, None]).squeeze(-1)
        return picked - pixels.sum(1)[:, None] * logits.logsumexp(-1)

    def mean_images(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n V"]:
        """Probability of each word under z_i, the decoders taking turns: (n, d) -> (n, V)."""
        means = self.logits(theta, codes[None]).softmax(-1)
        order = torch.arange(len(codes), device=codes.device)
        return means[order % means.shape[0], order]

    def topics(self, theta: dict[str, Tensor]) -> tuple[Float[Tensor, "M d V"]]:
        """W, the one layer: what a step along a code dimension adds to the logit of each word."""
        return (theta["weight"],)
