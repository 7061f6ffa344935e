"""Bernoulli pixels behind tanh MLPs: the networks of Pu et al. 2017, section 5.2.

Shapes: M decoders, B images of X pixels, n codes an image, d code dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from steinvae.models.bernoulli import BernoulliPixels
from steinvae.models.closed_form import HIDDEN, ClosedForm, Layers, Weigh, bernoulli_gradients
from steinvae.particles import Parameter

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"tanh": torch.tanh, "softplus": F.softplus}


class BernoulliMlp(BernoulliPixels):
    """p(x | z, theta) = prod_i Bernoulli(x_i; sigmoid(l_i(z, theta))), l a tanh or softplus MLP.

    All M decoders run in one batched matrix product a layer; no loop over particles. Training takes
    gradients in closed form (`pair_gradients`); a subclass that changes the likelihood loses them
    to autograd unless it brings its own.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if {"logits", "log_likelihood"} & vars(cls).keys() and "pair_gradients" not in vars(cls):
            cls.pair_gradients = None  # type: ignore[assignment]

    def __init__(
        self, codes: int, hidden: Sequence[int], pixels: int, activation: str = "tanh"
    ) -> None:
        self.activation = activation
        self.widths = (codes, *hidden, pixels)
        self.parameters = self._parameters()

    def _parameters(self) -> list[Parameter]:
        """Weights ~ N(0, 1/fan_in), biases 0."""
        return [
            item
            for layer, (fan_in, fan_out) in enumerate(pairwise(self.widths))
            for item in (
                Parameter(f"weight{layer}", (fan_in, fan_out), fan_in**-0.5),
                Parameter(f"bias{layer}", (1, fan_out), 0.0),
            )
        ]

    def logits(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "#M n d"]
    ) -> Float[Tensor, "M n X"]:
        """l(z, theta): codes (M, n, d) or (1, n, d) for all decoders -> (M, n, X)."""
        last = len(self.widths) - 2
        particles = theta["weight0"].shape[0]
        activation = codes.expand(particles, -1, -1)
        for layer in range(last + 1):
            weight, bias = theta[f"weight{layer}"], theta[f"bias{layer}"]
            activation = torch.baddbmm(bias, activation, weight)
            activation = activation if layer == last else ACTIVATIONS[self.activation](activation)
        return activation

    def pair_gradients(
        self,
        theta: dict[str, Tensor],
        codes: Float[Tensor, "#M B n d"],
        pixels: Float[Tensor, "B X"],
        into: dict[str, Tensor] | None,
        *,
        weigh: Weigh | None = None,
        group: int = 1,
        fresh: bool = True,
    ) -> ClosedForm:
        """See `models.HasPairGradients`."""
        return bernoulli_gradients(
            *(self._layers(theta), codes, pixels, None if into is None else self._layers(into)),
            hidden=HIDDEN[self.activation],
            weigh=weigh,
            group=group,
            fresh=fresh,
        )

    def _layers(self, theta: dict[str, Tensor]) -> Layers:
        return [(theta[f"weight{i}"], theta[f"bias{i}"]) for i in range(len(self.widths) - 1)]


class TanhMlp(nn.Module):
    """A tanh MLP with fan-in scaled normal weights; tanh follows every layer but the last.

    `activation` may be set to another function.
    """

    activation: Activation = staticmethod(torch.tanh)

    def __init__(
        self, widths: Sequence[int], generator: torch.Generator, last_scale: float = 1.0
    ) -> None:
        super().__init__()
        layers = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths)]
        for layer in layers:
            scale = last_scale if layer is layers[-1] else 1.0
            nn.init.normal_(layer.weight, std=scale * layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        *hidden, self.last = layers
        self.outputs = self.last.out_features
        self.hidden = nn.ModuleList(hidden)

    def weights(self) -> list[Tensor]:
        """The weight matrices, first layer first."""
        return [*(item for item in self.hidden.parameters() if item.ndim == 2), self.last.weight]

    def forward(self, x: Tensor) -> Tensor:
        """(..., widths[0]) -> (..., widths[-1])."""
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.last(x)
