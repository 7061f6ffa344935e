"""Fixed binarised MNIST on a short budget: does Stein learning keep up, and does eq. 5 as printed?

2x128 tanh, 20 codes, batches of 32, 10 codes an image, 1,500 steps of Adam 2e-3 with a cosine. The
paper has no numbers for this budget; its Table 1 trains the 200-200 networks to convergence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steinvae.experiments.cells import Cell, Record, find, run_cells
from steinvae.experiments.over_seeds import shown
from steinvae.presets import mnist_small
from steinvae.report import markdown_table, read_records

NAME = "mnist_small"
ROWS: dict[str, dict[str, Any]] = {
    "VAE": {"name": "vae"},
    "IWAE": {"name": "iwae"},
    "Stein VAE, leave one out": {"name": "stein_vae", "self_term": "leave_one_out"},
    "Stein VAE, self included (eq. 5 as printed)": {"name": "stein_vae", "self_term": "include"},
}


def cells(root: str | None, seeds: Sequence[int]) -> list[Cell]:
    """Every row for every seed, seed by seed, so that a partial run compares the rows."""
    base = mnist_small()
    base = replace(
        base,
        data=replace(base.data, root=root),
        trainer=replace(base.trainer, baseline="none"),
    )
    return [
        Cell(row, replace(base, seed=seed, method=replace(base.method, **changes)))
        for seed in seeds
        for row, changes in ROWS.items()
    ]


def run(root: str | None, seeds: Sequence[int], output: Path, run_dir: Path) -> str:
    """Run what is missing and return the table."""
    wanted = cells(root, seeds)
    run_cells(NAME, wanted, output, run_dir)
    return table(output, seeds)


def table(output: Path, seeds: Sequence[int]) -> str:
    """The table, drawn from the records in `output`; empty where none is of these seeds."""
    records = read_records(output)
    by_row: dict[str, dict[int, Record]] = {row: {} for row in ROWS}
    for cell in cells(None, seeds):
        record = find(cell, records)
        if record is not None:
            by_row[cell.row][cell.config.seed] = record
    if not any(by_row.values()):
        return ""
    rows = [_line(row, by_row[row], by_row["VAE"], seeds) for row in ROWS if by_row[row]]
    header = ("method", *(f"seed {seed}" for seed in seeds), "mean", "minus VAE", "s / run")
    return f"{markdown_table(header, rows)}\n\n{_caption(by_row)}"


def _line(
    row: str, own: dict[int, Record], reference: dict[int, Record], seeds: Sequence[int]
) -> list[str]:
    values = {seed: record["value"] for seed, record in own.items()}
    differences = [values[seed] - reference[seed]["value"] for seed in values if seed in reference]
    seconds = min(record["seconds"] for record in own.values())
    return [
        row,
        *(f"{values[seed]:.1f}" if seed in values else "-" for seed in seeds),
        shown(list(values.values()), 1),
        shown(differences, 1) if differences and row != "VAE" else "-",
        f"{seconds:.0f}",
    ]


def _caption(by_row: dict[str, dict[int, Record]]) -> str:
    one = next(record for row in by_row.values() for record in row.values())
    return (
        f"Test NLL in nats an image, lower is better: {one['estimator']} on the same {one['n']} "
        f"test images; the standard error over images is {one['stderr']:.1f} and is common to all "
        "rows, so compare by the differences, whose errors are over seeds. s / run: wall time of "
        "the fastest seed, on a machine with other work."
    )
