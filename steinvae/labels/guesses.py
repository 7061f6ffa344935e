"""Unlabelled images that count as labelled where the particles agree: classification EM.

The posterior of section 4 has no label term for an image without a label: summed over classes it is
1. Here its class is a variable of its own, and a step puts the most probable value in its place
where that is probable enough (Celeux & Govaert 1992; entropy minimisation of Grandvalet & Bengio
2005 in the limit). The probability is that of prediction, averaged over label decoders and codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.gradients import Batch, SharesTheta
from steinvae.labels.softmax import SoftmaxLabels
from steinvae.networks import Networks

KEPT = 0.98
"""Share of the running mean of predictions that an update keeps: some fifty minibatches."""

_LEAST = 1e-3
"""Of that mean, as a divisor: a class that is never predicted is not blown up further."""


class Guesses(NamedTuple):
    """What unlabelled codes gain from their own classes."""

    codes: Tensor
    """(B, S, d): mean over label decoders of grad_z log p(y | z, theta~), 0 where y is unsure."""

    taken: Tensor
    """(B,) bool: images whose class is sure enough."""


@torch.no_grad()
def guess(
    networks: Networks,
    heads: SoftmaxLabels,
    batch: Batch,
    codes: Float[Tensor, "B S d"],
    above: float,
    frequencies: Float[Tensor, " C"] | None = None,
) -> Guesses:
    """The pull of the codes of the first B images, which have no label, to their most probable
    class y where p(y | x) = mean_ks p(y | f(x, xi_s), theta~_k) is more than `above`.

    x is the image itself; `codes` are those of what the update shows of it, and learn to say the
    same. Pulled together, the codes of an image agree. With `frequencies` p is aligned first.
    """
    whole = codes
    if batch.visible is not None:
        seen = batch.images(slice(len(codes)))
        with networks.predicting():
            whole = networks.encoder.draw(seen.pixels, seen.noise)
    probability = heads.log_probabilities(whole).exp().mean((0, 2))
    if heads.predicted is not None and frequencies is not None:
        probability = align(probability, heads.predicted, frequencies, batch.ranks)
    confidence, classes = probability.max(-1)
    taken = confidence > above
    return Guesses(heads.scores(codes, classes).codes * taken[:, None, None], taken)


def align(
    probability: Float[Tensor, "B C"],
    predicted: Float[Tensor, " C"],
    frequencies: Float[Tensor, " C"],
    ranks: SharesTheta | None = None,
) -> Float[Tensor, "B C"]:
    """p_c r_c / m_c, normalised, with r the labelled images' class frequencies and m = `predicted`,
    the running mean of p (distribution alignment of Berthelot et al. 2020); m moves to p's mean.

    A class that is guessed too often is guessed less. `ranks` have the other images.
    """
    aligned = probability * (frequencies / predicted.clamp_min(_LEAST))
    mean = probability.mean(0)
    if ranks is not None:
        mean = ranks.logsumexp(mean.log()).softmax(-1)  # of a sum of probabilities
    predicted.lerp_(mean.to(predicted), 1 - KEPT)
    return aligned / aligned.sum(-1, keepdim=True)
