"""Unlabelled images that count as labelled where the particles agree: classification EM.

The posterior of section 4 has no label term for an image without a label: summed over classes it is
1. Here its class is a variable of its own, and a step puts the most probable value in its place
where that is probable enough (Celeux & Govaert 1992; entropy minimisation of Grandvalet & Bengio
2005 in the limit). The probability is that of prediction: averaged over label decoders and codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.labels.softmax import SoftmaxLabels


class Guesses(NamedTuple):
    """What unlabelled codes gain from their own classes."""

    codes: Tensor
    """(B, S, d): mean over label decoders of grad_z log p(y | z, theta~), 0 where y is unsure."""

    taken: Tensor
    """(B,) bool: images whose class is sure enough."""


@torch.no_grad()
def guess(heads: SoftmaxLabels, codes: Float[Tensor, "B S d"], above: float) -> Guesses:
    """The pull of every image to its most probable class y, where mean_ks p(y | z_s, theta~_k) is
    more than `above`. Pulling the codes of an image to what they say together makes them agree.
    """
    confidence, classes = heads.log_probabilities(codes).exp().mean((0, 2)).max(-1)
    taken = confidence > above
    return Guesses(heads.scores(codes, classes).codes * taken[:, None, None], taken)
