"""Which decoder evaluates which codes, and the gradients of those evaluations.

Shapes: M decoders of P parameters, B images, S = groups * k codes an image (code i of group j is
j k + i), n codes of an image that one decoder evaluates, d code dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.models import GenerativeModel
from steinvae.models.closed_form import Block, Weigh
from steinvae.particles import ParticleEnsemble
from steinvae.sparse_rows import some_rows
from steinvae.weights import group_weights

PAIRS_AT_ONCE = 2**27
"""Numbers that the pairs of a chunk hold, 0.5 GB in float32; what a minibatch has more is decoded
in chunks of images, at the least one."""

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
        if self.sliced:
            return self._collect_slices(values)
        if self.kind == "full":
            return values.mean(0)
        return collect_codes(values, self.permutation, self.group)

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

    def _collect_slices(self, values: Tensor) -> Tensor:
        by_tuple = values.unflatten(0, (-1, self.group))  # (tuples, k, B, n, ...)
        if self.kind == "full":
            slices = by_tuple.mean(0)
        else:
            collected = collect_codes(by_tuple.flatten(1, 2), self.permutation)
            slices = collected.unflatten(0, (self.group, -1))
        return slices.movedim(0, 2).flatten(1, 2)  # (B, groups, k, ...) -> (B, S, ...)


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


def collect_codes(
    values: Float[Tensor, "M B n *d"], permutation: Tensor | None, group: int = 1
) -> Float[Tensor, "B S *d"]:
    """The inverse of `deal_codes`."""
    groups = values.transpose(0, 1).flatten(1, 2).unflatten(1, (-1, group))
    if permutation is not None:
        groups = groups.index_select(1, permutation.argsort())
    return groups.flatten(1, 2)


class PairGradients(NamedTuple):
    """What one forward and one backward pass of the decoders give."""

    codes: Tensor
    """(B, S, d): mean over the decoders of a code of grad_z log p(x | z, theta)."""

    theta: Tensor
    """(M, P): sum over pairs of w grad_theta log p(x | z, theta); w = 1 where unweighted. Empty
    where it was not asked for."""

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
    *,
    decoders: bool = True,
) -> PairGradients:
    """Gradients of log p(x | z, theta) of all pairs in codes and decoders, one backward pass.

    `log_ratio` = log p(z) - log q(z | x) asks for importance weights in theta, softmax over the
    codes of a group of log p(x, z | theta) - log q(z | x), one set for each decoder. The gradient
    in the codes stays unweighted. Without `decoders` theta gets no gradient, which spares half of
    the backward pass.

    A model's own `pair_gradients` are taken where it has them, else autograd. The minibatch goes
    in chunks of images, so that no more than PAIRS_AT_ONCE numbers are held, or one image's; that
    of a model with statistics of the `whole_minibatch` does not.
    """
    one = codes.shape[1] * pairing.decoders_per_code(theta.particles)
    chunk = max(1, PAIRS_AT_ONCE // (one * numbers_of_a_pair(model, codes, pixels)))
    if getattr(model, "whole_minibatch", False):
        chunk = len(pixels)
    gradients = _in_closed_form if has_closed_form(model) else _by_autograd
    into, parts = torch.empty_like(theta.flat) if decoders else theta.flat.new_empty(0), []
    for start in range(0, len(pixels), chunk):
        rows = slice(start, start + chunk)
        ratio = None if log_ratio is None else log_ratio[rows]
        arguments = (codes.detach()[rows], some_rows(pixels, rows), pairing, ratio)
        parts.append(gradients(model, theta, *arguments, into, fresh=start == 0))
    return parts[0] if len(parts) == 1 else _join(parts)


def numbers_of_a_pair(model: GenerativeModel, codes: Tensor, pixels: Tensor) -> int:
    """What a pair holds until its chunk is done: a gradient, or what autograd keeps; a model of
    convolutions says that itself (`kept_per_pair`)."""
    kept: int = getattr(model, "kept_per_pair", pixels.shape[-1])
    return codes.shape[-1] if has_closed_form(model) else kept


def check_shape(model: GenerativeModel, log_likelihood: Tensor, pairs: Tensor) -> None:
    """ValueError where a model does not give (M, B, n) numbers for codes (M, B, n, d)."""
    if log_likelihood.shape != pairs.shape[:3]:
        raise ValueError(
            f"{type(model).__name__}.log_likelihood must return one number a decoder, image and "
            f"code, (M, B, n) = {tuple(pairs.shape[:3])}, got {tuple(log_likelihood.shape)}"
        )


def has_closed_form(model: GenerativeModel) -> bool:
    """Whether a model brings `pair_gradients` of its own."""
    return callable(getattr(model, "pair_gradients", None))


def _join(parts: list[PairGradients]) -> PairGradients:
    """Chunks of images side by side; theta is one buffer."""
    weights = [part.weights for part in parts if part.weights is not None]
    return PairGradients(
        codes=torch.cat([part.codes for part in parts]),
        theta=parts[0].theta,
        log_likelihood=torch.cat([part.log_likelihood for part in parts], dim=1),
        weights=torch.cat(weights, dim=1) if weights else None,
    )


@torch.no_grad()
def _in_closed_form(
    model: Any,
    theta: ParticleEnsemble,
    codes: Tensor,
    pixels: Tensor,
    pairing: Pairing,
    log_ratio: Tensor | None,
    into: Tensor,
    *,
    fresh: bool,
) -> PairGradients:
    weigh: Weigh | None = None
    if log_ratio is not None:
        ratio = pairing.deal(log_ratio, theta.particles).expand(theta.particles, -1, -1)

        def weights_of(log_likelihood: Tensor, block: Block) -> Tensor:
            return group_weights(log_likelihood + ratio[block], pairing.group)

        weigh = weights_of

    found = model.pair_gradients(
        theta.leaves(),
        pairing.deal(codes, theta.particles),
        pixels,
        theta.views(into) if len(into) else None,
        weigh=weigh,
        group=pairing.group if weigh else 1,
        fresh=fresh,
    )
    return PairGradients(pairing.collect(found.codes), into, found.log_likelihood, found.weights)


@torch.enable_grad()
def _by_autograd(
    model: GenerativeModel,
    theta: ParticleEnsemble,
    codes: Tensor,
    pixels: Tensor,
    pairing: Pairing,
    log_ratio: Tensor | None,
    into: Tensor,
    *,
    fresh: bool,
) -> PairGradients:
    """One backward pass serves both gradients: the cotangent of a pair is its weight, and a pair's
    gradient in its own code is then divided by that weight. (It is kept above 1e-20 so that it can
    be; a model whose codes influence each other would not allow it.)
    """
    leaves, weights = theta.leaves(), None
    pairs = pairing.deal(codes, theta.particles).expand(theta.particles, -1, -1, -1)
    pairs = pairs.clone().requires_grad_()
    log_likelihood = model.log_likelihood(leaves, pairs, pixels)
    check_shape(model, log_likelihood, pairs)
    cotangent = torch.ones_like(log_likelihood)
    if log_ratio is not None:
        log_weights = log_likelihood.detach() + pairing.deal(log_ratio, theta.particles)
        weights = group_weights(log_weights, pairing.group)
        cotangent = weights.clamp_min(_SMALLEST_COTANGENT)
    wanted = theta.views(into) if len(into) else {}
    to_pairs, *to_theta = torch.autograd.grad(
        log_likelihood, [pairs, *(leaves[name] for name in wanted)], grad_outputs=cotangent
    )
    for buffer, gradient in zip(wanted.values(), to_theta, strict=True):
        _ = buffer.copy_(gradient) if fresh else buffer.add_(gradient)
    if weights is not None:
        to_pairs = to_pairs / cotangent[..., None]
    return PairGradients(pairing.collect(to_pairs), into, log_likelihood.detach(), weights)
