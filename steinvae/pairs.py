"""Which decoder evaluates which codes, and the gradients of those evaluations.

Shapes: M decoders of P parameters, B images, S = groups * k codes an image (code i of group j is
j k + i), n codes of an image that one decoder evaluates, d code dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.models import GenerativeModel
from steinvae.particles import ParticleEnsemble
from steinvae.weights import group_weights

_SMALLEST_COTANGENT = 1e-20
"""Below float64's rounding of a sum that has a weight of at least 1/k in it."""


@dataclass(frozen=True)
class Pairing:
    """`full`: every decoder sees every code. `strat`: the groups of codes are dealt out to them.

    `sliced` (eqs. 12 and 13 as printed): decoders come in tuples of k too, and decoder (j', i) sees
    the codes (j, i) of its own i alone; full or dealt within that slice.
    """

    kind: str = "full"
    group: int = 1
    permutation: Tensor | None = None
    """(groups,) order in which groups are dealt."""

    sliced: bool = False

    def deal(self, codes: Tensor, decoders: int) -> Tensor:
        """(B, S, ...) -> (M or 1, B, n, ...), a view where it can be."""
        if self.sliced:
            return self._deal_slices(codes, decoders)
        if self.kind == "full":
            return codes[None]
        return deal_codes(codes, decoders, self.permutation, self.group)

    def collect(self, values: Tensor) -> Tensor:
        """(M, B, n, ...) of pairs -> (B, S, ...), the mean over the decoders that saw a code."""
        if self.kind == "full":
            return values.mean(0)
        groups = values.transpose(0, 1).flatten(1, 2).unflatten(1, (-1, self.group))
        if self.permutation is not None:
            groups = groups.index_select(1, self.permutation.argsort())
        return groups.flatten(1, 2)

    def decoders_per_code(self, decoders: int) -> int:
        """How many decoders evaluate one code."""
        if self.kind == "strat":
            return 1
        return decoders // self.group if self.sliced else decoders

    def _deal_slices(self, codes: Tensor, decoders: int) -> Tensor:
        tuples = decoders // self.group
        slices = codes.unflatten(1, (-1, self.group)).movedim(2, 0)  # (k, B, groups, ...)
        if self.kind == "full":
            dealt = slices.expand(tuples, *slices.shape)
        else:
            flat = slices.flatten(0, 1)
            dealt = deal_codes(flat, tuples, self.permutation).unflatten(1, (self.group, -1))
        return dealt.flatten(0, 1)


def deal_codes(
    codes: Float[Tensor, "B S *d"], decoders: int, permutation: Tensor | None, group: int = 1
) -> Float[Tensor, "M B n *d"]:
    """Split every image's codes into one block per decoder (`strat` pairing).

    Decoder m gets block m of the permuted groups, so S pairs an image are evaluated instead of M S.
    All scores stay unbiased. Shapes: codes (B, S, ...), permutation (S / group,) -> (M, B, S / M,
    ...).
    """
    count = codes.shape[1] // group
    if count % decoders:
        raise ValueError(
            f"pairing strat: code_particles must be a multiple of {decoders}, got {count}"
        )
    if permutation is not None:
        if group > 1:
            members = torch.arange(group, device=permutation.device)
            permutation = (permutation[:, None] * group + members).flatten()
        codes = codes.index_select(1, permutation)
    return codes.unflatten(1, (decoders, codes.shape[1] // decoders)).transpose(0, 1)


class PairGradients(NamedTuple):
    """What one forward and one backward pass of the decoders give."""

    codes: Tensor
    """(B, S, d): mean over the decoders of a code of grad_z log p(x | z, theta)."""

    theta: Tensor
    """(M, P): sum over pairs of w grad_theta log p(x | z, theta); w = 1 where unweighted."""

    log_likelihood: Tensor
    """(M, B, n) nats."""

    weights: Tensor | None = None
    """(M, B, n), each group summing to 1; None where unweighted."""


def pair_gradients(
    model: GenerativeModel,
    theta: ParticleEnsemble,
    codes: Float[Tensor, "B S d"],
    pixels: Float[Tensor, "B X"],
    pairing: Pairing,
    log_ratio: Float[Tensor, "B S"] | None = None,
) -> PairGradients:
    """Gradients of log p(x | z, theta) of all pairs in codes and decoders, one backward pass.

    `log_ratio` = log p(z) - log q(z | x) asks for importance weights in theta, softmax over the
    codes of a group of log p(x, z | theta) - log q(z | x), one set for each decoder. The gradient
    in the codes stays unweighted. One backward pass serves both: the cotangent of a pair is its
    weight, and a pair's gradient in its own code is then divided by that weight. (It is kept above
    1e-20 so that it can be; a model whose codes influence each other would not allow it.)
    """
    with torch.enable_grad():
        leaves = theta.leaves()
        if log_ratio is None:
            free = codes.detach().requires_grad_()
            dealt = pairing.deal(free, theta.particles)
            log_likelihood = model.log_likelihood(leaves, dealt, pixels)
            to_codes, *to_theta = torch.autograd.grad(
                log_likelihood.sum(), [free, *leaves.values()]
            )
            to_codes = to_codes / pairing.decoders_per_code(theta.particles)
            return PairGradients(to_codes, theta.flatten(to_theta), log_likelihood.detach())
        dealt = pairing.deal(codes.detach(), theta.particles)
        pairs = dealt.expand(theta.particles, -1, -1, -1).clone().requires_grad_()
        log_likelihood = model.log_likelihood(leaves, pairs, pixels)
        log_weights = log_likelihood.detach() + pairing.deal(log_ratio, theta.particles)
        weights = group_weights(log_weights, pairing.group)
        cotangent = weights.clamp_min(_SMALLEST_COTANGENT)
        to_pairs, *to_theta = torch.autograd.grad(
            log_likelihood, [pairs, *leaves.values()], grad_outputs=cotangent
        )
    to_codes = pairing.collect(to_pairs / cotangent[..., None])
    return PairGradients(to_codes, theta.flatten(to_theta), log_likelihood.detach(), weights)
