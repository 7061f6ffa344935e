"""A run that was cut and resumed equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steinvae import checkpoint
from steinvae.logging import MetricsWriter, Progress
from steinvae.run import SetupError, load_data, run
from steinvae.signals import Interrupted, StopRequest
from steinvae.throughput import Throughput
from steinvae.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


def fit(trainer: Trainer, stop: StopRequest | None = None) -> None:
    with (
        MetricsWriter(trainer.run_dir, trainer.step or None) as metrics,
        Progress(trainer.config.trainer.max_steps, rank=1) as progress,
    ):
        trainer.fit(metrics, progress, stop or StopRequest())


def newest(run_dir: Path) -> checkpoint.Checkpoint:
    path = checkpoint.latest(run_dir)
    assert path is not None
    return checkpoint.load(path)


def assert_same_run(first: Path, second: Path) -> None:
    one, other = newest(first), newest(second)
    assert one.step == other.step
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
    untimed = {"seconds": 0, "cpu_seconds": 0}
    assert one.state | untimed == other.state | untimed
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


CASES = {
    "stein": {},
    "dynamic": {"data": {"binarization": "dynamic"}},
    "strat": {"method": {"theta_particles": 5, "pairing": "strat"}},
    "regression": {"method": {"regression_steps": 2}},
    "viwae": {"method": {"name": "stein_viwae", "theta_particles": 5, "pairing": "strat"}},
    "blocks": {"model": {"flow_blocks": 2}},
    "vae": {"method": {"name": "vae"}},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("cut", [7, 12])
def test_cut_and_resumed_equals_uninterrupted(case, cut, tiny, tmp_path):
    config = tiny(**case)
    dataset = load_data(config)
    fit(Trainer(config, dataset, tmp_path / "whole"))
    short = tiny(**case | {"trainer": {"max_steps": cut}})
    fit(Trainer(short, dataset, tmp_path / "cut"))
    resumed = Trainer(config, dataset, tmp_path / "cut")
    assert resumed.resume()
    assert resumed.step == cut
    assert resumed.state == newest(tmp_path / "cut").state
    assert resumed.state["best_step"] == cut // 6 * 6
    fit(resumed)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_resume_after_a_crash_between_checkpoints(tiny, digits, tmp_path, monkeypatch):
    """Metrics that were written after the last checkpoint are neither lost nor doubled."""
    fit(Trainer(tiny(), digits, tmp_path / "whole"))
    crashing = Trainer(tiny(), digits, tmp_path / "crash")
    original = crashing.update

    def update(step: int, *, monitor: bool):
        if step == 13:
            raise MemoryError("simulated")
        return original(step, monitor=monitor)

    monkeypatch.setattr(crashing, "update", update)
    with pytest.raises(MemoryError):
        fit(crashing)
    resumed = Trainer(tiny(), digits, tmp_path / "crash")
    assert resumed.resume()
    assert resumed.step == 10
    fit(resumed)
    assert_same_run(tmp_path / "whole", tmp_path / "crash")


@pytest.mark.parametrize("space", [0, 1000])
@pytest.mark.parametrize("in_background", [True, False])
def test_a_full_disk_ends_the_run_and_loses_nothing(space, in_background, tiny, digits, tmp_path):
    """No file may grow beyond `space` bytes from step 7 on; 0 is no further line of metrics."""
    fit(Trainer(tiny(), digits, tmp_path / "whole"))
    config = tiny(trainer={"save_in_background": in_background})
    trainer = Trainer(config, digits, tmp_path / "full")
    update, limit = trainer.update, resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(step: int, *, monitor: bool):
        if step == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (space, limit[1]))
        return update(step, monitor=monitor)

    trainer.update = filling  # type: ignore[method-assign]
    try:
        with pytest.raises(OSError, match="File too large"):
            fit(trainer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert os.listdir(tmp_path / "full" / "checkpoints") == ["step-00000005"]
    resumed = Trainer(config, digits, tmp_path / "full")
    assert resumed.resume()
    fit(resumed)
    assert_same_run(tmp_path / "whole", tmp_path / "full")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tiny, tmp_path, capsys):
    """With a line for what is wrong and one for what is taken; the run ends as it would have."""
    config = tiny(trainer={"baseline": "none"})
    run(replace(config, run_dir=str(tmp_path / "whole")))
    resumed = replace(config, run_dir=str(tmp_path / "cut"), resume="auto")
    run(replace(resumed, trainer=replace(config.trainer, max_steps=12)))
    file = tmp_path / "cut" / "checkpoints" / "step-00000012" / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"damaged checkpoint: .*step-00000012/.*SHA-256"):
        run(resumed)
    assert "stein_vae: continues from the checkpoint of step 10\n" in capsys.readouterr().err
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_resume_without_a_checkpoint_starts_over(tiny, digits, tmp_path):
    assert not Trainer(tiny(), digits, tmp_path).resume()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_at_a_step_boundary_with_a_checkpoint(number, tiny, digits, tmp_path):
    fit(Trainer(tiny(), digits, tmp_path / "whole"))
    trainer = Trainer(tiny(), digits, tmp_path / "stopped")
    original = trainer.update

    def update(step: int, *, monitor: bool):
        if step == 8:
            os.kill(os.getpid(), number)
        return original(step, monitor=monitor)

    trainer.update = update  # type: ignore[method-assign]
    with StopRequest() as stop, pytest.raises(Interrupted) as ended:
        fit(trainer, stop)
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is not stop._handle
    resumed = Trainer(tiny(), digits, tmp_path / "stopped")
    assert resumed.resume()
    assert resumed.step == 9
    fit(resumed)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("place", ["write", "sync"])
def test_a_signal_between_two_lines_of_the_loop_saves_its_step(
    place, tiny, digits, tmp_path, monkeypatch
):
    """While metrics are written or forced to the disk, after the loop has asked for signals."""
    original, sent = getattr(MetricsWriter, place), []

    def interrupted(self, *arguments):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return original(self, *arguments)

    monkeypatch.setattr(MetricsWriter, place, interrupted)
    settings = {"max_steps": 9, "log_every": 3, "checkpoint_every": 4, "save_in_background": False}
    trainer = Trainer(tiny(trainer=settings), digits, tmp_path)
    with StopRequest() as stop, pytest.raises(Interrupted):
        fit(trainer, stop)
    assert 1 < trainer.step < 9
    assert newest(tmp_path).step == trainer.step


def test_a_signal_after_the_last_update_is_not_lost(tiny, digits, tmp_path, monkeypatch):
    """While the block of the loop ends, after its last question for signals."""
    original = Throughput.__exit__

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(Throughput, "__exit__", interrupted)
    trainer = Trainer(tiny(trainer={"max_steps": 3}), digits, tmp_path)
    with StopRequest() as stop, pytest.raises(Interrupted):
        fit(trainer, stop)
    assert newest(tmp_path).step == 3


@pytest.mark.parametrize("name", ["metrics.jsonl", "throughput.jsonl"])
def test_damaged_records_are_refused_before_training(name, tiny, tmp_path):
    config = tiny(trainer={"baseline": "none", "max_steps": 4})
    config = replace(config, run_dir=str(tmp_path / "run"))
    run(config)
    path = tmp_path / "run" / name
    path.write_text("damage\n" + path.read_text())
    with pytest.raises(SetupError, match=rf"{name}, line 1: expected JSON"):
        run(replace(config, resume="auto", trainer=replace(config.trainer, max_steps=6)))


def test_other_training_data_is_refused(tiny, digits, tmp_path):
    """A file in the old one's place: fewer images, other pixels."""
    trainer = Trainer(tiny(), digits, tmp_path)
    trainer.save(trainer.tensors())
    trainer.settle()
    pixels = digits.train.pixels.clone()
    pixels[0, 0] += 1
    fewer = replace(digits.train, pixels=digits.train.pixels[1:], labels=digits.train.labels[1:])
    for split, named in ((replace(digits.train, pixels=pixels), "pixels"), (fewer, "examples")):
        other = Trainer(tiny(), replace(digits, train=split), tmp_path)
        with pytest.raises(ValueError, match=rf"must keep the training data .*{named} is"):
            other.resume()
    assert Trainer(tiny(), digits, tmp_path).resume()


