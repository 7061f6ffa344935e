"""The cells of Table 4: images in files, 1 to 40 % of the labels, three methods, by budget.

Split s is the choice of labelled images and the seed of the run, as in Table 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from steinvae.config import GROUPED, Config
from steinvae.experiments.cells import Cell
from steinvae.presets import load_preset

ROWS: dict[str, dict[str, Any]] = {
    "VAE": {"name": "vae"},
    "Stein VAE": {"name": "stein_vae"},
    "Stein VIWAE": {"name": "stein_viwae"},
}
PERCENT = (1, 2, 5, 10, 20, 30, 40)
"""Of the labels of every class."""

NETS = ("tiny_imagenet", "imagenet")
"""Presets: 64 x 64 by scaled nets, or 224 x 224 by those of appendix D."""


@dataclass(frozen=True)
class Budget:
    """What is trained, and for how long."""

    splits: int
    """Where no others are chosen."""

    minutes: float
    """Of a cell, of one core's time or of a GPU's."""

    device: Literal["cpu", "cuda"]


BUDGETS = {"cpu": Budget(3, 60.0, "cpu"), "gpu": Budget(5, 60.0, "cuda")}


def base(budget: Budget, nets: str, root: str | None) -> Config:
    """The configuration that the rows change."""
    start = load_preset(nets)
    trainer = replace(start.trainer, baseline="none", device=budget.device)
    return replace(start, data=replace(start.data, root=root), trainer=trainer)


def cells(
    budget: Budget,
    root: str | None,
    splits: Sequence[int],
    nets: str = NETS[0],
    percent: Sequence[int] = PERCENT,
    rows: Sequence[str] | None = None,
) -> list[Cell]:
    """Share by share of labels, so that a run that was stopped compares methods where it can."""
    start = base(budget, nets, root)
    return [
        Cell(f"{row}, {nets}, {share} %", _config(start, row, share, split), budget.minutes)
        for split in splits
        for share in percent
        for row in rows or ROWS
    ]


def _config(start: Config, row: str, share: int, split: int) -> Config:
    """S codes for every method; Stein VIWAE takes them as one group of k = S."""
    method = replace(start.method, **ROWS[row])
    if method.name in GROUPED:
        codes = start.method.code_particles
        method = replace(method, code_particles=1, importance_samples=codes, theta_particles=1)
    data = replace(start.data, label_fraction=share / 100, split_seed=split)
    return replace(start, seed=split, data=data, method=method)
