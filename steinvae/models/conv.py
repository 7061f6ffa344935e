"""Bernoulli pixels behind transposed convolutions: the CNN of Pu et al. 2017, section 5.3.

Shapes: M decoders, B images of X = side * side pixels, n codes an image, d code dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steinvae.models.bernoulli import BernoulliPixels
from steinvae.particles import Parameter

KERNEL, STRIDE = 5, 2
SLOPE = 0.01
"""Of the leaky ReLU below zero (Maas et al. 2013)."""


class BernoulliConv(BernoulliPixels):
    """p(x | z, theta) = prod_i Bernoulli(x_i; sigmoid(l_i(z, theta))), l an all-convolutional net.

    One linear layer to hidden[0] planes of side / 2^L, then L = len(hidden) transposed 5x5
    convolutions of stride 2, leaky ReLU between. All M decoders are one grouped convolution a layer
    (measured on one core: as fast as a loop over decoders for 5 of them, and never slower).
    """

    def __init__(self, codes: int, hidden: Sequence[int], pixels: int) -> None:
        self.planes = (*hidden, 1)
        self.codes, self.side = codes, coarsest(pixels, len(hidden))
        self.parameters = self._parameters()
        sides = [self.side * STRIDE**layer for layer in range(len(self.planes))]
        self.sizes = [n * s**2 for n, s in zip(self.planes, sides, strict=True)]
        """Numbers of the planes of every layer, the pixels last."""

    @property
    def kept_per_pair(self) -> int:
        """Numbers that autograd holds for a code and a decoder: planes before and after each leaky
        ReLU, and the more of two: logits, their loss and gradient, or the gradients in the widest
        planes after and before their ReLU.
        """
        *hidden, pixels = self.sizes
        return self.codes + 2 * sum(hidden) + max(3 * pixels, 2 * max(hidden))

    @property
    def products(self) -> int:
        """Multiply-adds of a forward pass of one code and one decoder."""
        convolutions = zip(self.sizes, self.planes[1:], strict=False)
        return self.codes * self.sizes[0] + KERNEL**2 * sum(n * out for n, out in convolutions)

    def _parameters(self) -> list[Parameter]:
        """Weights ~ N(0, 2 / fan_in) before a leaky ReLU, N(0, 1 / fan_in) before the pixels.

        A pixel of a transposed convolution of stride 2 sees a quarter of the 25 weights.
        """
        first = self.planes[0] * self.side**2
        items = [
            Parameter("weight0", (self.codes, first), (2 / self.codes) ** 0.5),
            Parameter("bias0", (1, first), 0.0),
        ]
        for layer, (planes, out) in enumerate(pairwise(self.planes), 1):
            gain = 1 if layer == len(self.planes) - 1 else 2
            scale = (gain * STRIDE**2 / (planes * KERNEL**2)) ** 0.5
            items.append(Parameter(f"weight{layer}", (planes, out, KERNEL, KERNEL), scale))
            items.append(Parameter(f"bias{layer}", (out,), 0.0))
        return items

    def logits(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "#M n d"]
    ) -> Float[Tensor, "M n X"]:
        """l(z, theta): codes (M, n, d) or (1, n, d) for all decoders -> (M, n, X)."""
        weight = theta["weight0"]
        decoders, rows = len(weight), codes.shape[1]
        flat = torch.baddbmm(theta["bias0"], codes.expand(decoders, -1, -1), weight)
        planes = flat.transpose(0, 1).reshape(rows, -1, self.side, self.side)
        for layer in range(1, len(self.planes)):
            planes = F.conv_transpose2d(
                F.leaky_relu(planes, SLOPE),
                theta[f"weight{layer}"].flatten(0, 1),
                theta[f"bias{layer}"].flatten(),
                stride=STRIDE,
                padding=KERNEL // 2,
                output_padding=1,
                groups=decoders,
            )
        return planes.reshape(rows, decoders, -1).transpose(0, 1)


def coarsest(pixels: int, layers: int) -> int:
    """Side of the smallest planes: that of the image over 2^layers.

    Errors: ValueError where images are not square or their side is no multiple of 2^layers.
    """
    side = isqrt(pixels)
    if side**2 != pixels or side % STRIDE**layers:
        raise ValueError(
            f"model.network conv: {layers} layers of stride 2 need square images with a side that "
            f"{STRIDE**layers} divides, got {pixels} pixels"
        )
    return side // STRIDE**layers
