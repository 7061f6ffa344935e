"""A recognition network for codes in layers, from the top one down, on counts of words.

    u_L = mu_L(x) + sigma_L(x) xi_L,   u_l = mu_l(x, u_above) + sigma_l(x, u_above) xi_l

so that a layer answers to what the layers above it have drawn, as in the posterior of a deep model.
df/dxi is triangular in the layers: f is injective and log q = log N(xi) - sum log sigma, at no cost
in hundreds of codes, where the determinant of a general map takes d^3.

Shapes: B documents over V words, S codes a document, d = sum of the layers' sizes, H features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steinvae.count_trunk import CountTrunk
from steinvae.models.mlp import TanhMlp
from steinvae.recognition import StochasticEncoder, standard_normal

CONTEXT = 64
"""Hidden units between the codes above and a layer's moments."""


class LayeredCountEncoder(StochasticEncoder):
    """Gaussian layers, each given the ones above it; together they are not Gaussian.

    Starts at the prior N(0, I), which most of many codes never leave.
    """

    injective = True
    orientation_known = True

    def __init__(
        self, words: int, hidden: Sequence[int], layers: Sequence[int], generator: torch.Generator
    ) -> None:
        """`layers` from the words up, as the codes lie side by side."""
        super().__init__()
        self.layers, self.codes = tuple(layers), sum(layers)
        self.trunk = CountTrunk((words, *hidden), generator)
        self.heads = nn.ModuleList(
            TanhMlp((hidden[-1], 2 * width), generator, last_scale=0.1) for width in layers
        )
        above = [sum(layers[number + 1 :]) for number in range(len(layers) - 1)]
        self.contexts = nn.ModuleList(
            TanhMlp((size, CONTEXT, 2 * width), generator, last_scale=0.1)
            for size, width in zip(above, layers[:-1], strict=True)
        )

    def features(self, pixels: Float[Tensor, "B V"]) -> Float[Tensor, "B H"]:
        """Hidden features of log(1 + n)."""
        return self.trunk(pixels).tanh()

    def forward(
        self, pixels: Float[Tensor, "B V"], noise: Float[Tensor, "#B S d"]
    ) -> Float[Tensor, "B S d"]:
        return self.codes_and_log_density(pixels, noise)[0]

    def codes_and_log_density(
        self, pixels: Float[Tensor, "B V"], noise: Float[Tensor, "#B S d"]
    ) -> tuple[Float[Tensor, "B S d"], Float[Tensor, "B S"]]:
        """log q = log N(xi) - sum log sigma."""
        features = self.features(pixels)
        drawn: list[Tensor] = []
        log_det = torch.zeros((), device=noise.device)
        for number, own in reversed(list(enumerate(noise.split(self.layers, dim=-1)))):
            moments = self.heads[number](features)[:, None]
            if drawn:
                moments = moments + self.contexts[number](torch.cat(drawn, -1))
            mean, log_sigma = moments.chunk(2, dim=-1)
            drawn.insert(0, mean + log_sigma.exp() * own)
            log_det = log_det + log_sigma.sum(-1)
        return torch.cat(drawn, -1), standard_normal(noise) - log_det
