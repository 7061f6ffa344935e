"""Table 3 of Pu et al. 2017: MNIST with 10 to 300 labels a class, FNN and CNN, by five methods.

Budgets: `small`, FNN alone for 1,500 steps; `cpu`, equal processor time a cell on one core; `gpu`,
equal time on a device, all cells and 20 splits.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steinvae.data import Dataset
from steinvae.experiments.cells import Cell, Record, read, train_cell, with_threads
from steinvae.experiments.pilot import with_steps
from steinvae.experiments.slices import add_slices, check_positive, time_slice
from steinvae.experiments.table3_cells import BUDGETS, METHODS, NETWORKS, PER_CLASS, cells
from steinvae.experiments.table3_draw import draw, paper_error
from steinvae.labels.results import ESTIMATOR, label_metrics
from steinvae.report import append_records, tidy_record
from steinvae.run import load_data
from steinvae.signals import StopRequest

NAME = "table3"


def add_options(parser: ArgumentParser) -> None:
    """What `python -m steinvae.reproduce table3` takes beside what all experiments take."""
    add = parser.add_argument
    add("--splits", type=int, help="labelled subsets 0, 1, ...; --seeds chooses them by name")
    add("--budget", choices=tuple(BUDGETS), help="default small")
    add("--networks", help="of FNN,CNN (default: those of the budget)")
    add("--per_class", help="labels a class, of 10,60,100,300 (default: those of the budget)")
    add("--methods", help=f"of {','.join(METHODS)} (default: all)")
    add("--minutes", type=float, help="of a cell, for cpu (default 40) and gpu (20)")
    add_slices(parser)


def run(
    root: str | None,
    seeds: Sequence[int],
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
        chosen,
        root,
        tuple(seeds) if splits is None else range(splits),
        _among("networks", networks, NETWORKS),
        [int(n) for n in _among("per_class", per_class, tuple(map(str, PER_CLASS))) or ()],
        _among("methods", methods, tuple(METHODS)),
    )
    task = Task(budget, minutes or chosen.minutes)
    with time_slice(slice_minutes) as stop:
        _run_cells(wanted, task, output, run_dir / budget, stop)
    return table(output, seeds)


def table(output: Path, seeds: Sequence[int]) -> str:
    """All tables, drawn from the records in `output`, whatever splits they are of."""
    del seeds
    return draw(read(output))


@dataclass(frozen=True)
class Task:
    """What a command's cells have in common."""

    budget: str
    minutes: float | None
    """Of updates in a cell; None where the steps are given."""

    def setting(self, cell: Cell) -> dict[str, Any]:
        """`Cell.setting` with both; the steps of a timed cell are what came out."""
        timed = {} if self.minutes is None else {"minutes": self.minutes}
        return cell.setting() | {"budget": self.budget} | timed


def _run_cells(
    wanted: Sequence[Cell], task: Task, output: Path, folder: Path, stop: StopRequest
) -> None:
    dataset: Dataset | None = None
    for cell in wanted:
        title = f"{cell.row}, split {cell.config.seed}"
        if done(cell, task, read(output)):
            print(f"{title}: already in {output}")
            continue
        dataset = dataset or load_data(cell.config)
        if task.minutes is not None:
            cell = with_steps(cell, dataset, folder, task.minutes)
        result = train_cell(cell, dataset, folder, stop)
        append_records(output, records(cell, task, result))
        found = result["labels"]
        print(
            f"{title}: error {100 * found['error']:.2f} %, NLL {found['nll']:.3f} "
            f"({result['cpu_seconds']:.0f} s)",
            flush=True,
        )


def done(cell: Cell, task: Task, written: Sequence[Record]) -> bool:
    """Whether the cell has records; the steps of a timed one are what came out."""

    def decides(setting: dict[str, Any]) -> dict[str, Any]:
        return {n: own for n, own in setting.items() if n != "steps" or task.minutes is None}

    wanted = decides(task.setting(cell))
    return any(
        record["method"] == cell.config.method.name
        and record["seed"] == cell.config.seed
        and decides(record["setting"]) == wanted
        for record in written
    )


def records(cell: Cell, task: Task, result: Record) -> list[Record]:
    """One line a number of a finished cell; errors are fractions."""
    found = result["labels"]
    numbers: dict[str, tuple[float, float | None]] = {
        **label_metrics(found),
        "cpu_seconds": (result["cpu_seconds"], None),
        "parameters": (result["parameters"], None),
    }
    paper: dict[str, Any] = {"label_error": paper_error(cell.row)}
    return [
        tidy_record(
            experiment=NAME,
            method=cell.config.method.name,
            setting=task.setting(cell),
            seed=cell.config.seed,
            metric=metric,
            value=value,
            stderr=error,
            n=found["images"],
            estimator=ESTIMATOR,
            seconds=result["seconds"],
            device=with_threads(result["device"]),
            paper=paper.get(metric),
        )
        for metric, (value, error) in numbers.items()
    ]


def _among(option: str, text: str | None, allowed: Sequence[str]) -> list[str] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not set(parts) <= set(allowed):
        raise ValueError(f"{option} must be among {','.join(allowed)}, got {text}")
    return parts
