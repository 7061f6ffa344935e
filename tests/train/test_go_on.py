"""What a run says and leaves where it was stopped, cannot start or has nothing to continue."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from steinvae import signals
from steinvae.checkpoint import latest
from steinvae.run import SetupError, run
from steinvae.signals import Interrupted
from steinvae.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
FIRST = Path("runs/digits-stein_vae-0")


def stop_at(monkeypatch, step: int, *numbers: int) -> None:
    """Signals to this process while it makes update `step`."""
    original = Trainer.update

    def update(self, number, *, monitor):
        if number + 1 == step:
            for each in numbers:
                os.kill(os.getpid(), each)
        return original(self, number, monitor=monitor)

    monkeypatch.setattr(Trainer, "update", update)


def test_a_failed_start_does_not_hide_the_run_to_continue(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = tiny(trainer={"baseline": "none"})
    run(replace(config, trainer=replace(config.trainer, max_steps=7)))
    with pytest.raises(SetupError, match="batch_size"):
        run(replace(config, trainer=replace(config.trainer, batch_size=5000)))
    assert [path.name for path in Path("runs").iterdir()] == [FIRST.name]
    Path(f"{FIRST}-2").mkdir()  # of a start that was killed
    folder, _ = run(replace(config, resume="auto"))
    assert folder == FIRST
    assert "continues from the checkpoint of step 7" in capsys.readouterr().err


def test_a_folder_that_was_there_stays_after_a_failed_start(tiny, tmp_path):
    config = tiny(trainer={"batch_size": 5000})
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for name in ("empty", "full", "new"):
        with pytest.raises(SetupError):
            run(replace(config, run_dir=str(tmp_path / name)))
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "full"}
    assert (tmp_path / "full" / "notes.txt").exists()


def test_nothing_to_resume_is_said(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(tiny(resume="auto", trainer={"baseline": "none", "max_steps": 2}))
    assert f"nothing to resume in {FIRST}: starts at step 0\n" in capsys.readouterr().err
    run(tiny(resume="auto", trainer={"baseline": "none", "max_steps": 2}))
    assert "nothing to resume" not in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["damaged", "cannot be read"])
def test_a_run_does_not_start_over_beside_its_checkpoints(fault, tiny, tmp_path, monkeypatch):
    """Where none can be used; its metrics and checkpoints stay as they are."""
    config = tiny(run_dir=str(tmp_path), resume="auto", trainer={"baseline": "none"})
    short = replace(config, trainer=replace(config.trainer, max_steps=7))
    run(short)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    folder = tmp_path / "checkpoints"
    if fault == "damaged":
        for path in folder.glob("*/state.json"):
            path.write_text("{")
        expected = f"no checkpoint in {folder} can be used, step-00000007, step-00000005: .* move"
        with pytest.warns(UserWarning, match="skipping"), pytest.raises(SetupError, match=expected):
            run(config)
    else:

        def failing(path):
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("steinvae._manifest.sha256_file", failing)
            with pytest.raises(SetupError, match=r"cannot read the checkpoint .*step-00000007: "):
                run(config)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert len(list(folder.glob("step-*"))) == 2
    folder.rename(tmp_path / "away")
    run(short)  # what the line says starts anew
    assert len(list(folder.glob("step-*"))) == 2


def test_a_run_beyond_its_last_step_is_refused(tiny, tmp_path):
    config = tiny(run_dir=str(tmp_path / "run"), resume="auto", trainer={"baseline": "none"})
    run(config)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    short = replace(config, trainer=replace(config.trainer, max_steps=6))
    with pytest.raises(SetupError, match=r"run is at step 20, beyond trainer\.max_steps 6"):
        run(short)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_other_settings_name_the_folder_that_has_them(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tiny(trainer={"baseline": "none", "max_steps": 2}))
    with pytest.raises(SetupError, match=f"run in {FIRST}: .*--config {FIRST}/config.yaml brings"):
        run(tiny(resume="auto", optimizer={"learning_rate": 0.5}))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_says_what_is_saved_and_how_to_go_on(number, tiny, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    stop_at(monkeypatch, 9, number)
    with pytest.raises(Interrupted) as ending:
        run(tiny(run_dir=str(folder)))
    assert ending.value.code == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"stopped by {signal.Signals(number).name}, saved at step 9; continue with: python -m "
        f"steinvae.train --config {folder}/config.yaml --run_dir {folder} --resume auto"
    )


def test_a_second_signal_says_the_checkpoint_that_there_is(tiny, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 9, signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(Interrupted):
        run(tiny(run_dir=str(tmp_path / "run")))
    assert "stopped by SIGTERM, saved at step 5; " in capsys.readouterr().err
    stop_at(monkeypatch, 2, signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(Interrupted):
        run(tiny(run_dir=str(tmp_path / "early")))
    assert "stopped by SIGTERM before its first checkpoint; " in capsys.readouterr().err


@pytest.mark.parametrize("folder", [None, "a folder's name"])
def test_the_command_that_is_said_continues(folder, tiny, tmp_path, monkeypatch, capsys):
    """Also in the folder that it chose itself, with settings that are not the default."""
    from steinvae import train

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, 9, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run(tiny(trainer={"baseline": "none"}, run_dir=folder))
    command = capsys.readouterr().err.splitlines()[-1].split("continue with: ")[1]
    assert train.main(shlex.split(command)[3:]) == 0
    found = latest(FIRST if folder is None else Path(folder))
    assert found is not None
    assert found.name == "step-00000020"


@pytest.fixture
def _restored():
    """The handler of SIGINT."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("_restored")
def test_an_interrupt_that_is_ignored_stays_so():
    """As for a command that a shell's script starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def interrupted() -> int:
        signal.raise_signal(signal.SIGINT)
        return 7

    assert signals.run_command("steinvae.train", interrupted) == 7


@pytest.mark.usefixtures("_restored")
def test_what_has_been_said_is_not_said_again(capsys):
    def stopped() -> int:
        ending = Interrupted(signal.SIGTERM)
        ending.said = True
        raise ending

    with pytest.raises(Interrupted):
        signals.run_command("steinvae.train", stopped)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("rank", "shown"), [("0", "steinvae.train: stopped by SIGINT\n"), ("1", "")]
)
def test_an_interrupt_while_modules_are_imported_is_a_line(rank, shown, tmp_path):
    """The signal comes as soon as the command line's own modules are there."""
    (tmp_path / "jsonargparse.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "steinvae.train"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "RANK": rank},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (130, shown)
