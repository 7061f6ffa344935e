"""Table 3 of Pu et al. 2017: MNIST with 10 to 300 labels a class, FNN and CNN, by five methods.

Budgets: `small`, FNN alone for 1,500 steps; `cpu`, equal processor time a cell on one core; `gpu`,
equal time on a device, all cells and 20 splits.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steinvae.experiments.cells import read
from steinvae.experiments.labelled_cells import Task, among, run_labelled
from steinvae.experiments.slices import add_slices, check_positive, time_slice
from steinvae.experiments.table3_cells import BUDGETS, METHODS, NETWORKS, PER_CLASS, cells
from steinvae.experiments.table3_draw import draw, paper_error

NAME = "table3"
SEEDS = None
"""Where none are chosen: as many splits are run as the budget has, and all with records drawn."""


def add_options(parser: ArgumentParser) -> None:
    """What `python -m steinvae.reproduce table3` takes beside what all experiments take."""
    add = parser.add_argument
    add(
        "--splits",
        type=int,
        help="labelled subsets 0, 1, ...; --seeds names them (default: by budget)",
    )
    add("--budget", choices=tuple(BUDGETS), help="default small")
    add("--networks", help="of FNN,CNN (default: those of the budget)")
    add("--per_class", help="labels a class, of 10,60,100,300 (default: those of the budget)")
    add("--methods", help=f"of {','.join(METHODS)} (default: all)")
    add("--minutes", type=float, help="of a cell, for cpu (default 40) and gpu (20)")
    add_slices(parser)


def run(
    root: str | None,
    seeds: Sequence[int] | None,
    output: Path,
    run_dir: Path,
    *,
    splits: int | None = None,
    budget: str = "small",
    networks: str | None = None,
    per_class: str | None = None,
    methods: str | None = None,
    minutes: float | None = None,
    slice_minutes: float | None = None,
) -> str:
    """Train and measure the cells that have no record yet, and return all tables.

    `splits` go before `seeds`; without either they are 0, 1, ... as many as the budget has.
    Records of a cell are written when it is done; a cell that was stopped continues from its
    checkpoint in `run_dir`/<budget>.

    Errors: ValueError for an unknown budget, network, number of labels or method, for minutes of
    small, and for minutes other than those that the cells in `run_dir` were begun with.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {tuple(BUDGETS)}, got {budget!r}")
    chosen = BUDGETS[budget]
    check_positive(minutes=minutes, slice_minutes=slice_minutes)
    if chosen.minutes is None and minutes is not None:
        raise ValueError(f"minutes act for cpu and gpu, {budget} has steps; got {minutes}")
    if splits is not None and splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    wanted = cells(
        replace(chosen, minutes=minutes or chosen.minutes),
        root,
        range(splits or chosen.splits) if splits or not seeds else tuple(seeds),
        among("networks", networks, NETWORKS),
        [int(n) for n in among("per_class", per_class, tuple(map(str, PER_CLASS))) or ()],
        among("methods", methods, tuple(METHODS)),
    )
    task = Task(NAME, budget, paper_error)
    with time_slice(slice_minutes) as stop:
        run_labelled(wanted, task, output, run_dir / budget, stop)
    return table(output)


def table(output: Path, seeds: Sequence[int] | None = None) -> str:
    """All tables, drawn from the records in `output` of these splits, None: of all; else empty."""
    records = [each for each in read(output) if seeds is None or each["seed"] in seeds]
    return draw(records) if records else ""
