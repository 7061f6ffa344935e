"""Table 2 of Pu et al. 2017: perplexity of documents under NVDM's and the deep Poisson decoder.

Equal processor time of one core a run, early stopping on documents cut from the training set.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from steinvae.data import CountDataset
from steinvae.density import Annealing, Suite
from steinvae.experiments.cells import Cell, Record, announce, read, with_threads
from steinvae.experiments.measured import has_all, measure_cells
from steinvae.experiments.slices import add_slices, check_positive, time_slice
from steinvae.experiments.table2_cells import CORPORA, ROWS, cells, timed
from steinvae.experiments.table2_draw import draw
from steinvae.perplexity import perplexity, unigram_nll
from steinvae.report import append_records, tidy_record
from steinvae.run import load_data
from steinvae.signals import StopRequest

NAME = "table2"
SUBSET = 100
"""Documents, evenly spaced over the test set, that annealed sampling looks at."""

ALL_FITTED = Suite(estimators=("iw_g",), samples=100)
ALL_OWN = Suite(estimators=("elbo",), samples=100)
ON_SUBSET = Suite(
    estimators=("elbo", "ais", "units"),
    samples=100,
    annealing=Annealing(temperatures=200, chains=4),
)
"""A flow's density takes a determinant a sample, so its ELBO is measured on the subset alone."""


def add_options(parser: ArgumentParser) -> None:
    """What `python -m steinvae.reproduce table2` takes beside what all experiments take."""
    add = parser.add_argument
    add("--corpus", choices=tuple(CORPORA), help="one alone; default both")
    add("--row", choices=tuple(ROWS), help="one alone; default all")
    add("--minutes", type=float, help="processor minutes of a run (default 3, deep 5; nyt 1.5, 2)")
    add_slices(parser)


def run(
    root: str | None,
    seeds: Sequence[int],
    output: Path,
    run_dir: Path,
    *,
    corpus: str | None = None,
    row: str | None = None,
    minutes: float | None = None,
    slice_minutes: float | None = None,
) -> str:
    """Train and measure what is missing, and return the tables.

    After `slice_minutes` training stops at a step boundary with a checkpoint, and the next call
    continues there. Errors: ValueError for minutes that are not positive, or other than those that
    the runs in `run_dir` were begun with.
    """
    check_positive(minutes=minutes, slice_minutes=slice_minutes)
    with time_slice(slice_minutes) as stop:
        for name in [corpus] if corpus else CORPORA:
            wanted = [c for c in cells(name, root, seeds, minutes) if row in (None, c.row)]
            _run_corpus(name, wanted, output, run_dir / name, stop)
    return table(output, seeds)


def table(output: Path, seeds: Sequence[int]) -> str:
    """Both tables, drawn from the records in `output`."""
    return draw(read(output), seeds, SUBSET)


def _run_corpus(
    corpus: str,
    wanted: Sequence[Cell],
    output: Path,
    run_dir: Path,
    stop: StopRequest,
) -> None:
    dataset = load_data(wanted[0].config)
    if not isinstance(dataset, CountDataset):
        raise TypeError(f"table2: {corpus} must be documents, got {type(dataset).__name__}")
    if not any(r["method"] == "unigram" and r["setting"]["data"] == corpus for r in read(output)):
        append_records(output, unigram_records(corpus, dataset))
    missing = [cell for cell in wanted if not has_all(cell, _suites(cell, dataset), output)]
    announce(len(wanted), output, [cell.minutes for cell in missing])
    for cell in missing:
        cell = timed(cell, dataset, run_dir)
        for suite, count in _suites(cell, dataset):
            measure_cells(NAME, [cell], suite, count, output, run_dir, stop, dataset)


def _suites(cell: Cell, dataset: CountDataset) -> list[tuple[Suite, int]]:
    """What a cell is measured by, each with its number of documents."""
    config = cell.config
    own = config.evaluation.proposal == "encoder" or config.method.name == "vae"
    every = ALL_OWN if own else ALL_FITTED
    both = ((every, len(dataset.test)), (ON_SUBSET, SUBSET))
    return [(replace(suite, seed=config.seed), count) for suite, count in both]


def unigram_records(corpus: str, dataset: CountDataset) -> list[Record]:
    """The add-one unigram on all test documents, by both conventions."""
    lengths = dataset.test.lengths
    parts = torch.arange(len(lengths)).split(1024)
    totals = dataset.train.totals
    nll = torch.cat([unigram_nll(dataset.test.batch(part), totals) for part in parts])
    found = perplexity(nll, lengths)
    numbers = {
        "perplexity_per_document": (found.per_document, found.per_document_error),
        "perplexity_corpus": (found.corpus, None),
    }
    return [
        tidy_record(
            experiment=NAME,
            method="unigram",
            setting={"data": corpus},
            seed=0,
            metric=metric,
            value=value,
            stderr=error,
            n=len(nll),
            estimator="exact",
            seconds=0.0,
            device=with_threads("cpu"),
        )
        for metric, (value, error) in numbers.items()
    ]
