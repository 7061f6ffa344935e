"""Cells of a table are told apart by everything that decides their number."""

from __future__ import annotations

from pathlib import Path

import pytest

from steinvae.experiments.cells import Cell, train_cell
from steinvae.experiments.mnist_small import cells
from steinvae.report import read_records
from steinvae.signals import StopRequest

ROOT = Path(__file__).resolve().parents[2]


VARIANTS = [
    {"method": {"name": "stein_viwae"}},
    {"method": {"name": "stein_viwae", "weights": "both"}},
    {"method": {"name": "stein_viwae", "log_q": "jac"}},
    {"method": {"name": "stein_viwae", "importance_samples": 2}},
    {"method": {"name": "stein_viwae"}, "model": {"flow_blocks": 3}},
    {"method": {"name": "stein_vae"}},
    {"method": {"name": "stein_vae", "bandwidth_factor": 4.0}},
    {"method": {"name": "stein_vae"}, "model": {"flow_blocks": 3}},
    {"method": {"name": "flow_elbo"}},
    {"method": {"name": "flow_elbo", "weights": "none"}},
    {"method": {"name": "planar_flow"}},
    {"method": {"name": "planar_flow"}, "model": {"planar_layers": 3}},
    {"method": {"name": "iwae"}},
    {"method": {"name": "iwae", "iwae_gradient": "dreg"}},
    {"method": {"name": "vae_weighted_decoder"}},
    {"method": {"name": "vae_weighted_decoder", "entropy_weight": 0.5}},
]


def test_variants_are_different_cells(tiny):
    made = [Cell("row", tiny(**changes)) for changes in VARIANTS]
    keys = {(cell.config.method.name, str(cell.setting())) for cell in made}
    assert len(keys) == len(VARIANTS)


def test_a_finished_cell_does_not_stand_for_another_setting(tiny, digits, tmp_path):
    """The folder has the row's name: the row may have meant something else when it was made."""
    cell = Cell("row", tiny(trainer={"max_steps": 2}))
    with StopRequest() as stop:
        first = train_cell(cell, digits, tmp_path, stop)
        assert train_cell(cell, digits, tmp_path, stop) == first
        for name, changes in (
            ("optimizer.learning_rate", {"optimizer": {"learning_rate": 0.05}}),
            ("trainer.max_steps", {"trainer": {"max_steps": 3}}),
            ("evaluation.samples", {"evaluation": {"samples": 7}}),
        ):
            other = Cell("row", tiny(**{"trainer": {"max_steps": 2}} | changes))
            with pytest.raises(ValueError, match=f"row-0: {name} is"):
                train_cell(other, digits, tmp_path, stop)


def test_committed_records_are_still_found():
    """A record that no cell matches would be measured again."""
    records = read_records(ROOT / "docs" / "results" / "mnist_small.jsonl")
    for cell in cells(None, (0, 1, 2)):
        assert any(cell.matches(record) for record in records), cell.row
