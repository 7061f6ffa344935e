"""Cells that learn from labels: trained once each, a record for every number that is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steinvae.config import IN_FILES
from steinvae.data import Dataset
from steinvae.experiments.cells import Cell, Record, announce, read, train_cell, with_threads
from steinvae.experiments.pilot import with_steps
from steinvae.labels.results import ESTIMATOR, label_metrics
from steinvae.labels.task import count_classes
from steinvae.report import append_records, tidy_record
from steinvae.run import load_data
from steinvae.signals import StopRequest


@dataclass(frozen=True)
class Task:
    """What a command's cells have in common."""

    experiment: str
    budget: str
    paper: Callable[[str], float | None]
    """The paper's error of a cell by its name, as a fraction."""

    classes: int | None = None
    """Of images in files, whose data set is whatever lies there; others have it by their name."""

    def setting(self, cell: Cell) -> dict[str, Any]:
        """`Cell.setting`, the budget and the classes."""
        of_files = {} if self.classes is None else {"classes": self.classes}
        return cell.setting() | {"budget": self.budget} | of_files


def run_labelled(
    wanted: Sequence[Cell], task: Task, output: Path, folder: Path, stop: StopRequest
) -> None:
    """Train the cells that have no record in `output`, one after the other, in `folder`."""
    dataset: Dataset | None = None
    config = wanted[0].config
    if config.data.name == IN_FILES:
        dataset = load_data(config)
        task = replace(task, classes=count_classes(config, dataset))
    written = read(output)
    missing = [cell.minutes for cell in wanted if not done(cell, task, written)]
    announce(len(wanted), output, missing)
    for cell in wanted:
        title = f"{cell.row}, split {cell.config.seed}"
        if done(cell, task, read(output)):
            print(f"{title}: already in {output}")
            continue
        dataset = dataset or load_data(cell.config)
        cell = with_steps(cell, dataset, folder)
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
        return {n: own for n, own in setting.items() if n != "steps" or cell.minutes is None}

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
        "classes": (len(found["per_class"]), None),
    }
    paper: dict[str, Any] = {"label_error": task.paper(cell.row)}
    return [
        tidy_record(
            experiment=task.experiment,
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


def among(option: str, text: str | None, allowed: Sequence[str]) -> list[str] | None:
    """The parts of a list of names. Errors: ValueError for others than the allowed ones."""
    if text is None:
        return None
    parts = text.split(",")
    if not set(parts) <= set(allowed):
        raise ValueError(f"{option} must be among {','.join(allowed)}, got {text}")
    return parts
