"""The form the paper draws: one network of image and noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.models.mlp import TanhMlp
from steinvae.recognition.base import StochasticEncoder
from steinvae.recognition.tangents import through


class ConcatEncoder(StochasticEncoder):
    """z = scale MLP([x, xi]): the form the paper draws. Not injective; kept for its experiments."""

    scale: float = 1.0
    """How far codes reach. A factor: Adam's steps do not grow with wider weights."""

    def __init__(
        self, pixels: int, hidden: Sequence[int], codes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.codes = codes
        self.from_image = TanhMlp((pixels, hidden[0]), generator)
        self.from_noise = TanhMlp((codes, hidden[0]), generator)
        self.rest = TanhMlp((*hidden, codes), generator)

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        mixed = self.from_image(pixels)[:, None] + self.from_noise(noise)
        return self.scale * self.rest(mixed.tanh())

    def jacobian(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d d"]:
        """scale W_L D ... D W_xi in one forward pass."""
        mixed = self.from_image(pixels)[:, None] + self.from_noise(noise)
        return self.scale * through(self.rest, mixed, self.from_noise.last.weight)[1].mT
