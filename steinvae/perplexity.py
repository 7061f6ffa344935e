"""Perplexity of documents from their negative log-likelihoods, by both conventions of the field.

Shapes: D documents. NLL in nats a document, length in words, both of the same words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.data import CountDataset
from steinvae.density import evenly_spaced
from steinvae.report import or_null


class Perplexity(NamedTuple):
    """Where the NLLs are upper bounds, so are these."""

    corpus: float
    """exp( sum_d NLL_d / sum_d N_d ): every word counts the same."""

    per_document: float
    """exp( (1/D) sum_d NLL_d / N_d ): every document counts the same. NVDM's and DocNADE's."""

    per_document_error: float
    """Standard error of `per_document` over documents; NaN for a single one."""


def perplexity(nll: Float[Tensor, " D"], lengths: Float[Tensor, " D"]) -> Perplexity:
    """Both conventions. Errors: ValueError for an empty document, which has no perplexity."""
    if not bool((lengths > 0).all()):
        raise ValueError("perplexity: every document needs a word, got a length of 0")
    nll, lengths = nll.double(), lengths.double()
    each = nll / lengths
    one = float(each.mean().exp())
    spread = float(each.std()) / len(each) ** 0.5 if len(each) > 1 else float("nan")
    return Perplexity(float((nll.sum() / lengths.sum()).exp()), one, one * spread)


def unigram_nll(counts: Float[Tensor, "D V"], totals: Float[Tensor, " V"]) -> Float[Tensor, " D"]:
    """NLL of each document when words are drawn alike for all: -sum_w x_w log p_w, float64.

    p_w = (c_w + 1) / sum_v (c_v + 1), c the counts `totals` of the training documents.
    """
    log_p = torch.log((totals.double() + 1) / (totals.double() + 1).sum())
    return -(counts.double() @ log_p)


def text_results(dataset: CountDataset, nll: Float[Tensor, " D"]) -> dict[str, Any]:
    """What result.json says of documents: perplexities of the NLLs, and of the unigram beside them.

    `nll` belongs to D evenly spaced test documents, as `evenly_spaced` picks them.
    """
    chosen = evenly_spaced(len(dataset.test), len(nll))
    lengths = dataset.test.lengths[chosen]
    of_unigram = unigram_nll(dataset.test.batch(chosen), dataset.train.totals)
    return {
        "perplexity": _named(perplexity(nll.cpu(), lengths)),
        "perplexity_unigram": _named(perplexity(of_unigram, lengths)),
        "skipped_lines": dict(dataset.skipped),
    }


def _named(found: Perplexity) -> dict[str, float | None]:
    return found._asdict() | {"per_document_error": or_null(found.per_document_error)}
