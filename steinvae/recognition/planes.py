"""The all-convolutional encoder of Pu et al. 2017, appendix D, on colour images.

Shapes: B images of X = 3 * side * side numbers, S codes an image, d = s * s * C code dimensions: C
planes of s * s places, a place's planes side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steinvae.models.residual import SPREAD, image_side, multiplied_in
from steinvae.models.stages import (
    COLOURS,
    COMPILER,
    Down,
    code_planes,
    code_side,
    start_scale,
)
from steinvae.recognition.base import StochasticEncoder
from steinvae.recognition.gaussian import LOG_SIGMA_START, GaussianEncoder


class _Computes:
    """What both encoders say of how they compute."""

    down: Down
    _bfloat16 = False

    def compute(self, *, recompute: bool, bfloat16: bool, compiled: bool = False) -> None:
        """See `models.Computes`."""
        self.down.recompute, self._bfloat16 = recompute, bfloat16
        if compiled:
            self.down.compile(backend=COMPILER)


class NoisePlaneEncoder(_Computes, StochasticEncoder):
    """z = f(x, xi): the noise is a plane stacked beside the three colours, as printed.

    Not injective, and dim xi = side * side is not d: its codes have no density. The first
    convolution is linear, so it runs once an image and once a noise; all others run for every code.
    In training mode batch normalisation sees all codes of the minibatch.
    """

    scale: float = 1.0
    """As that of `ConcatEncoder`."""

    whole_minibatch = True
    """Not to be cut into chunks of images, which would have statistics of their own."""

    def __init__(
        self,
        pixels: int,
        hidden: Sequence[int],
        codes: int,
        generator: torch.Generator,
        stack: int = 3,
    ) -> None:
        super().__init__()
        self.side = image_side(pixels)
        self.codes, self.noise_dimension = codes, self.side**2
        planes = code_planes(codes, code_side(self.side, len(hidden)))
        self.down = Down(COLOURS + 1, hidden, stack, planes)
        start(self.down, generator)

    def forward(
        self, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S e"]
    ) -> Float[Tensor, "B S d"]:
        images, planes = image_planes(pixels, self.side), noise.view(-1, 1, self.side, self.side)
        with multiplied_in(pixels, self._bfloat16):
            of_image = self.down.convolve(images, slice(None, COLOURS))
            of_noise = self.down.convolve(planes, slice(COLOURS, None), bias=False)
            both = of_image[:, None] + of_noise.unflatten(0, noise.shape[:2])
            codes = as_codes(self.down(both.flatten(0, 1)), pixels.dtype)
        return (self.scale * codes).unflatten(0, both.shape[:2])


class PlanesGaussianEncoder(_Computes, GaussianEncoder):
    """z = mu(x) + sigma(x) xi: the same stages on the three colours, and a 1x1 convolution each to
    mu and log sigma."""

    whole_minibatch = True

    def __init__(
        self,
        pixels: int,
        hidden: Sequence[int],
        codes: int,
        generator: torch.Generator,
        stack: int = 3,
    ) -> None:
        StochasticEncoder.__init__(self)
        self.side, self.codes = image_side(pixels), codes
        planes = code_planes(codes, code_side(self.side, len(hidden)))
        self.down = Down(COLOURS, hidden, stack, hidden[-1])
        self.to_mean, self.to_log_sigma = (nn.Conv2d(hidden[-1], planes, 1) for _ in range(2))
        start(self, generator)
        with torch.no_grad():  # else exp of it would begin with a spread of several
            self.to_log_sigma.weight.mul_(0.1)
            self.to_log_sigma.bias.fill_(LOG_SIGMA_START)  # type: ignore[union-attr]

    def features(self, pixels: Float[Tensor, "B X"]) -> Tensor:
        """The last planes, (B, H, s, s)."""
        with multiplied_in(pixels, self._bfloat16):
            images = image_planes(pixels, self.side)
            return self.down(self.down.convolve(images)).to(pixels.dtype)

    def moments(self, features: Tensor) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B d"]]:
        """mu and log sigma, each (B, d)."""
        heads = (self.to_mean, self.to_log_sigma)
        mean, log_sigma = (as_codes(head(features), features.dtype) for head in heads)
        return mean, log_sigma


PLANES_ENCODERS: dict[str, type[NoisePlaneEncoder] | type[PlanesGaussianEncoder]] = {
    "concat": NoisePlaneEncoder,
    "gaussian": PlanesGaussianEncoder,
}


def image_planes(pixels: Float[Tensor, "B X"], side: int) -> Tensor:
    """(B, 3, side, side) in units of SPREAD, beside which noise is of equal size; channels last."""
    planes = (pixels / SPREAD).view(-1, COLOURS, side, side)
    return planes.contiguous(memory_format=torch.channels_last)


def as_codes(planes: Float[Tensor, "R C s s"], dtype: torch.dtype) -> Float[Tensor, "R d"]:
    """A place's planes side by side, so that a block of codes is a place."""
    return planes.permute(0, 2, 3, 1).flatten(1).to(dtype)


def start(module: nn.Module, generator: torch.Generator) -> None:
    """Weights ~ N(0, 2 / fan_in) before a leaky ReLU, N(0, 1 / fan_in) elsewhere; biases 0."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            scale = start_scale(layer, 2.0 if name.endswith("convolution") else 1.0)
            nn.init.normal_(layer.weight, std=scale, generator=generator)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
