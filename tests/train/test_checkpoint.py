"""Checkpoints come back bit for bit, and only whole ones come back."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch

from steinvae import checkpoint
from steinvae._hidden import _host
from steinvae.checkpoint import latest, load, lock_run_dir, prune, save
from steinvae.saving import Saver


def tensors() -> dict[str, torch.Tensor]:
    buffer = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    return {
        "theta": buffer,
        "row": buffer[1],  # a view of theta
        "transposed": buffer.T,
        "same": buffer,
        "rng": torch.Generator().manual_seed(1).get_state(),
        "half": buffer.bfloat16(),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 5),
        "parameter": torch.nn.Parameter(buffer.double()),
    }


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def names(run_dir) -> list[str]:
    return sorted(os.listdir(run_dir / "checkpoints"))


def test_tensors_and_state_come_back_bit_for_bit(tmp_path):
    state = {
        "loss": 0.1 + 0.2,
        "best": None,
        "order": [1, [2, 3]],
        "name": "é",
        "deep": {"a": True},
    }
    path = save(tmp_path, 1234, tensors(), state)
    assert path == tmp_path / "checkpoints" / "step-00001234"
    loaded = load(path)
    assert (loaded.step, loaded.state) == (1234, state)
    assert loaded.tensors.keys() == tensors().keys()
    for name, tensor in tensors().items():
        got = loaded.tensors[name]
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        assert as_bytes(got) == as_bytes(tensor)


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    umask = os.umask(0o022)
    try:
        path = save(tmp_path, 1, tensors(), {})
    finally:
        os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o644}


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    path = save(tmp_path, 1, tensors(), {})
    assert sorted(os.listdir(path)) == ["manifest.json", "state.json", "tensors.safetensors"]
    assert names(tmp_path) == ["step-00000001"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1, tensors(), {"try": 1})
    save(tmp_path, 1, {"x": torch.ones(2)}, {"try": 2})
    loaded = load(tmp_path / "checkpoints" / "step-00000001")
    assert (loaded.state, list(loaded.tensors)) == ({"try": 2}, ["x"])
    assert names(tmp_path) == ["step-00000001"]


def test_latest_goes_by_number(tmp_path):
    assert latest(tmp_path) is None
    for step in (99_999_999, 100_000_000, 5):
        save(tmp_path, step, {}, {})
    found = latest(tmp_path)
    assert found is not None
    assert found.name == "step-100000000"
    assert load(found).step == 100_000_000


def test_prune_keeps_the_newest(tmp_path):
    for step in range(5):
        save(tmp_path, step, {}, {})
    prune(tmp_path, 2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    prune(tmp_path, 2)
    assert len(names(tmp_path)) == 2
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        prune(tmp_path, 0)


def test_prune_counts_whole_checkpoints_only(tmp_path):
    for step in range(4):
        save(tmp_path, step, {}, {"step": step})
    (tmp_path / "checkpoints" / "step-00000003" / "state.json").write_text("{")
    prune(tmp_path, 1)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]  # the damaged one is left


def test_prune_removes_nothing_while_what_stays_is_damaged(tmp_path):
    for step in range(3):
        save(tmp_path, step, {}, {"step": step})
    (tmp_path / "checkpoints" / "step-00000002" / "state.json").write_text('{"step": 3}')
    prune(tmp_path, 1)
    assert len(names(tmp_path)) == 3
    prune(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_prune_keeps_what_was_written_below_damaged_later_steps(tmp_path):
    """Those that the run has passed over: they neither count nor go, though their sizes fit."""
    for step in (1, 2, 30, 40):
        save(tmp_path, step, {}, {"step": step})
    for step in (30, 40):
        (tmp_path / "checkpoints" / f"step-000000{step}" / "state.json").write_text('{"step": 99}')
    prune(tmp_path, 1, written=2)
    assert names(tmp_path) == ["step-00000002", "step-00000030", "step-00000040"]


def test_prune_never_removes_what_was_just_written(tmp_path):
    for step in (1, 2, 30):
        save(tmp_path, step, {}, {})
    prune(tmp_path, 1, written=2)
    assert names(tmp_path) == ["step-00000002", "step-00000030"]


def test_require_lists_every_difference(tmp_path):
    loaded = load(
        save(tmp_path, 3, {"a": torch.ones(2, 3), "b": torch.ones(2), "x": torch.ones(1)}, {})
    )
    loaded.require(
        {"a": ((2, 3), torch.float32), "b": ((2,), torch.float32), "x": ((1,), torch.float32)}
    )
    with pytest.raises(
        ValueError, match=r"step 3: missing c; unexpected x; b .*shape \(4,\), got \(2,\)"
    ):
        loaded.require(
            {"a": ((2, 3), torch.float32), "b": ((4,), torch.float32), "c": ((), torch.float32)}
        )
    with pytest.raises(TypeError, match=r"step 3: a expected torch.float64, got torch.float32$"):
        loaded.require(
            {"a": ((2, 3), torch.float64), "b": ((2,), torch.float32), "x": ((1,), torch.float32)}
        )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x": torch.ones(1)}, "Tensor is not JSON serializable"),
        ({"x": float("nan")}, "not JSON compliant"),
        ({"x": (1, 2)}, "JSON alters it"),
        ({1: 2}, "JSON alters it"),
    ],
)
def test_a_state_that_json_would_change_is_refused(tmp_path, state, message):
    with pytest.raises(TypeError, match=message):
        save(tmp_path, 1, {}, state)
    assert latest(tmp_path) is None


def test_a_negative_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        save(tmp_path, -1, {}, {})


def test_a_failed_replacement_puts_the_old_one_back(tmp_path, monkeypatch):
    save(tmp_path, 1, {}, {"try": 1})
    rename = os.rename

    def failing(source, target):
        if ".tmp-" in str(source):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(checkpoint.os, "rename", failing)
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*Input/output error.*intact"):
        save(tmp_path, 1, {}, {"try": 2})
    assert load(tmp_path / "checkpoints" / "step-00000001").state == {"try": 1}
    assert names(tmp_path) == ["step-00000001"]


class TestLeftovers:
    """What a kill leaves is cleaned when its owner is dead, and only then."""

    def leave(self, run_dir, kind: str, owner: int, host: str, step: int = 7):
        path = run_dir / "checkpoints" / f".{kind}-{step}-{host}-{owner}-{'0' * 32}"
        path.mkdir(parents=True)
        (path / "tensors.safetensors").write_bytes(b"half")
        return path

    def test_dead_owner(self, tmp_path):
        path = self.leave(tmp_path, "tmp", dead_process(), _host())
        trash = self.leave(tmp_path, "trash", os.getpid(), _host())  # an earlier process's number
        save(tmp_path, 8, {}, {})
        assert not path.exists()
        assert not trash.exists()

    def test_living_owner_and_other_host(self, tmp_path):
        living = self.leave(tmp_path, "tmp", os.getppid(), _host())
        elsewhere = self.leave(tmp_path, "tmp", dead_process(), "0" * 8)
        foreign = tmp_path / "checkpoints" / ".tmp-of-a-user"
        foreign.mkdir()
        with lock_run_dir(tmp_path):
            assert living.exists()
            assert elsewhere.exists()
            assert foreign.exists()

    def test_a_replaced_checkpoint_returns_when_its_successor_never_came(self, tmp_path):
        final = save(tmp_path, 7, {}, {"try": 1})
        aside = final.with_name(f".old-7-{_host()}-{dead_process()}-{'0' * 32}")
        final.rename(aside)
        with lock_run_dir(tmp_path):
            assert load(final).state == {"try": 1}
        assert names(tmp_path) == ["step-00000007"]

    def test_a_replaced_checkpoint_goes_when_its_successor_is_there(self, tmp_path):
        final = save(tmp_path, 7, {}, {"try": 2})
        self.leave(tmp_path, "old", dead_process(), _host())
        with lock_run_dir(tmp_path):
            assert load(final).state == {"try": 2}
        assert names(tmp_path) == ["step-00000007"]


class TestLock:
    def test_what_a_kill_cut_short_goes(self, tmp_path):
        cut = [
            tmp_path / ".model-0123abcd.safetensors",
            tmp_path / "baseline-vae" / ".result-89abcdef.json",
        ]
        kept = [tmp_path / ".notes-of-mine.txt", tmp_path / "model.safetensors"]
        (tmp_path / "baseline-vae").mkdir()
        for path in (*cut, *kept):
            path.touch()
        with checkpoint.lock_run_dir(tmp_path):
            assert [path.exists() for path in (*cut, *kept)] == [False, False, True, True]

    def test_two_runs_cannot_share_a_directory(self, tmp_path):
        with (
            lock_run_dir(tmp_path),
            pytest.raises(RuntimeError, match=f"in use by process {os.getpid()} on "),
            lock_run_dir(tmp_path),
        ):
            raise AssertionError("the lock was given twice")
        with lock_run_dir(tmp_path):
            text = (tmp_path / ".lock").read_text()
        assert text == f"process {os.getpid()} on {socket.gethostname()}"

    def test_another_process_is_named_and_its_death_frees_the_directory(self, tmp_path):
        program = (
            "import fcntl, os, sys, time; f = open(sys.argv[1], 'w'); "
            "fcntl.flock(f, fcntl.LOCK_EX); f.write(f'process {os.getpid()} on x'); f.flush(); "
            "print('held', flush=True); time.sleep(60)"
        )
        command = [sys.executable, "-c", program, str(tmp_path / ".lock")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with (
                pytest.raises(RuntimeError, match=f"in use by process {holder.pid} on x"),
                lock_run_dir(tmp_path),
            ):
                raise AssertionError("the lock was given twice")
            holder.kill()
        with lock_run_dir(tmp_path):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def wait_for(event: threading.Event) -> None:
    event.wait(60)


@pytest.mark.parametrize("in_background", [False, True])
def test_what_is_saved_is_what_was_there_when_save_returned(in_background, tmp_path):
    """The loop goes on and changes everything, the disk being slow: `before` waits for it."""
    tensors, state, changed = {"theta": torch.zeros(3)}, {"step": 5}, threading.Event()
    with Saver(tmp_path, 2, in_background=in_background) as saver:
        slow = partial(wait_for, changed) if in_background else None
        saver.save(5, tensors, state, slow)
        tensors["theta"].fill_(1.0)
        state["step"] = 6
        changed.set()
        saver.wait()
    found = checkpoint.load(tmp_path / "checkpoints/step-00000005")
    assert torch.equal(found.tensors["theta"], torch.zeros(3))
    assert found.state == {"step": 5}


@pytest.mark.parametrize("in_background", [False, True])
def test_metrics_are_on_the_disk_before_their_checkpoint(in_background, tmp_path):
    """A kill between the two would leave a checkpoint that is ahead of its records."""
    seen = []
    with Saver(tmp_path, 2, in_background=in_background) as saver:
        saver.save(
            5, {"theta": torch.zeros(3)}, {}, lambda: seen.append(checkpoint.latest(tmp_path))
        )
    assert seen == [None]
    assert checkpoint.latest(tmp_path) is not None
