"""Gaussian colours behind the all-convolutional decoder of Pu et al. 2017, appendix D.

Shapes: M decoders, B images of X = 3 * side * side numbers, n codes an image, d = s * s * C code
dimensions: C planes of s * s places, a place's planes side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isqrt, log, pi

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

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

    def forward(self, codes: Float[Tensor, "R d"]) -> Float[Tensor, "R 3 side side"]:
        planes = codes.unflatten(1, (self.places, self.places, self.planes)).permute(0, 3, 1, 2)
        return self.up(planes)


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
        self._bfloat16 = False
        self.parameters = self._parameters()
        self.statistics = torch.empty(0)
        """(M, K): running means and variances of every layer, of each decoder; see `track`."""
        self.finest_blocks = (planes,) * places**2
        self._gradients = _Gradients(self.net)

    def compute(self, *, recompute: bool, bfloat16: bool, compiled: bool = False) -> None:
        """See `models.Computes`. All decoders run one compiled graph."""
        self.net.up.recompute, self._bfloat16 = recompute, bfloat16
        if compiled:
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
            each.append(
                functional_call(
                    self._gradients, _named(own, buffers), (z.flatten(0, 1), pixels, self._call)
                ).unflatten(0, z.shape[:2])
            )
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
        found = []
        for own, buffers, number in self._particles(theta):
            z = codes[number if len(codes) > 1 else 0]
            weights_of = None
            if weigh is not None:
                images, samples = z.shape[:2]
                block = (slice(number, number + 1), slice(images), slice(samples))
                weights_of = _weights_of(weigh, block, z.shape[:2])
            wanted = own if into is not None else {}
            leaves = {name: value.detach().requires_grad_() for name, value in wanted.items()}
            pairs, to_theta = functional_call(
                self._gradients,
                _named(own | leaves, buffers),
                (z.flatten(0, 1), pixels, self._call),
                {"leaves": leaves, "weights_of": weights_of},
            )
            for name, total in (into or {}).items():
                gradient, buffer = to_theta[name], total[number]
                _ = buffer.copy_(gradient) if fresh else buffer.add_(gradient)
            found.append([each.unflatten(0, z.shape[:2]) for each in pairs])
        log_likelihood, to_codes, *weights = (
            torch.stack(each) for each in zip(*found, strict=True)
        )
        return ClosedForm(log_likelihood, to_codes, weights[0] if weights else None)

    def _call(self, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, torch.bfloat16, enabled=self._bfloat16):
            return self.net(codes).to(codes.dtype)

    def _particles(
        self, theta: dict[str, Tensor]
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor], int]]:
        """Parameters and statistics of every decoder, and its number."""
        shapes = {name: own.shape for name, own in self.net.named_buffers()}
        sizes = [shape.numel() for shape in shapes.values()]
        for number, statistics in enumerate(self.statistics):
            own = {name: value[number] for name, value in theta.items()}
            yield own, dict(zip(shapes, statistics.split(sizes), strict=True)), number


class _Gradients(nn.Module):
    """Log-likelihoods of rows of codes, and their gradients where `leaves` are given.

    A module, so that the way back runs inside `functional_call` too: activations that are computed
    again need the same parameters.
    """

    def __init__(self, net: Decoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, codes, pixels, call, leaves=None, weights_of=None):
        if leaves is None:
            return self._log_likelihood(codes, pixels, call)
        with torch.enable_grad():
            z = codes.detach().requires_grad_()
            log_likelihood = self._log_likelihood(z, pixels, call)
            values, ones = log_likelihood.detach(), torch.ones_like(log_likelihood)
            inputs = list(leaves.values())
            if weights_of is None:
                to_codes, *to_theta = torch.autograd.grad(log_likelihood, [z, *inputs], ones)
                found = (values, to_codes)
            else:
                weights = weights_of(values)
                (to_codes,) = torch.autograd.grad(log_likelihood, z, ones, retain_graph=True)
                to_theta = torch.autograd.grad(log_likelihood, inputs, weights)
                found = (values, to_codes, weights)
        return found, dict(zip(leaves, to_theta, strict=True))

    def _log_likelihood(self, codes: Tensor, pixels: Tensor, call: Callable) -> Tensor:
        """codes (B n, d), pixels (B, X) -> (B n,) nats."""
        drawn, scale = call(codes), self.net.log_scale
        samples = len(codes) // len(pixels)
        target = (pixels / SPREAD).view(len(pixels), 1, *drawn.shape[1:])
        apart = (target - drawn.unflatten(0, (len(pixels), samples))).square().sum((2, 3, 4))
        constant = pixels.shape[1] * (scale + log(SPREAD) + 0.5 * log(2 * pi))
        return (-0.5 * (-2 * scale).exp() * apart - constant).flatten()


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


def _weights_of(weigh: Weigh, block: tuple[slice, slice, slice], shape: torch.Size) -> Callable:
    def weights_of(log_likelihood: Tensor) -> Tensor:
        return weigh(log_likelihood.view(1, *shape), block).flatten()

    return weights_of
