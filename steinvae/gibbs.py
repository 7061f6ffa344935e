"""Gibbs sampling of Poisson factor analysis: topics from documents, and posteriors of scores.

With every token of word p in document n assigned to the topic it came from,

    token | z, theta   ~ categorical, weight z_nv theta_vp of topic v
    z_nv | counts      ~ Gamma(a + sum_p x_npv, rate b + 1)          (rows of theta sum to 1)
    theta_v | counts   ~ Dir(alpha + sum_n x_npv)

and x_npv counts the tokens of word p in document n that topic v took: the thinning of Poisson
counts (Zhou et al. 2012). The three are the exact conditionals of the joint density.

Shapes: N documents, P words, V topics, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import lgamma, log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steinvae._atomic import replacing
from steinvae.data.documents import Documents

_TOKENS_AT_ONCE = 2**14
"""Their weights over 128 topics are 8 MB in float32, which a cache holds."""

TRACE_EVERY = 10
"""Sweeps between two values of the log joint density, which cost two thirds of a sweep each."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The counts of N documents, one entry a token, in any order."""

    documents: NDArray[np.int64]
    """(T,) in 0..N-1."""

    words: NDArray[np.int64]
    """(T,) in 0..P-1."""

    shape: tuple[int, int]
    """(N, P); documents may be empty."""

    @classmethod
    def of(cls, counts: Any) -> Tokens:
        """From counts (N, P), a dense numpy array or a scipy sparse one.

        Errors: ValueError for counts that are negative or no whole numbers.
        """
        documents, words = counts.nonzero()
        repeats = np.asarray(counts[documents, words]).ravel()
        if (repeats < 0).any() or (repeats != np.floor(repeats)).any():
            raise ValueError("Tokens: counts must be whole numbers of 0 or more")
        times = repeats.astype(np.int64)
        rows, columns = counts.shape
        return cls(
            np.repeat(documents, times).astype(np.int64),
            np.repeat(words, times).astype(np.int64),
            (int(rows), int(columns)),
        )

    @classmethod
    def of_documents(cls, documents: Documents) -> Tokens:
        """From a split of a bag-of-words data set, whose counts its reader has checked."""
        rows, words, counts = documents.entries(torch.arange(len(documents)))
        times = counts.long()
        return cls(
            rows.repeat_interleave(times).numpy(),
            words.repeat_interleave(times).numpy(),
            (len(documents), documents.features),
        )

    def copies(self, count: int) -> Tokens:
        """Every document `count` times, copy by copy: chains of one posterior."""
        shift = np.repeat(np.arange(count) * self.shape[0], len(self.documents))
        return Tokens(
            np.tile(self.documents, count) + shift,
            np.tile(self.words, count),
            (count * self.shape[0], self.shape[1]),
        )


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Hyper-parameters of z ~ Gamma(a, rate b) and theta_v ~ Dir(alpha)."""

    shape: float = 1.0
    """a."""

    rate: float = 1.0
    """b; V a / b is the expected number of tokens in a document."""

    concentration: float = 0.05
    """alpha."""

    def __post_init__(self) -> None:
        for name in ("shape", "rate", "concentration"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"Prior: {name} must be positive and finite, got {value}")


@dataclass(eq=False)
class Chain:
    """The state of a sampler: everything that the next sweep depends on."""

    scores: NDArray[np.float64]
    """z, (N, V)."""

    topics: NDArray[np.float64]
    """theta, (V, P); rows sum to 1."""

    rng: np.random.Generator
    sweeps: int = 0
    """Sweeps done."""

    trace: list[float] = field(default_factory=list)
    """log p(x, z, theta) after every 10th sweep of `learn_topics`, nats."""

    total: NDArray[np.float64] | None = None
    """(V, P): the sum of the draws of theta that `learn_topics` averages so far."""

    averaged: int = 0
    """How many draws that are."""

    @classmethod
    def start(
        cls,
        tokens: Tokens,
        prior: Prior,
        seed: int,
        *,
        topics: NDArray[np.float64] | int,
    ) -> Chain:
        """Draw the start from the prior; `topics` is a known theta (V, P), or V to draw one."""
        rng = np.random.default_rng(seed)
        if isinstance(topics, int):
            concentration = np.full((topics, tokens.shape[1]), prior.concentration)
            topics = _dirichlet(concentration, rng)
        size = (tokens.shape[0], len(topics))
        return cls(rng.gamma(prior.shape, 1 / prior.rate, size), topics, rng)

    def save(self, path: Path) -> None:
        """Write everything to an .npz file, atomically; `load` continues the chain bit for bit."""
        state = np.frombuffer(json.dumps(self.rng.bit_generator.state).encode(), dtype=np.uint8)
        with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                scores=self.scores,
                topics=self.topics,
                rng=state,
                sweeps=self.sweeps,
                trace=np.array(self.trace),
                total=np.empty(0) if self.total is None else self.total,
                averaged=self.averaged,
            )

    @classmethod
    def load(cls, path: Path) -> Chain:
        """The inverse of `save`."""
        with np.load(path) as saved:
            rng = np.random.default_rng()
            rng.bit_generator.state = json.loads(saved["rng"].tobytes())
            return cls(
                saved["scores"],
                saved["topics"],
                rng,
                int(saved["sweeps"]),
                saved["trace"].tolist(),
                saved["total"] if saved["averaged"] else None,
                int(saved["averaged"]),
            )


def sweep(chain: Chain, tokens: Tokens, prior: Prior, *, learn_topics: bool) -> None:
    """One sweep in place: assignments, then z, then theta where it is learned."""
    by_document, by_word = assign(chain, tokens, count_words=learn_topics)
    chain.scores = chain.rng.standard_gamma(prior.shape + by_document) / (prior.rate + 1)
    if learn_topics:
        chain.topics = _dirichlet(prior.concentration + by_word.astype(np.float64), chain.rng)
    chain.sweeps += 1


def assign(
    chain: Chain, tokens: Tokens, *, count_words: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the topic of every token; counts by document and topic (N, V), by topic and word (V, P).

    A uniform draw of (0, total] is looked up in the running sum of the weights, so a topic of
    weight zero is never drawn. Without `count_words` the second is zero.
    """
    (documents, words), (topics, features) = tokens.shape, chain.topics.shape
    scores = torch.from_numpy(chain.scores).float()
    by_word_first = torch.from_numpy(chain.topics).float().T.contiguous()
    to_document = np.zeros(documents * topics, dtype=np.int64)
    to_word = np.zeros(topics * features, dtype=np.int64)
    for start in range(0, len(tokens.documents), _TOKENS_AT_ONCE):
        rows = slice(start, start + _TOKENS_AT_ONCE)
        document, word = tokens.documents[rows], tokens.words[rows]
        weights = scores[torch.from_numpy(document)]
        running = weights.mul_(by_word_first[torch.from_numpy(word)]).cumsum_(-1)
        height = 1 - torch.from_numpy(chain.rng.random((len(document), 1), dtype=np.float32))
        topic = torch.searchsorted(running, height * running[:, -1:]).squeeze(-1).numpy()
        to_document += np.bincount(document * topics + topic, minlength=len(to_document))
        if count_words:
            to_word += np.bincount(topic * features + word, minlength=len(to_word))
    return to_document.reshape(documents, topics), to_word.reshape(topics, words)


