"""Convolutions in stages, down to a code and up from it: appendix D of Pu et al. 2017.

A layer is a convolution, a leaky ReLU and batch normalisation, in the order printed. A stage halves
(the first: quarters) the side and is followed by a stack of 3x3 layers with an identity shortcut
around them: section 5.3 has residual connections, the appendix does not say where. The way up
mirrors the way down.

Shapes: R rows, C planes of side * side numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from steinvae.models.batch_norm import Again, BatchNorm
from steinvae.models.conv import SLOPE

COLOURS = 3
COMPILER = "inductor"
"""Backend of torch.compile, its default."""

FIRST, FIRST_STRIDE = 7, 4
"""Kernel and stride next to the image."""

KERNEL, STRIDE = 3, 2


class Layer(nn.Module):
    """Convolution, leaky ReLU, batch normalisation."""

    convolution: nn.Conv2d | nn.ConvTranspose2d
    norm: BatchNorm

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = BatchNorm(convolution.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.convolution(x))

    def after(self, convolved: Tensor) -> Tensor:
        """What follows the convolution."""
        return self.norm(F.leaky_relu(convolved, SLOPE))


class Stack(nn.Module):
    """x + L(...L(x)), L 3x3 layers of stride 1."""

    def __init__(self, planes: int, layers: int) -> None:
        super().__init__()
        same = (nn.Conv2d(planes, planes, KERNEL, padding=KERNEL // 2) for _ in range(layers))
        self.layers = nn.Sequential(*(Layer(convolution) for convolution in same))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if len(self.layers) else x


class Down(nn.Module):
    """`planes` of an image's size to the planes of a code; `hidden` are the kernels of the stages.

    `codes` planes come out of a 1x1 convolution where they are not as many as the last stage has.
    """

    def __init__(self, planes: int, hidden: Sequence[int], stack: int, codes: int) -> None:
        super().__init__()
        self.first = Layer(nn.Conv2d(planes, hidden[0], FIRST, FIRST_STRIDE, padding=FIRST // 2))
        halved = (nn.Conv2d(a, b, KERNEL, STRIDE, padding=KERNEL // 2) for a, b in pairwise(hidden))
        self.enter = nn.ModuleList(Layer(convolution) for convolution in halved)
        self.stacks = nn.ModuleList(Stack(kernels, stack) for kernels in hidden)
        self.last = nn.Identity() if codes == hidden[-1] else nn.Conv2d(hidden[-1], codes, 1)
        self.recompute = False

    def convolve(self, x: Tensor, planes: slice = slice(None), *, bias: bool = True) -> Tensor:
        """The first convolution, or what some of its planes add to it."""
        own = self.first.convolution
        shift = own.bias if bias else None
        return F.conv2d(x, own.weight[:, planes], shift, FIRST_STRIDE, FIRST // 2)

    def forward(self, convolved: Tensor) -> Tensor:
        """From what `convolve` gives, (R, hidden[0], ...), to (R, codes, ...)."""
        x, enter = convolved, (self.first.after, *self.enter)
        for own, stack in zip(enter, self.stacks, strict=True):
            x = through(_chain(own, stack), x, self.recompute)
        return self.last(x)


class Up(nn.Module):
    """The mirror of `Down`: planes of a code to the colours of an image."""

    def __init__(self, hidden: Sequence[int], stack: int, codes: int) -> None:
        super().__init__()
        self.first = nn.Identity() if codes == hidden[-1] else nn.Conv2d(codes, hidden[-1], 1)
        up = list(reversed(hidden))
        self.stacks = nn.ModuleList(Stack(kernels, stack) for kernels in up)
        self.leave = nn.ModuleList(Layer(_transposed(a, b)) for a, b in pairwise(up))
        self.last = _transposed(hidden[0], COLOURS, FIRST, FIRST_STRIDE)
        self.recompute = False

    def forward(self, planes: Tensor) -> Tensor:
        """(R, codes, s, s) -> (R, 3, side, side)."""
        x = self.first(planes)
        for stack, leave in zip(self.stacks, (*self.leave, self.last), strict=True):
            x = through(_chain(stack, leave), x, self.recompute)
        return x


def code_side(side: int, stages: int, setting: str = "data.crop") -> int:
    """Side of the last planes: that of the image over 4 * 2^(stages - 1).

    Errors: ValueError where that does not divide it.
    """
    scale = FIRST_STRIDE * STRIDE ** (stages - 1)
    if side % scale:
        raise ValueError(
            f"{setting} must be a multiple of {scale} for {stages} stages of model.hidden, "
            f"got {side}"
        )
    return side // scale


def code_planes(codes: int, side: int) -> int:
    """Planes of a code of `codes` numbers at side * side places.

    Errors: ValueError where it has no whole number of them.
    """
    if codes % side**2:
        raise ValueError(
            f"model.codes must be a multiple of {side**2}, the {side} x {side} places of a code "
            f"of model.network residual, got {codes}"
        )
    return codes // side**2


def start_scale(layer: nn.Conv2d | nn.ConvTranspose2d, gain: float = 2.0) -> float:
    """Standard deviation sqrt(gain / fan_in) of the first weights; the fan-in of a transposed
    convolution is what a pixel sees of it."""
    (size, _), (stride, _) = layer.kernel_size, layer.stride
    seen = size**2 / stride**2 if isinstance(layer, nn.ConvTranspose2d) else size**2
    return (gain / (layer.in_channels * seen)) ** 0.5


def kept_numbers(hidden: Sequence[int], stack: int, side: int, *, recompute: bool) -> int:
    """Numbers that autograd keeps of a row of `Down` or `Up`: three for each output of a layer
    (convolved, rectified, normalised); with `recompute` those between stages and of the largest.
    """
    sides = [code_side(side, number + 1) for number in range(len(hidden))]
    outputs = [planes * own**2 for planes, own in zip(hidden, sides, strict=True)]
    stages = [3 * (1 + stack) * numbers for numbers in outputs]
    return sum(outputs) + max(stages) if recompute else sum(stages)


def through(stage: Callable[[Tensor], Tensor], x: Tensor, recompute: bool) -> Tensor:
    """stage(x), whose activations are kept, or computed again on the way back."""
    if not (recompute and torch.is_grad_enabled()):
        return stage(x)
    return checkpoint(
        stage,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), Again()),
    )


def _chain(*parts: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def chained(x: Tensor) -> Tensor:
        for part in parts:
            x = part(x)
        return x

    return chained


def _transposed(
    planes: int, out: int, kernel: int = KERNEL, stride: int = STRIDE
) -> nn.ConvTranspose2d:
    """`stride` times the side."""
    padding = kernel // 2
    beyond = stride + 2 * padding - kernel
    return nn.ConvTranspose2d(planes, out, kernel, stride, padding, output_padding=beyond)
