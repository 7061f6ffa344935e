"""What an update takes in and gives out, whatever the method is.

Shapes: M decoders of P parameters, B images, S codes an image, d code dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.config import MethodConfig
from steinvae.networks import Networks
from steinvae.sparse_rows import some_rows
from steinvae.stein import theta_direction


@runtime_checkable
class SharesTheta(Protocol):
    """Processes that each decode some images of a minibatch."""

    def by_feature(self, theta: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """theta and the mean of all scores (M, P), each process holding a slice of P."""
        ...

    def replicated(self, value: Tensor) -> Tensor:
        """What all have, as an argument beside slices."""
        ...

    def logsumexp(self, value: Tensor) -> Tensor:
        """log of the sum over the processes of exp(value), by entry."""
        ...


class Batch(NamedTuple):
    """One minibatch with all the randomness of its update."""

    pixels: Tensor
    """(B, X) in [0, 1], or counts of words as `sparse_rows`."""

    noise: Tensor
    """(B or 1, S, d) standard normal."""

    permutation: Tensor | None = None
    """(groups,) order in which groups of codes are dealt to decoders (`strat` pairing)."""

    monitor: bool = False
    """Whether to compute statistics that cost extra."""

    compare: bool = False
    """Whether to compare the Stein direction with the exact field, which costs several updates."""

    labels: Tensor | None = None
    """(L,) int64 classes of the last L images; None where labels are not in use."""

    temperature: float = 1.0
    """T: codes are moved towards p(x, z)^(1/T)."""

    ranks: SharesTheta | None = None
    """The processes that have the other rows of the minibatch, if any."""

    visible: Tensor | None = None
    """(B, X): the pixels that the encoder sees, where it does not see all of them."""

    probe: Tensor | None = None
    """(B, X) standard normal: where the search for an adversarial perturbation starts, if any."""

    reference: Tensor | None = None
    """(B or 1, R, d) standard normal: noise whose codes are weighed, where masses are moved."""

    def images(self, rows: slice) -> Batch:
        """The same for some of the images."""
        noise, reference = (
            each if each is None or len(each) == 1 else each[rows]
            for each in (self.noise, self.reference)
        )
        visible, probe = (
            None if each is None else each[rows] for each in (self.visible, self.probe)
        )
        pixels = some_rows(self.pixels, rows)
        return self._replace(
            pixels=pixels, noise=noise, reference=reference, visible=visible, probe=probe
        )

    @property
    def shown(self) -> Tensor:
        """(B, X): what the encoder sees."""
        return self.pixels if self.visible is None else self.visible


class Gradients(NamedTuple):
    """Descent gradients, ready for an optimiser, and what to log."""

    theta: Tensor
    """(M, P)."""

    eta: list[Tensor]
    """In the order of `Networks.eta()`."""

    stats: dict[str, Tensor]
    """Scalars: distortion = mean of -log p(x | z) in nats an image, and others."""

    labels: Sequence[Tensor] = ()
    """In the order of `Networks.labels.trained()`; empty where labels are not in use."""

    targets: Tensor | None = None
    """(B, S, d) moved codes for further regression steps of the encoder (K > 1)."""


ROOTS = ("code_spread", "direction", "moved")
"""Statistics that are roots of a mean square over images: of several parts the squares are
averaged."""

Objective = Callable[[Networks, Batch, MethodConfig, int], Gradients]


def temperature(method: MethodConfig, step: int) -> float:
    """T^(1 - step / annealing_steps) from T = `method.temperature` at step 0, then 1."""
    if step >= method.annealing_steps:
        return 1.0
    return method.temperature ** (1 - step / method.annealing_steps)


def decoder_gradient(
    networks: Networks,
    batch: Batch,
    method: MethodConfig,
    data_size: int,
    score: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Minus the Stein direction of the decoders, (M, P): of all, or of the slice of P held here.

    `score` (M, P) is that of this process's images; `weights` (M,) sum to 1 (eq. 12).
    """
    theta = networks.theta.flat
    if batch.ranks is not None:
        theta, score = batch.ranks.by_feature(theta, score)
        weights = None if weights is None else batch.ranks.replicated(weights)
    direction = theta_direction(
        theta, score, bandwidth=method.theta_bandwidth, data_size=data_size, weights=weights
    )
    return direction.neg_()


def encoder_gradients(
    networks: Networks, codes: Tensor, direction: Tensor, *, keep: bool = False
) -> list[Tensor]:
    """-1/(B S) sum_bs J_bs^T direction_bs, J the Jacobian of a code in the encoder's parameters.

    `keep` leaves the graph for another direction of the same codes.
    """
    images, samples, _ = codes.shape
    cotangent = direction / (-images * samples)
    return list(
        torch.autograd.grad(codes, networks.eta(), grad_outputs=cotangent, retain_graph=keep)
    )


def code_spread(codes: Tensor) -> Tensor:
    """Root mean square over images and dimensions of the codes' deviation from their image's mean.

    Zero for a single code. Divided by S, so that it is defined for S = 1.
    """
    drawn = codes.detach()
    return (drawn - drawn.mean(1, keepdim=True)).square_().mean().sqrt()


def within_variance(
    codes: Float[Tensor, "B S d"], ranks: SharesTheta | None = None
) -> Float[Tensor, " d"]:
    """Variance of each dimension within an image, mean over those of all processes."""
    square = (codes - codes.mean(1, keepdim=True)).square().sum((0, 1))
    if ranks is None:
        return square / (len(codes) * (codes.shape[1] - 1))
    counted = torch.cat([square, square.new_full((1,), len(codes) * (codes.shape[1] - 1.0))])
    square, count = ranks.logsumexp(counted.log()).exp().split([len(square), 1])
    return square / count
