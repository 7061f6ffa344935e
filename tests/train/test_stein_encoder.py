"""The tables of the Stein encoder: gains are paired by seed, over the control of that horizon."""

from __future__ import annotations

from pathlib import Path

import torch

from steinvae.experiments import stein_encoder as experiment
from steinvae.report import append_records, read_records

ROOT = Path(__file__).resolve().parents[2]


def test_gain_is_the_paired_difference_to_the_control(tmp_path):
    output = tmp_path / "records.jsonl"
    values = {experiment.CONTROL: (100.0, 104.0), "Stein": (98.0, 103.0)}
    for row, by_seed in values.items():
        for seed, value in enumerate(by_seed):
            config = experiment.configuration(row, 6000, seed, None)
            lower = torch.tensor([-value - 1, -value + 1], dtype=torch.float64)
            append_records(output, [experiment.record(row, config, lower, 7.0)])
    text = experiment.table(output, (0, 1))
    assert "6,000 steps" in text
    assert "1,500 steps" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| Stein")]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    # (100 - 98, 104 - 103): mean 1.5, standard deviation 1/sqrt 2, over sqrt 2.
    assert cells == ["Stein", "98.00", "103.00", "100.5 ± 2.5", "1.5 ± 0.5", "7"]


def test_page_shows_the_committed_records():
    records = ROOT / "docs" / "results" / "stein_encoder.jsonl"
    page = (ROOT / "docs" / "stein_encoder.md").read_text(encoding="utf-8")
    assert experiment.table(records, (0, 1, 2)) in page
    assert {one["experiment"] for one in read_records(records)} == {experiment.NAME}
