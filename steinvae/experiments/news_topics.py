"""Topics of 20 Newsgroups by Gibbs sampling, and the test documents of Figure 2.

Both are kept in the run folder: a chain that was interrupted continues bit for bit, and one that
is finished is not run again.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from steinvae._atomic import replacing
from steinvae.data import CountDataset, load
from steinvae.density import evenly_spaced
from steinvae.experiments.poisson_cells import Known
from steinvae.experiments.poisson_scores import Truth, ground_truth
from steinvae.gibbs import Chain, Prior, Tokens, learn_topics

DATA = "20news"
TOPICS, WORDS = 128, 2_000
SHAPE, CONCENTRATION = 1.0, 0.05
SWEEPS, AVERAGED = 500, 100
TEST = 60


def documents(root: str | None) -> CountDataset:
    """20 Newsgroups. Errors: ValueError for another vocabulary than that of 2,000 words."""
    dataset = load(DATA, root)
    if not isinstance(dataset, CountDataset) or dataset.train.features != WORDS:
        raise ValueError(f"figure2: expected {WORDS} words, {DATA} has {dataset.train.features}")
    return dataset


def learned(root: str | None, run_dir: Path) -> Known:
    """Topics of the training documents, and test documents; kept in `run_dir`, so learned once.

    z ~ Gamma(1, b) with b = V / mean length, so that documents have the length they should.
    """
    path = run_dir / "known.npz"
    if not path.exists():
        dataset = documents(root)
        rate = TOPICS * SHAPE / dataset.train.lengths.mean().item()
        prior = Prior(shape=SHAPE, rate=rate, concentration=CONCENTRATION)
        topics = topics_of(dataset, prior, run_dir / "topics.npz")
        test = test_documents(dataset).numpy()
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, topics=topics, test=test, **asdict(prior))
    with np.load(path) as saved:
        prior = Prior(**{each.name: float(saved[each.name]) for each in fields(Prior)})
        topics, test = (torch.from_numpy(saved[name]) for name in ("topics", "test"))
    return Known(topics=topics, prior=prior, test=test)


def topics_of(dataset: CountDataset, prior: Prior, checkpoint: Path) -> np.ndarray:
    """theta, (V, P): the mean of the last 100 of 500 sweeps of one chain from the prior.

    The paper takes the MAP draw; the mean has less noise. Errors: ValueError for a checkpoint of
    other documents or topics.
    """
    tokens = Tokens.of_documents(dataset.train)
    if checkpoint.exists():
        chain = Chain.load(checkpoint)
        shapes = (chain.scores.shape, chain.topics.shape)
        expected = ((tokens.shape[0], TOPICS), (TOPICS, tokens.shape[1]))
        if shapes != expected:
            raise ValueError(f"{checkpoint}: expected z and theta of {expected}, got {shapes}")
    else:
        chain = Chain.start(tokens, prior, 0, topics=TOPICS)
    return learn_topics(
        chain,
        tokens,
        prior,
        sweeps=SWEEPS,
        average=AVERAGED,
        checkpoint=checkpoint,
        progress=_print,
    )


def test_documents(dataset: CountDataset) -> torch.Tensor:
    """Evenly spaced test documents, (B, P) counts."""
    return dataset.test.batch(evenly_spaced(len(dataset.test), TEST)).to_dense()


def truth_of(known: Known, run_dir: Path) -> Truth:
    """Gibbs draws for the test documents, kept in `run_dir` with the topics they belong to."""
    path = run_dir / "gibbs.npz"
    topics = known.topics.numpy()
    if path.exists():
        with np.load(path) as saved:
            if not np.array_equal(saved["topics"], topics):
                raise ValueError(f"{path}: draws for other topics; delete it to draw again")
            return Truth(torch.from_numpy(saved["chains"]).double())
    truth = ground_truth(known)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, topics=topics, chains=truth.chains.float().numpy())
    return truth


def _print(chain: Chain) -> None:
    if chain.sweeps % 50 == 0:
        density = chain.trace[-1]
        print(f"topics: sweep {chain.sweeps}/{SWEEPS}, log joint {density:.0f}", flush=True)