def test_second_signal_ends_at_once():
    with StopRequest() as stop:
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested == signal.SIGTERM
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.check()


def arguments(run_dir: Path, steps: int) -> list[str]:
    return [
        f"--run_dir={run_dir}",
        f"--trainer.max_steps={steps}",
        "--trainer.validate_every=20",
        "--trainer.checkpoint_every=10",
        "--trainer.log_every=5",
        "--trainer.baseline=none",
        "--trainer.device=cpu",
        "--model.hidden=[16]",
        "--evaluation.samples=20",
        "--evaluation.images=8",
        "--resume=auto",
    ]


def start(run_dir: Path, steps: int) -> subprocess.Popen[str]:
    """The real command in its own process."""
    return subprocess.Popen(
        [sys.executable, "-m", "steinvae.train", *arguments(run_dir, steps)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = checkpoint.latest(run_dir)
        if found is not None and int(found.name.removeprefix("step-")) >= step:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{run_dir} reached no checkpoint of step {step} in 120 s")


STEPS = 400


def finish(run_dir: Path) -> None:
    process = start(run_dir, STEPS)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_stopped_command_resumes_to_the_same_run(tmp_path):
    """The command itself, ended twice, against a run that nothing interrupted. (SIGKILL:
    tests/faults/test_kill.py)"""
    finish(tmp_path / "whole")
    ends = {30: (signal.SIGINT, 130), 130: (signal.SIGTERM, 143)}
    for step, (number, code) in ends.items():
        process = start(tmp_path / "cut", STEPS)
        wait_for_step(tmp_path / "cut", step)
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        process.communicate()
        assert newest(tmp_path / "cut").step < STEPS
    finish(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "cut")]
    assert models[0] == models[1]


def test_resuming_a_finished_run_changes_nothing(tiny, tmp_path):
    config = tiny(run_dir=str(tmp_path / "run"), resume="auto", trainer={"baseline": "none"})
    _, first = run(config)
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    _, second = run(config)
    assert first[0]["nll"] == second[0]["nll"]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
