"""Convolutional recognition networks: the CNN of Pu et al. 2017, section 5.3.

Shapes: B images of X = side * side pixels, S codes an image, d code dimensions, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from steinvae.models.conv import KERNEL, SLOPE, STRIDE, coarsest
from steinvae.models.mlp import TanhMlp
from steinvae.recognition import make_encoder
from steinvae.recognition.base import StochasticEncoder
from steinvae.recognition.flow import FlowEncoder
from steinvae.recognition.gaussian import GaussianEncoder

NOISE_UNITS = 200
"""Hidden units of a flow block's noise network, those of the paper's MNIST encoder."""


class ConvTrunk(nn.Module):
    """5x5 convolutions of stride 2, a leaky ReLU after each: (B, X) -> (B, F)."""

    def __init__(self, pixels: int, planes: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.side = isqrt(pixels)
        self.outputs = planes[-1] * coarsest(pixels, len(planes)) ** 2
        self.layers = nn.ModuleList(_conv(a, b, generator) for a, b in pairwise((1, *planes)))

    def forward(self, pixels: Float[Tensor, "B X"]) -> Float[Tensor, "B F"]:
        planes = pixels.view(-1, 1, self.side, self.side)
        for layer in self.layers:
            planes = F.leaky_relu(layer(planes), SLOPE)
        return planes.flatten(1)


def _as_it_is(features: Tensor) -> Tensor:
    return features


class _OnPlanes(GaussianEncoder):
    """Features are those of a `ConvTrunk`, which has its last activation in it."""

    activation = staticmethod(_as_it_is)

    @staticmethod
    def make_trunk(widths: Sequence[int], generator: torch.Generator) -> ConvTrunk:
        """(B, X) -> (B, F)."""
        return ConvTrunk(widths[0], widths[1:], generator)


class ConvGaussianEncoder(_OnPlanes):
    """z = mu(x) + sigma(x) xi, both linear in the features of a `ConvTrunk`."""


class ConvFlowEncoder(_OnPlanes, FlowEncoder):
    """`FlowEncoder` on the features of a `ConvTrunk`: injective, one convolution pass an image."""


class ConvPlaneEncoder(StochasticEncoder):
    """The paper's form: the noise is a plane of X numbers stacked beside the image.

    Not injective, and dim xi = X is not d: its codes have no density. The first convolution is
    linear, so it runs once per image and once per noise; all others run per code.
    """

    scale: float = 1.0
    """As that of `ConcatEncoder`."""

    def __init__(
        self, pixels: int, hidden: Sequence[int], codes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.codes, self.noise_dimension = codes, pixels
        self.side = isqrt(pixels)
        features = hidden[-1] * coarsest(pixels, len(hidden)) ** 2
        self.from_image = _conv(1, hidden[0], generator)
        self.from_noise = _conv(1, hidden[0], generator)
        with torch.no_grad():  # two planes share the input's variance
            self.from_image.weight *= 0.5**0.5
            self.from_noise.weight *= 0.5**0.5
        self.layers = nn.ModuleList(_conv(a, b, generator) for a, b in pairwise(hidden))
        self.head = TanhMlp((features, codes), generator)
        self.kept_per_code = kept_planes(pixels, hidden) + codes
        """Numbers kept for a code until the way back."""

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S X"]
    ) -> Float[Tensor, "B S d"]:
        images, samples = len(pixels), noise.shape[1]
        of_image = self.from_image(pixels.view(-1, 1, self.side, self.side))
        of_noise = self.from_noise(noise.reshape(-1, 1, self.side, self.side))
        planes = of_image[:, None] + of_noise.unflatten(0, (len(noise), samples))
        planes = F.leaky_relu(planes.flatten(0, 1), SLOPE)
        for layer in self.layers:
            planes = F.leaky_relu(layer(planes), SLOPE)
        codes = self.scale * self.head(planes.flatten(1))
        return codes.unflatten(0, (images, samples))


CONV_ENCODERS: dict[str, type[StochasticEncoder]] = {
    "gaussian": ConvGaussianEncoder,
    "flow": ConvFlowEncoder,
    "concat": ConvPlaneEncoder,
}


def make_conv_encoder(
    kind: str,
    pixels: int,
    hidden: Sequence[int],
    codes: int,
    generator: torch.Generator,
    depth: int = 1,
    noise_hidden: int | None = None,
) -> StochasticEncoder:
    """As `recognition.make_encoder`; `hidden` are kernels of the convolutions, concat the plane."""
    arguments = (kind, pixels, hidden, codes, generator, depth, noise_hidden or NOISE_UNITS)
    return make_encoder(*arguments, encoders=CONV_ENCODERS)


def kept_planes(pixels: int, hidden: Sequence[int]) -> int:
    """Numbers of the planes of all layers before and after each leaky ReLU."""
    side = isqrt(pixels)
    return 2 * sum(n * (side // STRIDE**layer) ** 2 for layer, n in enumerate(hidden, 1))


def _conv(planes: int, out: int, generator: torch.Generator) -> nn.Conv2d:
    """Weights ~ N(0, 2 / fan_in), biases 0."""
    layer = nn.Conv2d(planes, out, KERNEL, STRIDE, padding=KERNEL // 2)
    scale = (2 / (planes * KERNEL**2)) ** 0.5
    nn.init.normal_(layer.weight, std=scale, generator=generator)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
