"""The tables of Figure 1, from records alone: draws as they come, and after resampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from steinvae.experiments.mixture_cells import MixtureCell
from steinvae.experiments.mixture_scores import JACOBIAN, KERNEL, METRICS, PLAIN
from steinvae.report import markdown_table

FLOOR = "Two exact sets (floor)"
DRAWN = ("method", "MMD²", "sliced W2", "mass error", "sd in mode", "seeds", "s / run")
RESAMPLED = ("sliced W2", "mass error", "effective share")
WEIGHED = (
    "resampled",
    *(f"kernel: {name}" for name in RESAMPLED),
    *(f"Jacobian: {name}" for name in RESAMPLED),
    "folded",
)
Record = dict[str, Any]


def tables(
    records: Sequence[Record], noise: float, cells: Sequence[MixtureCell], seeds: Sequence[int]
) -> str:
    """Both tables of the cells of one sigma, `noise`; rows are those that have records."""
    drawn, weighed = [], []
    for cell in cells:
        runs = [find(records, cell.method, cell.setting(), seed) for seed in seeds]
        found = [run for run in runs if run]
        if not found:
            continue
        drawn.append(_drawn(cell.row, found))
        weighed.append(
            [
                cell.row,
                *(_spread(found, _key(name), KERNEL) for name in RESAMPLED),
                *(_spread(found, _key(name), JACOBIAN) for name in RESAMPLED),
                _spread(found, "folded", PLAIN),
            ]
        )
    exact = [find(records, "exact", {"sigma": noise}, seed) for seed in seeds]
    if any(exact):
        drawn.append(_drawn(FLOOR, [run for run in exact if run]))
    parts = [(DRAWN, drawn), (WEIGHED, weighed)]
    return "\n\n".join(markdown_table(header, lines) for header, lines in parts if lines)


def find(
    records: Sequence[Record], method: str, setting: dict[str, Any], seed: int
) -> list[Record]:
    """The records of one run."""
    return [
        each
        for each in records
        if each["method"] == method and each["setting"] == setting and each["seed"] == seed
    ]


def _drawn(row: str, runs: Sequence[Sequence[Record]]) -> list[str]:
    seconds = sum(run[0]["seconds"] for run in runs) / len(runs)
    return [
        row,
        *(_spread(runs, metric, PLAIN) for metric in METRICS),
        ", ".join(str(run[0]["seed"]) for run in runs),
        f"{seconds:.0f}" if seconds else "-",
    ]


def _key(column: str) -> str:
    return column.replace(" ", "_").replace("W2", "w2")


def _spread(runs: Sequence[Sequence[Record]], metric: str, estimator: str) -> str:
    """Mean over runs and, for several, the standard error of that mean."""
    found = [
        record["value"]
        for run in runs
        for record in run
        if record["metric"] == metric and record["estimator"] == estimator
    ]
    if not found:
        return "-"
    values = torch.tensor(found, dtype=torch.float64)
    error = f" ± {values.std() / len(found) ** 0.5:.3f}" if len(found) > 1 else ""
    return f"{values.mean():.3f}{error}"
