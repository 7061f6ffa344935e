"""Topics for people: the heaviest words of every unit of a decoder, and how well they go together.

Shapes: K units, V words, D documents, T top words of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steinvae.data import CountDataset, Documents
from steinvae.networks import Networks

TOP = 10
_AT_ONCE = 2**12
"""Documents that are dense at a time."""


@runtime_checkable
class TopicModel(Protocol):
    """A model of counts whose units have a weight for every word."""

    def topics(self, theta: dict[str, Tensor]) -> Sequence[Tensor]:
        """(M, K_l, V) for each layer l from the words up: what a unit makes of a word."""
        ...


def topic_results(networks: Networks, dataset: CountDataset) -> list[dict[str, Any]]:
    """Units of the first decoder, layer by layer by falling coherence; [] without topics.

    Each {layer, unit, npmi, words}.
    """
    if not isinstance(networks.model, TopicModel):
        return []
    with torch.no_grad():
        layers = [each[0].cpu() for each in networks.model.topics(networks.theta.leaves())]
    return [
        topic
        for number, weights in enumerate(layers, 1)
        for topic in _of_layer(number, weights, dataset)
    ]


def _of_layer(layer: int, weights: Float[Tensor, "K V"], dataset: CountDataset) -> list[Any]:
    top = weights.topk(min(TOP, weights.shape[1])).indices
    coherence = npmi(top, dataset.train).tolist()
    return [
        {
            "layer": layer,
            "unit": unit,
            "npmi": round(coherence[unit], 4),
            "words": [dataset.vocabulary[word] for word in top[unit].tolist()],
        }
        for unit in sorted(range(len(top)), key=lambda unit: -coherence[unit])
    ]


def npmi(top: Int[Tensor, "K T"], documents: Documents) -> Float[Tensor, " K"]:
    """Mean over pairs of a unit's top words of their normalised pointwise mutual information.

    log( p_ij / (p_i p_j) ) / -log p_ij, p the shares of documents with the word, with both: 1 for
    words that only occur together, 0 for independent ones, -1 for a pair that never does (and for
    a word that does not occur at all). Source: Bouma 2009; Lau, Newman & Baldwin 2014.
    """
    words, place = top.unique(return_inverse=True)
    both = torch.zeros(len(words), len(words), dtype=torch.float64)
    for part in torch.arange(len(documents)).split(_AT_ONCE):
        present = (documents.batch(part).to_dense()[:, words] > 0).float()
        both += (present.T @ present).double()
    joint = both / len(documents)
    single = joint.diagonal()
    expected = single[:, None] * single
    ratio = (joint / expected).log() / -joint.log()
    ratio = torch.where(joint == 0, -1.0, torch.where(joint == 1, 0.0, ratio))
    pairs = torch.triu_indices(top.shape[1], top.shape[1], 1)
    return ratio[place[:, pairs[0]], place[:, pairs[1]]].mean(-1)
