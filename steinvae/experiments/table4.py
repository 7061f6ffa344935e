"""Table 4 of Pu et al. 2017: ImageNet with 1 to 40 % of its labels, by VAE, Stein VAE, Stein VIWAE.

Equal time for every cell: of one core (`cpu`) or of a device (`gpu`). `--nets tiny_imagenet` (64 x
64, nets scaled down) for Tiny ImageNet or a part of it; `--nets imagenet` for ImageNet itself.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from steinvae.experiments.cells import read
from steinvae.experiments.labelled_cells import Task, among, run_labelled
from steinvae.experiments.slices import add_slices, check_positive, time_slice
from steinvae.experiments.table4_cells import BUDGETS, NETS, PERCENT, ROWS, cells
from steinvae.experiments.table4_draw import draw, paper_error

NAME = "table4"
SEEDS = None
"""Where none are chosen: as many splits are run as the budget has, and all with records drawn."""


def add_options(parser: ArgumentParser) -> None:
    """What `python -m steinvae.reproduce table4` takes beside what all experiments take."""
    add = parser.add_argument
    add(
        "--splits",
        type=int,
        help="labelled subsets 0, 1, ...; --seeds names them (default: by budget)",
    )
    add("--budget", choices=tuple(BUDGETS), help="default cpu")
    add("--nets", choices=NETS, help=f"default {NETS[0]}")
    add("--percent", help="of the labels, of 1,2,5,10,20,30,40 (default: all)")
    add("--row", action="append", choices=tuple(ROWS), help="one method; may be given again")
    add("--minutes", type=float, help="of a cell (default 60)")
    add_slices(parser)


def run(
    root: str | None,
    seeds: Sequence[int] | None,
    output: Path,
    run_dir: Path,
    *,
    splits: int | None = None,
    budget: str = "cpu",
    nets: str = NETS[0],
    percent: str | None = None,
    row: Sequence[str] | None = None,
    minutes: float | None = None,
    slice_minutes: float | None = None,
) -> str:
    """Train and measure the cells that have no record yet, and return all tables.

    `splits` go before `seeds`; without either they are 0, 1, ... as many as the budget has.
    Records of a cell are written when it is done; a cell that was stopped continues from its
    checkpoint in `run_dir`/<budget>.

    Errors: ValueError for unknown names, and for minutes other than those that the cells in
    `run_dir` were begun with.
    """
    for option, value, allowed in (("budget", budget, BUDGETS), ("nets", nets, NETS)):
        if value not in allowed:
            raise ValueError(f"{option} must be one of {tuple(allowed)}, got {value!r}")
    check_positive(minutes=minutes, slice_minutes=slice_minutes)
    if splits is not None and splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    chosen = BUDGETS[budget]
    shares = among("percent", percent, tuple(map(str, PERCENT)))
    wanted = cells(
        replace(chosen, minutes=minutes or chosen.minutes),
        root,
        range(splits or chosen.splits) if splits or not seeds else tuple(seeds),
        nets,
        PERCENT if shares is None else [int(share) for share in shares],
        row,
    )
    with time_slice(slice_minutes) as stop:
        task = Task(NAME, budget, paper_error)
        run_labelled(wanted, task, output, run_dir / budget, stop)
    return table(output)


def table(output: Path, seeds: Sequence[int] | None = None) -> str:
    """All tables, drawn from the records in `output` of these splits, None: of all; else empty."""
    records = [each for each in read(output) if seeds is None or each["seed"] in seeds]
    return draw(records) if records else ""
