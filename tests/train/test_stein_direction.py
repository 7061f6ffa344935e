"""The study of directions: what it records of a checkpoint, and the tables on the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from steinvae.config import Config, MethodConfig, ModelConfig, TrainerConfig
from steinvae.experiments import stein_direction as experiment
from steinvae.experiments.direction_variants import DEFAULT, VARIANTS
from steinvae.networks import build_networks
from steinvae.report import append_records, read_records
from steinvae.run import load_data

ROOT = Path(__file__).resolve().parents[2]


def test_a_late_checkpoint_is_looked_at_with_more_codes(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "REPEATS", {10: 4, 20: 3})
    monkeypatch.setattr(experiment, "MINIBATCHES", 2)
    config = Config(model=ModelConfig(codes=3, hidden=(8,)), method=MethodConfig(theta_particles=1))
    dataset = load_data(config)
    networks = build_networks(config, dataset.train.features, "cpu")
    output = tmp_path / "records.jsonl"
    for steps in experiment.STEPS:
        late = replace(config, trainer=TrainerConfig(max_steps=steps))
        append_records(output, list(experiment.look(late, networks, dataset)))
    records = read_records(output)
    columns = len(experiment.COLUMNS)
    assert len(records) == columns * (2 * len(VARIANTS) + len(experiment.MORE_CODES))
    (equal,) = (
        record["value"]
        for record in records
        if record["method"] == DEFAULT
        and record["metric"] == "equal_time"
        and record["setting"]["steps"] == 6000
        and record["setting"]["samples"] == 10
    )
    (once,) = (
        record["value"]
        for record in records
        if record["method"] == DEFAULT
        and (record["metric"], record["setting"]["part"]) == ("cosine", "width")
        and record["setting"]["steps"] == 6000
        and record["setting"]["samples"] == 10
    )
    assert equal == once  # one update's time buys one update
    text = experiment.table(output, (0,))
    assert text.count("after") == 3
    assert len(text.splitlines()) == 2 * len(VARIANTS) + len(experiment.MORE_CODES) + 3 * 2 + 2


def test_page_shows_the_committed_records():
    records = ROOT / "docs" / "results" / "stein_direction.jsonl"
    page = (ROOT / "docs" / "stein_encoder.md").read_text(encoding="utf-8")
    assert experiment.table(records, (0, 1, 2)) in page
    assert {one["experiment"] for one in read_records(records)} == {experiment.NAME}
    assert torch.tensor([one["value"] for one in read_records(records)]).isfinite().all()
