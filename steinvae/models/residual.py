"""Gaussian colours behind the all-convolutional decoder of Pu et al. 2017, appendix D.

Shapes: M decoders, B images of X = 3 * side * side numbers, n codes an image, d = s * s * C code
dimensions: C planes of s * s places, a place's planes side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isqrt, log, pi
from typing import NamedTuple

import torch
import torch._functorch.config as functorch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from steinvae.models.batch_norm import Ranks, over_ranks
from steinvae.models.closed_form import ClosedForm, Weigh
from steinvae.models.stages import COLOURS, COMPILER, Up, code_planes, code_side, start_scale
from steinvae.particles import Parameter

SPREAD = 0.25
"""About the standard deviation of a pixel, black 0 and white 1: networks see and draw in units of
it, and it is the decoders' first standard deviation."""


class Decoder(nn.Module):
    """One particle's network: codes to mean images in units of SPREAD, and log sigma / SPREAD."""

    def __init__(self, hidden: Sequence[int], stack: int, planes: int, places: int) -> None:
        super().__init__()
        self.places, self.planes = places, planes
        self.up = Up(hidden, stack, planes)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.in_bfloat16 = False

    def forward(self, codes: Float[Tensor, "R d"]) -> Float[Tensor, "R 3 side side"]:
        planes = codes.unflatten(1, (self.places, self.places, self.planes)).permute(0, 3, 1, 2)
        with multiplied_in(codes, self.in_bfloat16):
            return self.up(planes).to(codes.dtype)


class GaussianResidual:
    """p(x | z, theta) = prod_i N(x_i; mu_i(z, theta), sigma(theta)^2), mu the mirror of `Down`.

    The paper does not say what p(x | z) of ImageNet is. Here x is (grey levels - mean) / 255, and
    one sigma for all numbers of an image is a parameter, sigma = 0.25 exp(s): a fixed sigma would
    decide how much the pixels count beside prior and label, a learned one is the data's own. theta
    has s, weights, biases, and gains counted from 1, all with the prior N(0, I).

    In training (`pair_gradients`) batch normalisation uses the mean and deviation of the particle's
    own pairs of the minibatch; pairs then depend on each other, as in every network with batch
    normalisation. Running averages, for each particle, serve evaluation (`log_likelihood`), where
    log p(x | z, theta) is a density. Decoders take turns: a loop (docs/images.md has the times).
    """

    normalised = True
    """As evaluated, with running averages."""

    whole_minibatch = True
    """Not to be cut into chunks of images, which would have statistics of their own."""

    def __init__(
        self,
        codes: int,
        hidden: Sequence[int],
        pixels: int,
        stack: int,
    ) -> None:
        self.side = image_side(pixels)
        places = code_side(self.side, len(hidden))
        planes = code_planes(codes, places)
        with torch.device("meta"):
            self.net = Decoder(hidden, stack, planes, places)
        self.parameters = self._parameters()
        self.statistics = torch.empty(0)
        """(M, K): running means and variances of every layer, of each decoder; see `track`."""
        self.finest_blocks = (planes,) * places**2
        self._pass = _Pass(self.net)

    def compute(self, *, recompute: bool, bfloat16: bool, compiled: bool = False) -> None:
        """See `models.Computes`. All decoders run one compiled graph."""
        self.net.up.recompute, self.net.in_bfloat16 = recompute, bfloat16
        if compiled:
            functorch.donated_buffer = False  # weights of codes take two ways back through a pass
            self.net.up.compile(backend=COMPILER)

    def _parameters(self) -> list[Parameter]:
        """Weights ~ N(0, 2 / fan_in) before a leaky ReLU, N(0, 1 / fan_in) elsewhere; else 0."""
        scales = {
            f"{name}.weight": start_scale(layer, 2.0 if "convolution" in name else 1.0)
            for name, layer in self.net.named_modules()
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        }
        return [
            Parameter(name, tuple(own.shape), scales.get(name, 0.0))
            for name, own in self.net.named_parameters()
        ]

    def track(self, particles: int, device: torch.device | str) -> None:
        """Fresh statistics for so many decoders: means 0, variances 1."""
        fresh = [
            torch.full(own.shape, float(name.endswith("variance")))
            for name, own in self.net.named_buffers()
        ]
        self.statistics = torch.cat(fresh).to(device).repeat(particles, 1)

    def share(self, ranks: Ranks) -> None:
        """See `models.HasStatistics`."""
        over_ranks(self.net, ranks)

    def log_likelihood(
        self,
        theta: dict[str, Tensor],
        codes: Float[Tensor, "#M B n d"],
        pixels: Float[Tensor, "B X"],
    ) -> Float[Tensor, "M B n"]:
        """log p(x_b | z_bs, theta_m) in nats, summed over pixels, by the running statistics.

        Shapes: codes (M or 1, B, n, d), pixels (B, X), (grey levels - mean) / 255 -> (M, B, n).
        """
        self.net.eval()
        each = []
        for own, buffers, number in self._particles(theta):
            z = codes[number if len(codes) > 1 else 0]
            found = functional_call(self._pass, _named(own, buffers), (z.flatten(0, 1), pixels))
            each.append(found.log_likelihood.unflatten(0, z.shape[:2]))
        return torch.stack(each)

    def mean_images(
        self, theta: dict[str, Tensor], codes: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n X"]:
        """E[x | z_i, theta_m], the decoders taking turns: (n, d) -> (n, X), as x is."""
        self.net.eval()
        decoders = len(self.statistics)
        out = codes.new_empty(len(codes), COLOURS * self.side**2)
        for own, buffers, number in self._particles(theta):
            z = codes[number::decoders]
            if len(z):
                drawn = functional_call(self.net, own | buffers, (z,))
                out[number::decoders] = SPREAD * drawn.flatten(1)
        return out

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
        """See `models.HasPairGradients`. Moves the running statistics.

        Where pairs have weights there are two ways back: with batch normalisation a code acts on
        all pairs, and its unweighted gradient is no multiple of the weighted one.
        """
        del group  # all pairs of a decoder are one block
        self.net.train()
        passes = []
        for own, buffers, number in self._particles(theta):
            z = codes[number if len(codes) > 1 else 0]
            leaves = {name: value.detach().requires_grad_() for name, value in own.items()}
            wanted = leaves if into is not None else {}
            weights_of = None if weigh is None else _of_block(weigh, number, z.shape[:2])
            parameters = _named(leaves, buffers)
            arguments = (z.flatten(0, 1), pixels, wanted, weights_of)
            found: _Found = functional_call(self._pass, parameters, arguments)
            for name, gradient in found.theta.items():
                buffer = into[name][number]  # type: ignore[index]
                _ = buffer.copy_(gradient) if fresh else buffer.add_(gradient)
            passes.append(found)

        def together(rows: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(rows)).unflatten(1, codes.shape[1:3])

        return ClosedForm(
            log_likelihood=together([found.log_likelihood for found in passes]),
            codes=together([found.codes for found in passes]),
            weights=together([found.weights for found in passes]) if weigh else None,
        )

    def _particles(
        self, theta: dict[str, Tensor]
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor], int]]:
        """Parameters and statistics of every decoder, and its number."""
        shapes = {name: own.shape for name, own in self.net.named_buffers()}
        sizes = [shape.numel() for shape in shapes.values()]
        for number, statistics in enumerate(self.statistics):
            own = {name: value[number] for name, value in theta.items()}
            yield own, dict(zip(shapes, statistics.split(sizes), strict=True)), number


