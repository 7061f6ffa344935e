"""Poisson factor analysis on simulated documents: how well do encoders know the posterior?

Topics are known and the encoder alone is trained, as in section 5.1 of Pu et al. 2017, but with 20
topics of 200 words for its 128 of 2,000 (`figure2` has those). The truth is Gibbs sampling at the
paper's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steinvae.data import Dataset
from steinvae.data.synthetic import Vectors, drawn
from steinvae.experiments.poisson_cells import Known, PoissonCell
from steinvae.experiments.poisson_scores import ground_truth
from steinvae.experiments.poisson_study import Runner, Table
from steinvae.gibbs import Prior
from steinvae.models.poisson_factor import PoissonFactor

NAME = "poisson_small"
TOPICS, WORDS = 20, 200
LENGTH = 100
"""Expected tokens of a document."""

SHAPE = 1.0
"""a of z ~ Gamma(a, b)."""

CONCENTRATION = 0.05
TRAINING, VALIDATION, TEST = 4_000, 64, 50


def rows() -> list[PoissonCell]:
    """A cell for each row of the table, the most telling first."""
    stein = PoissonCell(row="Stein VAE, log")
    soft = replace(stein, row="Stein VAE, softplus", positivity="softplus")
    normal = replace(stein, row="Log-normal VAE", method="flow_elbo", encoder="gaussian")
    return [
        stein,
        normal,
        soft,
        replace(normal, row="VAE, softplus of a Gaussian", positivity="softplus"),
        replace(stein, row="Stein VAE, log, self included (eq. 5)", self_term="include"),
        replace(stein, row="Planar flow, log", method="planar_flow", encoder="planar"),
        replace(stein, row="Stein VAE's encoder by its ELBO, log", method="flow_elbo"),
    ]


def run(root: str | None, seeds: Sequence[int], output: Path, run_dir: Path) -> str:
    """Train and score what has no records yet, and return the table. `root` is not used."""
    return _runner(run_dir).run(seeds, output)


def table(output: Path, seeds: Sequence[int]) -> str:
    """The table, drawn from the records in `output`."""
    return _table().draw(output, seeds)


def picture(path: Path, run_dir: Path) -> None:
    """Posteriors of the first test document: Gibbs, the VAE and Stein."""
    _runner(run_dir).picture(path, rows=(1, 0), document=0)


def documents() -> Dataset[Vectors]:
    """4,000 documents to train on and 50 to test, the same for all runs."""
    sizes = {"train": TRAINING, "validation": VALIDATION, "test": TEST}
    topics, prior = _topics()
    source = PoissonFactor(topics, prior.shape, prior.rate)
    return drawn("simulated documents", source, **sizes)


def simulated() -> Known:
    """What documents were drawn from, and the test documents."""
    topics, prior = _topics()
    return Known(topics=topics, prior=prior, test=documents().test.rows)


def _topics() -> tuple[Tensor, Prior]:
    """Topics ~ Dir(0.05) in float64; b = V a / expected length."""
    gammas = np.random.default_rng(0).standard_gamma(CONCENTRATION, (TOPICS, WORDS))
    topics = torch.from_numpy(gammas / gammas.sum(-1, keepdims=True))
    rate = TOPICS * SHAPE / LENGTH
    return topics, Prior(shape=SHAPE, rate=rate, concentration=CONCENTRATION)


def _table() -> Table:
    setting = {"topics": TOPICS, "words": WORDS, "shape": SHAPE}
    return Table(NAME, setting, rows(), TEST)


def _runner(run_dir: Path) -> Runner:
    return Runner(_table(), run_dir, known=simulated, sample=ground_truth, dataset=documents)
