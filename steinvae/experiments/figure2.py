"""Figure 2 of Pu et al. 2017 (section 5.1): encoders of 20 Newsgroups against Gibbs sampling.

Poisson factor analysis with 128 topics of 2,000 words; theta is learned by Gibbs sampling and then
known, and the encoder alone is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steinvae.experiments.document import further
from steinvae.experiments.news_topics import (
    DATA,
    SHAPE,
    SWEEPS,
    TEST,
    TOPICS,
    WORDS,
    documents,
    learned,
    truth_of,
)
from steinvae.experiments.poisson_cells import PoissonCell
from steinvae.experiments.poisson_study import Runner, Table

NAME = "figure2"


def rows() -> list[PoissonCell]:
    """A cell for each row of the table, the most telling first."""
    stein = PoissonCell(
        row="Stein VAE, log", anchor=3, kernel="sum", bandwidth_factor=0.4, steps=1_000
    )
    normal = PoissonCell(
        row="Log-normal VAE", method="flow_elbo", encoder="gaussian", anchor=3, steps=1_000
    )
    alone = PoissonCell(row="Stein VAE, log, network alone", steps=2_000)
    return [
        stein,
        normal,
        replace(stein, row="Stein VAE, softplus", positivity="softplus"),
        replace(normal, row="VAE, softplus of a Gaussian", positivity="softplus"),
        replace(normal, row="Planar flow, log", method="planar_flow", encoder="planar"),
        replace(stein, row="Stein VAE, log, joint kernel", kernel="joint"),
        alone,
        replace(normal, row="Log-normal VAE, network alone", anchor=0, steps=2_000),
    ]


def run(root: str | None, seeds: Sequence[int], output: Path, run_dir: Path) -> str:
    """Learn topics, draw the truth, train and score what has no records; return the table."""
    return _runner(root, run_dir).run(seeds, output)


def table(output: Path, seeds: Sequence[int]) -> str:
    """The table, drawn from the records in `output`."""
    return _table().draw(output, seeds)


def _table() -> Table:
    setting = {"data": DATA, "topics": TOPICS, "words": WORDS, "shape": SHAPE, "sweeps": SWEEPS}
    return Table(NAME, setting, rows(), TEST)


def picture(path: Path, run_dir: Path) -> None:
    """Posteriors of the first test document, and beside it of the second, as in appendix E: Gibbs,
    the VAE and Stein."""
    runner = _runner(None, run_dir)
    for document, file in enumerate((path, further(path))):
        runner.picture(file, rows=(1, 0), document=document)


def _runner(root: str | None, run_dir: Path) -> Runner:
    return Runner(
        _table(),
        run_dir,
        known=lambda: learned(root, run_dir),
        sample=lambda known: truth_of(known, run_dir),
        dataset=lambda: documents(root),
    )