WeightsOf = Callable[[Tensor], Tensor]
"""Log-likelihoods of a decoder's rows (R,) -> their weights (R,)."""


class _Found(NamedTuple):
    """What a pass over rows of codes gives."""

    log_likelihood: Tensor
    """(R,) nats."""

    codes: Tensor
    """(R, d) gradient, unweighted; empty where there was no way back."""

    weights: Tensor
    """(R,), or empty."""

    theta: dict[str, Tensor]
    """Gradients of the parameters that were asked for, weighted where there are weights."""


class _Pass(nn.Module):
    """One decoder's log-likelihoods, and their gradients where `wanted` parameters are given.

    A module, so that the way back runs inside `functional_call` too: activations that are computed
    again need the same parameters.
    """

    def __init__(self, net: Decoder) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        codes: Tensor,
        pixels: Tensor,
        wanted: dict[str, Tensor] | None = None,
        weights_of: WeightsOf | None = None,
    ) -> _Found:
        none = codes.new_empty(0)
        if wanted is None:
            return _Found(self._log_likelihood(codes, pixels), none, none, {})
        with torch.enable_grad():
            z = codes.detach().requires_grad_()
            values = self._log_likelihood(z, pixels)
            ones, inputs = torch.ones_like(values), list(wanted.values())
            if weights_of is None:
                weights = none
                to_codes, *to_theta = torch.autograd.grad(values, [z, *inputs], ones)
            else:
                weights = weights_of(values.detach())
                (to_codes,) = torch.autograd.grad(values, z, ones, retain_graph=True)
                to_theta = torch.autograd.grad(values, inputs, weights)
        gradients = dict(zip(wanted, to_theta, strict=True))
        return _Found(values.detach(), to_codes, weights, gradients)

    def _log_likelihood(self, codes: Tensor, pixels: Tensor) -> Tensor:
        """codes (B n, d), pixels (B, X) -> (B n,) nats."""
        drawn, scale = self.net(codes), self.net.log_scale
        samples = len(codes) // len(pixels)
        target = (pixels / SPREAD).view(len(pixels), 1, *drawn.shape[1:])
        apart = (target - drawn.unflatten(0, (len(pixels), samples))).square().sum((2, 3, 4))
        constant = pixels.shape[1] * (scale + log(SPREAD) + 0.5 * log(2 * pi))
        return (-0.5 * (-2 * scale).exp() * apart - constant).flatten()


def multiplied_in(like: Tensor, bfloat16: bool) -> AbstractContextManager[object]:
    """A block in which matrix products and convolutions are made in bfloat16, or as they are."""
    return torch.autocast(like.device.type, torch.bfloat16) if bfloat16 else nullcontext()


def image_side(pixels: int) -> int:
    """Side of a square image of so many numbers in three colours."""
    side = isqrt(pixels // COLOURS)
    if COLOURS * side**2 != pixels:
        raise ValueError(
            f"model.network residual: expected square images in {COLOURS} colours, "
            f"got {pixels} numbers"
        )
    return side


def _named(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"net.{name}": value for name, value in (parameters | buffers).items()}


def _of_block(weigh: Weigh, number: int, shape: torch.Size) -> WeightsOf:
    """`weigh` for all pairs of one decoder, (images, codes) of them."""
    images, samples = shape
    block = (slice(number, number + 1), slice(images), slice(samples))
    return lambda values: weigh(values.view(1, images, samples), block).flatten()