def learn_topics(
    chain: Chain,
    tokens: Tokens,
    prior: Prior,
    *,
    sweeps: int,
    average: int,
    checkpoint: Path | None = None,
    checkpoint_every: int = 25,
    progress: Callable[[Chain], None] | None = None,
) -> NDArray[np.float64]:
    """Sweep until `sweeps` are done; theta averaged over the last `average` of them, (V, P).

    The average estimates the posterior mean within the mode the chain is in, which has less noise
    than any one draw. It is part of the checkpoint, and a chain that continues gives it bit for
    bit; one that is past sweeps - average without having been told to average starts it there.
    """
    while chain.sweeps < sweeps:
        sweep(chain, tokens, prior, learn_topics=True)
        if chain.sweeps > sweeps - average:
            chain.total = chain.topics + (0 if chain.total is None else chain.total)
            chain.averaged += 1
        if chain.sweeps % TRACE_EVERY == 0:
            chain.trace.append(log_joint(chain, tokens, prior))
        last = chain.sweeps == sweeps
        if checkpoint is not None and (last or chain.sweeps % checkpoint_every == 0):
            chain.save(checkpoint)
        if progress is not None:
            progress(chain)
    return chain.topics if chain.total is None else chain.total / chain.averaged


def posterior_draws(
    tokens: Tokens,
    topics: NDArray[np.float64],
    prior: Prior,
    *,
    seed: int,
    chains: int = 4,
    burn_in: int = 2_000,
    draws: int = 2_500,
    thin: int = 10,
) -> NDArray[np.float32]:
    """Draws of z | x with theta known, every `thin`-th of `draws` after `burn_in` sweeps.

    The defaults are the paper's, but for the chains: independent, each from a draw of the prior,
    so that R-hat can compare them. Shape: (chains, draws / thin, N, V).
    """
    copies = tokens.copies(chains)
    chain = Chain.start(copies, prior, seed, topics=topics)
    kept = list(_thinned(chain, copies, prior, burn_in, draws, thin))
    shape = (len(kept), chains, tokens.shape[0], len(topics))
    return np.stack(kept).reshape(shape).swapaxes(0, 1)


def _thinned(
    chain: Chain, tokens: Tokens, prior: Prior, burn_in: int, draws: int, thin: int
) -> Iterator[NDArray[np.float32]]:
    for _ in range(burn_in):
        sweep(chain, tokens, prior, learn_topics=False)
    for step in range(draws):
        sweep(chain, tokens, prior, learn_topics=False)
        if (step + 1) % thin == 0:
            yield chain.scores.astype(np.float32)


def log_joint(chain: Chain, tokens: Tokens, prior: Prior) -> float:
    """log p(x, z, theta) in nats without the factorials of x; assignments are summed out."""
    rates = np.empty(len(tokens.documents))
    for start in range(0, len(rates), _TOKENS_AT_ONCE):
        rows = slice(start, start + _TOKENS_AT_ONCE)
        scores = torch.from_numpy(chain.scores[tokens.documents[rows]])
        topics = torch.from_numpy(chain.topics.T[tokens.words[rows]])
        rates[rows] = torch.einsum("tv,tv->t", scores, topics).numpy()
    a, b, alpha = prior.shape, prior.rate, prior.concentration
    z, (topics, words) = chain.scores, chain.topics.shape
    seen = np.log(rates).sum() - z.sum()
    of_scores = (a - 1) * np.log(z).sum() - b * z.sum() + z.size * (a * log(b) - lgamma(a))
    constant = topics * (lgamma(words * alpha) - words * lgamma(alpha))
    tiny = np.finfo(np.float64).tiny  # a Dirichlet draw may underflow
    of_topics = (alpha - 1) * np.log(chain.topics.clip(tiny)).sum() + constant
    return float(seen + of_scores + of_topics)


def _dirichlet(concentration: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A draw of Dir(concentration_v) for every row v: (V, P)."""
    gammas = rng.standard_gamma(concentration)
    return gammas / gammas.sum(-1, keepdims=True)
