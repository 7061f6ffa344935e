"""The worked example of the documentation runs as it is printed, and learns."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from steinvae._atomic import InUseError
from steinvae.checkpoint import lock_run_dir
from steinvae.logging import read_metrics
from steinvae.run import prepare_with, train
from steinvae.signals import StopRequest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_model.md"


@pytest.fixture
def example(tmp_path, monkeypatch) -> dict:
    """What the page's code leaves behind, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    names: dict = {"__name__": "own_model"}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_example_of_the_documentation_trains(example):
    nll = example["result"]["nll"]
    assert nll["estimator"] == "iw_g(100)"
    records = read_metrics(Path("runs/own/metrics.jsonl"))
    trained = [record for record in records if "train/distortion" in record]
    assert trained[-1]["train/distortion"] < trained[0]["train/distortion"] - 100
    assert 1 < trained[-1]["train/effective_samples"] <= 5
    first, last = (item["validation/nll"] for item in records if "validation/nll" in item)
    assert last < first
    assert {"config.yaml", "result.json", "samples.png"} <= {
        path.name for path in Path("runs/own").iterdir()
    }


def test_run_of_own_networks_has_a_report_and_a_lock(example):
    assert "iw_g(100)" in Path("runs/own/report.md").read_text("utf-8")
    config = replace(example["config"], run_dir="runs/second")
    trainer = prepare_with(example["networks"], config, example["dataset"])
    held = lock_run_dir(Path("runs/second"))
    with held, StopRequest() as stop, pytest.raises(InUseError, match="in use by"):
        train(trainer, stop)


def test_run_of_own_networks_is_not_overwritten(example):
    with pytest.raises(ValueError, match="already holds a run"):
        prepare_with(example["networks"], example["config"], example["dataset"])


def test_run_of_own_networks_is_continued_with_its_settings_alone(example):
    config = replace(example["config"], resume="auto")
    prepare_with(example["networks"], config, example["dataset"])
    before = Path("runs/own/config.yaml").read_bytes()
    other = replace(config, optimizer=replace(config.optimizer, learning_rate=1e-2))
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate is 0\.01, was"):
        prepare_with(example["networks"], other, example["dataset"])
    assert Path("runs/own/config.yaml").read_bytes() == before
