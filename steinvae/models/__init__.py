"""Generative models p(x | z, theta): a likelihood and the network that feeds it, one file each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from steinvae.models.batch_norm import Ranks
from steinvae.models.closed_form import ClosedForm, Weigh
from steinvae.particles import Parameter


@runtime_checkable
class GenerativeModel(Protocol):
    """What training and evaluation ask of a model; its parameters live in a `ParticleEnsemble`.

    A model may say `normalised = True`: exp(log p(x | z, theta)) sums, or integrates, to 1 over x.
    Bounds on log p(x) are bounds then; one that has `draw_images` need not say so.

    Shapes: M decoders, B images of X pixels, n codes an image, d code dimensions.
    """

    @property
    def parameters(self) -> Sequence[Parameter]:
        """The parameters of one decoder, in the order of the flat buffer."""
        ...

    def log_likelihood(self, theta: dict[str, Tensor], codes: Tensor, pixels: Tensor) -> Tensor:
        """log p(x_b | z_bs, theta_m): codes (M or 1, B, n, d), pixels (B, X) -> (M, B, n) nats."""
        ...

    def mean_images(self, theta: dict[str, Tensor], codes: Tensor) -> Tensor:
        """E[x | z_i, theta_m], the decoders taking turns: codes (n, d) -> (n, X) in [0, 1]."""
        ...


@runtime_checkable
class HasPairGradients(Protocol):
    """What a model may offer beside: gradients of all pairs without an autograd graph.

    Training then uses them. Shapes as in `GenerativeModel`.
    """

    def pair_gradients(
        self,
        theta: dict[str, Tensor],
        codes: Tensor,
        pixels: Tensor,
        into: dict[str, Tensor] | None,
        *,
        weigh: Weigh | None = None,
        group: int = 1,
        fresh: bool = True,
    ) -> ClosedForm:
        """log p(x_b | z_bs, theta_m) of all pairs with its gradient in each pair's code.

        `into`, shaped as theta, gets sum_pairs w grad_theta log p(x | z, theta): written where
        `fresh`, else added; None asks for none. w = `weigh(log_likelihood, block)` for blocks
        (slices of decoders, images and codes) that have whole groups of `group` codes, 1 without
        `weigh`.
        """
        ...


@runtime_checkable
class HasStatistics(Protocol):
    """A model with batch normalisation: running averages that no gradient moves, beside theta."""

    statistics: Tensor
    """(M, K), those of each decoder; they are kept and restored with theta."""

    def track(self, particles: int, device: torch.device | str) -> None:
        """Fresh statistics of so many decoders."""
        ...

    def share(self, ranks: Ranks) -> None:
        """From now on minibatches are those of all processes together."""
        ...


@runtime_checkable
class Computes(Protocol):
    """A network that can compute the same in several ways."""

    def compute(self, *, recompute: bool, bfloat16: bool, compiled: bool = False) -> None:
        """Settings `trainer.recompute`, `trainer.precision` and `trainer.compile`."""
        ...
