"""Table 1 of Pu et al. 2017: MNIST by methods with equal decoder passes a step.

Budgets: `small`, 6,000 steps on fixed binarised MNIST; `cpu`, the paper's networks on dynamic MNIST
for equal processor time of one core; `gpu`, the same for equal time on a device, in slices.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from steinvae.config import Config
from steinvae.data import Dataset
from steinvae.density import Annealing, Suite
from steinvae.experiments.cells import Cell, announce, read
from steinvae.experiments.document import join
from steinvae.experiments.labelled_cells import among
from steinvae.experiments.measured import has_all, measure_cells
from steinvae.experiments.pilot import with_steps
from steinvae.experiments.slices import add_slices, check_positive, time_slice
from steinvae.experiments.table1_cells import METHODS, cells, dynamic, small
from steinvae.experiments.table1_draw import S_ELBO_AGAINST_AIS, Drawing, draw, efforts, short
from steinvae.run import load_data

NAME = "table1"
BUDGETS = ("small", "cpu", "gpu")
MINUTES = 60.0
IMAGES = 200
SUITE = Suite(
    estimators=("iw_g", "ais", "elbo", "units"),
    samples=2000,
    annealing=Annealing(temperatures=500, chains=4),
)
"""What a cell is measured by, after training."""

FINE = Suite(estimators=("elbo",), samples=5000)
"""Of the rows whose S-ELBO is held against AIS, budget small, beside it."""

AIS_RECORDS = "table1_ais.jsonl"
"""Beside the records: one run by annealed sampling at several efforts, drawn below the tables."""


def add_options(parser: ArgumentParser) -> None:
    """What `python -m steinvae.reproduce table1` takes beside what all experiments take."""
    add = parser.add_argument
    add("--budget", choices=BUDGETS, help="default small")
    add("--methods", help=f"of {','.join(METHODS)} (default: all)")
    add("--minutes", type=float, help="of a run, for budgets cpu and gpu (default 60)")
    add_slices(parser)


def run(
    root: str | None,
    seeds: Sequence[int],
    output: Path,
    run_dir: Path,
    *,
    budget: str = "small",
    methods: str | None = None,
    minutes: float | None = None,
    slice_minutes: float | None = None,
) -> str:
    """Train and measure what is missing, and return all tables.

    `minutes` (60) of every run fix its steps for cpu and gpu; small has its own. After
    `slice_minutes` training stops at a step boundary with a checkpoint, and the next call continues
    there.

    Errors: ValueError for an unknown budget, minutes for small or not positive, and minutes other
    than those that the runs in `run_dir` were begun with.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {BUDGETS}, got {budget!r}")
    check_positive(minutes=minutes, slice_minutes=slice_minutes)
    if budget == "small" and minutes is not None:
        raise ValueError(
            f"minutes act for budgets cpu and gpu, small has 6,000 steps; got {minutes}"
        )
    chosen = among("methods", methods, tuple(METHODS))
    folder = run_dir / budget
    timed = None if budget == "small" else minutes or MINUTES
    wanted = cells(base(budget, root), seeds, chosen, timed)
    missing = [cell for cell in wanted if not has_all(cell, suites(cell), output)]
    announce(len(wanted), output, [cell.minutes for cell in missing])
    dataset: Dataset | None = None
    with time_slice(slice_minutes) as stop:
        for cell in missing:
            dataset = dataset or load_data(cell.config)
            cell = with_steps(cell, dataset, folder)
            for suite, images in suites(cell):
                measure_cells(NAME, [cell], suite, images, output, folder, stop, dataset)
    return table(output, seeds)


def suites(cell: Cell) -> list[tuple[Suite, int]]:
    """What a cell is measured by, and on how many test images."""
    compared = cell.row in S_ELBO_AGAINST_AIS and cell.minutes is None
    return [(SUITE, IMAGES), *([(FINE, IMAGES)] if compared else [])]


def base(budget: str, root: str | None) -> Config:
    """The configuration whose methods are the rows of a budget."""
    if budget == "small":
        return small(root)
    return dynamic(root, "cuda" if budget == "gpu" else "cpu")


def table(output: Path, seeds: Sequence[int]) -> str:
    """All tables, drawn from the records in `output`; binarisations and times are kept apart.

    Empty where none was measured on these seeds.
    """
    records = read(output)
    on_gpu = [record for record in records if record["device"].startswith("cuda")]
    on_cpu = [record for record in records if not record["device"].startswith("cuda")]
    fixed = "Fixed binarisation, 2 x 128 tanh, 20 code dimensions, S = 10, 6,000 steps"
    timed = "Dynamic binarisation, 200-200 tanh, 50 code dimensions, S = 50"
    parts = [draw(fixed, base("small", None), seeds, on_cpu)]
    for budget, where, own in (("cpu", "one core", on_cpu), ("gpu", "a GPU", on_gpu)):
        times = {record["setting"]["minutes"] for record in own if "minutes" in record["setting"]}
        parts += [
            draw(f"{timed}, {each:g} minutes of {where}", base(budget, None), seeds, own, each)
            for each in sorted(times) or [MINUTES]
        ]
    calibration = read(output.with_name(AIS_RECORDS))
    measured = join(parts)
    return f"{measured}\n\n{efforts(calibration)}" if measured and calibration else measured


def summary(output: Path, seeds: Sequence[int]) -> str:
    """The tables of `small` and of an hour of one core in a few columns, for a front page."""
    records = [record for record in read(output) if not record["device"].startswith("cuda")]
    return short(
        {
            "20 code dimensions, 6,000 steps": Drawing(base("small", None), seeds, records),
            "50 code dimensions, an hour": Drawing(base("cpu", None), seeds, records, MINUTES),
        }
    )
