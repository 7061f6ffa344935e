"""Rates are what passed divided by the time it took, beside the metrics and apart from them."""

from __future__ import annotations

import sys

import pytest

from steinvae import throughput, train
from steinvae.config import Config
from steinvae.logging import MetricsWriter, Progress, read_metrics
from steinvae.plan import make_plan
from steinvae.presets import load_preset
from steinvae.signals import StopRequest
from steinvae.throughput import Work, work_of
from steinvae.trainer import Trainer


def fit(trainer: Trainer, *, tensorboard: bool = False) -> None:
    with (
        MetricsWriter(trainer.run_dir, trainer.step or None, tensorboard=tensorboard) as metrics,
        Progress(trainer.config.trainer.max_steps, rank=1) as progress,
    ):
        trainer.fit(metrics, progress, StopRequest())


def test_rates_are_work_over_time():
    rates = Work(images=64, decoder_passes=320, flops=10**9).rates(50, 4.0)
    assert rates == {
        "updates_per_second": 12.5,
        "images_per_second": 800,
        "decoder_passes_per_second": 4000,
        "model_flops_per_second": 12.5e9,
    }
    assert Work(8, None, None).rates(2, 1.0) == {"updates_per_second": 2, "images_per_second": 16}
    assert Work(8, 8, 8).rates(1, 0.0) == {}


def test_work_is_that_of_the_plan_where_there_is_one(tiny):
    plan = make_plan(Config())
    assert work_of(Config()) == Work(plan.images, plan.decoder_passes, plan.flops)
    images = tiny().trainer.batch_size
    assert work_of(tiny(data={"name": "own"})) == Work(images, None, None)
    for preset in ("imagenet", "tiny_imagenet", "mnist_labels"):
        labelled = load_preset(preset)
        plan = make_plan(labelled)
        assert work_of(labelled) == Work(plan.images, plan.decoder_passes, plan.flops)
        assert plan.flops > 0


def test_a_line_beside_every_line_of_metrics(tiny, digits, tmp_path, monkeypatch):
    """An update takes half a second of this clock, and nothing else takes any."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    for steps in (11, 20):  # cut between two lines and resumed
        trainer = Trainer(tiny(trainer={"max_steps": steps}), digits, tmp_path)
        trainer.resume()
        original = trainer.update

        def update(step: int, *, monitor: bool, original=original):
            now[0] += 0.5
            return original(step, monitor=monitor)

        trainer.update = update  # type: ignore[method-assign]
        fit(trainer)
    lines = read_metrics(tmp_path / "throughput.jsonl")
    metrics = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert [line["step"] for line in lines] == metrics == [1, 4, 6, 8, 12, 16, 18, 20]
    assert {line["throughput/updates_per_second"] for line in lines} == {2.0}
    assert {line["throughput/images_per_second"] for line in lines} == {32.0}
    passes = trainer.work.decoder_passes
    assert passes is not None
    assert {line["throughput/decoder_passes_per_second"] for line in lines} == {2.0 * passes}
    assert lines[-2]["throughput/seconds_to_go"] == 1.0
    assert trainer.state["seconds"] == 10.0


@pytest.mark.parametrize("left", [5, 0])
def test_tensorboard_has_the_numbers_of_the_metrics(left, tiny, digits, tmp_path):
    """Once each: what a run that was cut had logged after its checkpoint, if any, is purged."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra tensorboard is not installed",
    )
    first = Trainer(tiny(trainer={"max_steps": 9}), digits, tmp_path)
    fit(first, tensorboard=True)
    for path in (tmp_path / "checkpoints").iterdir():
        if path.name != f"step-{left:08d}":
            path.rename(tmp_path / path.name)
    second = Trainer(tiny(), digits, tmp_path)
    second.resume()
    assert second.step == left
    fit(second, tensorboard=True)
    for name in ("metrics", "throughput"):
        events = reader.EventAccumulator(str(tmp_path / "tensorboard" / name)).Reload()
        records = read_metrics(tmp_path / f"{name}.jsonl")
        for tag in {tag for record in records for tag in record} - {"step"}:
            wanted = [(r["step"], r[tag]) for r in records if r.get(tag) is not None]
            found = [(event.step, event.value) for event in events.Scalars(tag)]
            assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in wanted]


def test_a_missing_tensorboard_is_named_with_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    assert train.main(["--trainer.tensorboard=true", f"--run_dir={tmp_path / 'run'}"]) == 1
    assert "the extra of that name" in capsys.readouterr().err
