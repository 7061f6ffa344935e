"""The tables of Figure 1, from records alone: draws as they come, and after resampling."""

from __future__ import annotations

from collections.abc import Sequence

from steinvae.experiments.known_posterior import Record, find, over_runs
from steinvae.experiments.mixture_cells import MixtureCell
from steinvae.experiments.mixture_scores import COST, JACOBIAN, KERNEL, METRICS, PLAIN, TRAINING
from steinvae.report import markdown_table

FLOOR = "Two exact sets (floor)"
DRAWN = (
    "method",
    *("MMD²", "sliced W2", "mass error", "strays", "sd without strays", "sd in mode"),
    *("seeds", "CPU s"),
)
RESAMPLED = ("sliced W2", "mass error", "effective share")
WEIGHED = (
    "resampled",
    *(f"kernel: {name}" for name in RESAMPLED),
    *(f"Jacobian: {name}" for name in RESAMPLED),
    "folded",
)


def tables(
    records: Sequence[Record], noise: float, cells: Sequence[MixtureCell], seeds: Sequence[int]
) -> str:
    """Both tables of the cells of one sigma, `noise`; rows are those that have records.

    Empty where no cell has any: the floor alone compares with nothing.
    """
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
    if not drawn:
        return ""
    exact = [find(records, "exact", {"sigma": noise}, seed) for seed in seeds]
    if any(exact):
        drawn.append(_drawn(FLOOR, [run for run in exact if run]))
    return f"{markdown_table(DRAWN, drawn)}\n\n{markdown_table(WEIGHED, weighed)}"


def _drawn(row: str, runs: Sequence[Sequence[Record]]) -> list[str]:
    return [
        row,
        *(_spread(runs, metric, PLAIN) for metric in METRICS),
        ", ".join(str(run[0]["seed"]) for run in runs),
        _cost(runs),
    ]


def _cost(runs: Sequence[Sequence[Record]]) -> str:
    """CPU seconds of a training, the mean over the runs that have them."""
    found = _values(runs, COST, TRAINING)
    return f"{sum(found) / len(found):.0f}" if found else "-"


def _key(column: str) -> str:
    return column.replace(" ", "_").replace("W2", "w2")


def _spread(runs: Sequence[Sequence[Record]], metric: str, estimator: str) -> str:
    return over_runs(_values(runs, metric, estimator))


def _values(runs: Sequence[Sequence[Record]], metric: str, estimator: str) -> list[float]:
    return [
        record["value"]
        for run in runs
        for record in run
        if record["metric"] == metric and record["estimator"] == estimator
    ]
