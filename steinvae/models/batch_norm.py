"""Batch normalisation whose statistics may be those of the rows of several processes.

Shapes: R rows, C planes of side * side numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON, MOMENTUM = 1e-5, 0.1
"""Torch's defaults."""

_ROWS = (0, 2, 3)


@runtime_checkable
class Ranks(Protocol):
    """Processes with as many rows each."""

    size: int

    def sum(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Over the processes, of each tensor."""
        ...


class BatchNorm(nn.Module):
    """(x - mean) / sd of every plane, times 1 + gain, plus shift (Ioffe & Szegedy 2015).

    In training mode mean and sd are those of the rows at hand, and running averages of them are
    kept for the other mode. The gain counts from 1, so that all parameters have a prior around 0.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(planes))
        self.shift = nn.Parameter(torch.zeros(planes))
        self.register_buffer("mean", torch.zeros(planes))
        self.register_buffer("variance", torch.ones(planes))
        self.ranks: Ranks | None = None
        """Who has the other rows of the minibatch; see `over_ranks`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.ranks is not None:
            return self._of_all(x, self.ranks)
        momentum = 0.0 if Again.running else MOMENTUM
        return F.batch_norm(
            x,
            self.mean,
            self.variance,
            1 + self.gain,
            self.shift,
            self.training,
            momentum,
            EPSILON,
        )

    def _of_all(self, x: Tensor, ranks: Ranks) -> Tensor:
        normalised, mean, variance = _Normalised.apply(x, ranks)
        if not Again.running:
            count = x.numel() // x.shape[1] * ranks.size
            self.mean.lerp_(mean.to(self.mean), MOMENTUM)
            self.variance.lerp_((variance * (count / (count - 1))).to(self.variance), MOMENTUM)
        gain, shift = _by_plane(1 + self.gain), _by_plane(self.shift)
        return (normalised * gain + shift).to(x.dtype)


def over_ranks(net: nn.Module, ranks: Ranks) -> None:
    """From now on statistics of all layers of `net` in training mode are of all processes' rows.

    A pass, and the way back, then wait for all processes, which must make the same passes.
    """
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.ranks = ranks


class Again:
    """A block in which activations are computed a second time, so that averages must not move."""

    running = False

    def __enter__(self) -> None:
        Again.running = True

    def __exit__(self, *_: object) -> None:
        Again.running = False


class _Normalised(torch.autograd.Function):
    """x^ = (x - mean) / sqrt(variance + EPSILON), mean and variance (C,) of all processes' rows.

    A gradient g of the sum of all processes' losses in their x^ goes back as
        (g - mean(g) - x^ mean(g x^)) / sqrt(variance + EPSILON),
    again with means over all rows. Sums are made in float32 at least.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
        wide = _wide(x)
        share = 1 / (x.numel() // x.shape[1] * ranks.size)
        mean = ranks.sum([wide.sum(_ROWS)])[0] * share
        centred = wide - _by_plane(mean)
        variance = ranks.sum([centred.square().sum(_ROWS)])[0] * share
        scale = (variance + EPSILON).rsqrt()
        normalised = (centred * _by_plane(scale)).to(x.dtype)
        ctx.save_for_backward(normalised, scale)
        ctx.ranks, ctx.share = ranks, share
        ctx.mark_non_differentiable(mean, variance)
        return normalised, mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        normalised, scale = ctx.saved_tensors
        g, x = _wide(gradient), _wide(normalised)
        sums = ctx.ranks.sum([g.sum(_ROWS), (g * x).sum(_ROWS)])
        mean, along = (_by_plane(each * ctx.share) for each in sums)
        return ((g - mean - x * along) * _by_plane(scale)).to(normalised.dtype), None


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _by_plane(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
