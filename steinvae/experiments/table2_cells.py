"""The cells of Table 2: two decoders of documents by several methods, for equal processor time.

`20news`: 20 Newsgroups, 2,000 words. `nyt`: a small New York Times set, 10,000 words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from steinvae.config import GROUPED, Config, MethodConfig, MethodName
from steinvae.data import Dataset
from steinvae.experiments.cells import Cell
from steinvae.experiments.pilot import with_steps
from steinvae.presets import text, text_deep

CORPORA = {"20news": (3.0, 5.0), "nyt": (1.5, 2.0)}
"""Data sets, and the processor minutes of a run on them: of NVDM's decoder, of the deep network."""

LESS = {"NVDM: VAE": 2 / 3}
"""Share of those minutes for a row whose steps are so fast that two thirds are a hundred epochs."""

VALIDATIONS = 10
"""Estimates on the validation documents during a run; the best parameters are tested."""


class Row(NamedTuple):
    """A method on a decoder."""

    deep: bool
    method: MethodName


ROWS: dict[str, Row] = {
    "NVDM: VAE": Row(False, "vae"),
    "NVDM decoder, Stein VAE": Row(False, "stein_vae"),
    "NVDM decoder, Stein VIWAE": Row(False, "stein_viwae"),
    "deep Poisson, VAE": Row(True, "vae"),
    "deep Poisson, Stein VAE": Row(True, "stein_vae"),
    "deep Poisson, Stein VIWAE": Row(True, "stein_viwae"),
    "control: layered encoder by ELBO": Row(True, "flow_elbo"),
}
FIRST = ("deep Poisson, Stein VIWAE", "NVDM: VAE", "deep Poisson, Stein VAE")
"""What the claims are about runs first."""


def cells(
    corpus: str, root: str | None, seeds: Sequence[int], minutes: float | None = None
) -> list[Cell]:
    """All rows of a corpus, those of the claims first; `minutes` instead of those of CORPORA."""
    order = [*FIRST, *(row for row in ROWS if row not in FIRST)]
    return [
        Cell(row, replace(base(corpus, root, row), seed=seed), _minutes(corpus, row, minutes))
        for seed in seeds
        for row in order
    ]


def base(corpus: str, root: str | None, row: str) -> Config:
    """The configuration of a row: that of its preset, with the row's method."""
    deep, name = ROWS[row]
    preset = text_deep() if deep else text()
    data = replace(preset.data, name=corpus, root=root)  # type: ignore[arg-type]
    encoder = "layered" if name == "flow_elbo" else preset.model.encoder
    return replace(
        preset,
        data=data,
        model=replace(preset.model, encoder=encoder),
        method=_method(name, deep),
        trainer=replace(
            preset.trainer,
            monitor_every=0,
            patience=3,
            keep_checkpoints=1,
            baseline="none",
            device="cpu",
            threads=1,
        ),
    )


def _method(name: MethodName, deep: bool) -> MethodConfig:
    """One code for an ELBO's exact gradient, ten for a Stein direction or for weights."""
    method = (
        text_deep().method if deep else replace(text_deep().method, log_q="gauss", kernel_block=0)
    )
    codes = 1 if name == "vae" else 10
    if name in GROUPED:
        return replace(method, name=name, code_particles=1, importance_samples=codes)
    return replace(method, name=name, code_particles=codes, importance_samples=1)


def _minutes(corpus: str, row: str, minutes: float | None) -> float:
    """Processor minutes of a row's run, by default those that `CORPORA` gives its decoder."""
    return (minutes or CORPORA[corpus][ROWS[row].deep]) * LESS.get(row, 1.0)


def timed(cell: Cell, dataset: Dataset, run_dir: Path) -> Cell:
    """The cell with the steps of its minutes, validated and saved ten times on its way."""
    cell = with_steps(cell, dataset, run_dir)
    trainer = cell.config.trainer
    every = max(1, trainer.max_steps // VALIDATIONS)
    trainer = replace(trainer, validate_every=every, checkpoint_every=every)
    return replace(cell, config=replace(cell.config, trainer=trainer))
