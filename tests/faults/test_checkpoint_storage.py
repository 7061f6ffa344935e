"""Damaged, hostile and unwritable checkpoints: one clear error each, older checkpoints intact."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from steinvae import _manifest
from steinvae.checkpoint import latest, load, save

REPOSITORY = Path(__file__).resolve().parents[2]


class Bomb:
    """Unpickling it would make a directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory with checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save(tmp_path, step, {"x": torch.arange(6.0)}, {"step": step})
    return tmp_path


def newest(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "step-00000002"


def reseal(path: Path) -> None:
    """A manifest that fits whatever lies in the directory: what a hostile writer would add."""
    _manifest.write_manifest(path, 2, ("tensors.safetensors", "state.json"))


def assert_falls_back(run_dir: Path, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load(newest(run_dir))
    with pytest.warns(UserWarning, match=reason) as caught:
        found = latest(run_dir)
    assert len(caught) == 1
    assert found is not None
    assert load(found).state == {"step": 1}


def truncate(path: Path, name: str) -> None:
    os.truncate(path / name, (path / name).stat().st_size - 1)


def flip(path: Path, name: str) -> None:
    content = bytearray((path / name).read_bytes())
    content[-3] ^= 1
    (path / name).write_bytes(content)


def newer_format(path: Path, _: str) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["format"] = 2
    (path / "manifest.json").write_text(json.dumps(manifest))


def other_files(path: Path, _: str) -> None:
    body = {"format": 1, "step": 2, "files": {"../../x": {"bytes": 0, "sha256": ""}}}
    text = json.dumps({**body, "sha256": _manifest.digest_of(body)})
    (path / "manifest.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (truncate, "tensors.safetensors", "tensors.safetensors: expected 88 bytes, got 87"),
        (truncate, "state.json", "state.json: expected 11 bytes, got 10"),
        (flip, "tensors.safetensors", "tensors.safetensors: .*SHA-256"),
        (flip, "state.json", "state.json: .*SHA-256"),
        (lambda p, n: os.truncate(p / n, 40), "manifest.json", "manifest.json: expected JSON"),
        (lambda p, n: (p / n).write_bytes(b""), "manifest.json", "manifest.json: expected JSON"),
        (lambda p, n: (p / n).write_text("[1]"), "manifest.json", "expected a JSON object"),
        (lambda p, n: (p / n).write_text("[" * 60_000), "manifest.json", "expected JSON"),
        (lambda p, n: (p / n).write_bytes(bytes(10**6)), "manifest.json", "got 1000000 bytes"),
        (lambda p, n: (p / n).unlink(), "manifest.json", "manifest.json: the manifest is missing"),
        (lambda p, n: (p / n).unlink(), "state.json", "state.json: the file is missing"),
        (lambda p, n: (p / n).unlink(), "tensors.safetensors", "the file is missing"),
        (newer_format, "", "format 2, this version of steinvae reads up to 1; install a newer"),
        (other_files, "", "expected the files"),
    ],
)
def test_damage_is_named_and_the_step_before_is_used(run, damage, name, reason):
    damage(newest(run), name)
    assert_falls_back(run, reason)


def test_a_flipped_bit_in_any_byte_is_noticed_or_harmless(run):
    before = load(newest(run))
    for name in ("tensors.safetensors", "state.json", "manifest.json"):
        path = newest(run) / name
        content = path.read_bytes()
        for byte in range(len(content)):
            flipped = bytearray(content)
            flipped[byte] ^= 1 << byte % 8
            path.write_bytes(flipped)
            try:
                got = load(newest(run))
            except ValueError:
                continue
            assert name == "manifest.json"  # white space between its tokens
            assert (got.step, got.state) == (2, before.state)
            assert torch.equal(got.tensors["x"], before.tensors["x"])
        path.write_bytes(content)


def test_a_fifo_in_place_of_a_file_does_not_hang(run):
    (newest(run) / "state.json").unlink()
    os.mkfifo(newest(run) / "state.json")
    assert_falls_back(run, "state.json: the file is missing")


def test_a_checkpoint_under_another_step_is_refused(run):
    shutil.copytree(newest(run), run / "checkpoints" / "step-00000009")
    with pytest.warns(UserWarning, match="expected step 9, the manifest says 2"):
        assert latest(run) == newest(run)
    shutil.copytree(newest(run), run / "best")
    assert load(run / "best").step == 2
    manifest = run / "best" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 2', '"step": 3'))
    with pytest.raises(ValueError, match="the manifest does not match its own checksum"):
        load(run / "best")


def test_files_in_place_of_directories_are_never_opened(tmp_path, run):
    marker = tmp_path / "ran"
    bomb = tmp_path / "model.pt"
    bomb.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ValueError, match=r"expected a checkpoint directory, got a file; .*pickle"):
        load(bomb)
    with pytest.raises(FileNotFoundError, match="there is no such checkpoint"):
        load(tmp_path / "nowhere")
    (run / "checkpoints" / "step-00000003").symlink_to("gone")
    shutil.copy(bomb, run / "checkpoints" / "step-00000004")
    with pytest.warns(UserWarning, match="skipping") as caught:
        assert latest(run) == newest(run)
    assert len(caught) == 2
    assert not marker.exists()


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")


def overlapping(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def beyond_the_end(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    header = json.dumps({"a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


@pytest.mark.parametrize("write", [huge_header, overlapping, beyond_the_end])
def test_hostile_safetensors_with_a_fitting_manifest_are_refused(run, write):
    write(newest(run) / "tensors.safetensors")
    reseal(newest(run))
    with pytest.raises(ValueError, match="expected safetensors and JSON, got: "):
        load(newest(run))


def test_a_pickle_with_a_fitting_manifest_is_refused_unread(run, tmp_path):
    marker = tmp_path / "ran"
    (newest(run) / "tensors.safetensors").write_bytes(pickle.dumps(Bomb(marker)))
    reseal(newest(run))
    with pytest.raises(ValueError, match="expected safetensors and JSON"):
        load(newest(run))
    torch.save({"x": torch.ones(2)}, newest(run) / "tensors.safetensors")
    reseal(newest(run))
    with pytest.raises(ValueError, match="expected safetensors and JSON"):
        load(newest(run))
    assert not marker.exists()


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000, '{"x": \xff}'])
def test_a_state_that_is_no_object_is_refused(run, text):
    (newest(run) / "state.json").write_text(text, encoding="latin-1")
    reseal(newest(run))
    with pytest.raises(ValueError, match="JSON"):
        load(newest(run))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("x"), "missing x"),
        (lambda t: t.update(y=torch.ones(1)), "unexpected y"),
        (lambda t: t.update(x=torch.ones(2, 3)), r"x expected shape \(6,\), got \(2, 3\)"),
    ],
)
def test_other_tensors_than_the_model_has_are_refused(run, change, message):
    tensors = {"x": torch.arange(6.0)}
    change(tensors)
    save_file(tensors, newest(run) / "tensors.safetensors")
    reseal(newest(run))
    with pytest.raises(ValueError, match=message):
        load(newest(run)).require({"x": ((6,), torch.float32)})


def test_a_full_disk_leaves_the_older_checkpoints(run):
    program = """
import resource, sys, torch
from pathlib import Path
from steinvae.checkpoint import save
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(Path(sys.argv[1]), 3, {"x": torch.zeros(1_000_000)}, {})
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(run)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "cannot write the checkpoint" in answer.stdout
    assert "step-00000003" in answer.stdout
    assert "earlier checkpoints are intact" in answer.stdout
    assert sorted(os.listdir(run / "checkpoints")) == ["step-00000001", "step-00000002"]
    assert latest(run) == newest(run)


def test_a_read_only_directory_is_one_clear_error():
    """With root's privileges set aside for the moment, since root may write anywhere."""
    run_dir = Path(tempfile.mkdtemp())  # not tmp_path, whose parents other users cannot enter
    root = os.geteuid() == 0
    try:
        save(run_dir, 1, {"x": torch.ones(2)}, {})
        os.chmod(run_dir, 0o755)
        os.chmod(run_dir / "checkpoints", 0o555)
        if root:
            os.seteuid(65534)
        with pytest.raises(OSError, match=r"cannot write the checkpoint .*Permission denied"):
            save(run_dir, 2, {"x": torch.ones(2)}, {})
        assert latest(run_dir) == run_dir / "checkpoints" / "step-00000001"
    finally:
        if root:
            os.seteuid(0)
        os.chmod(run_dir / "checkpoints", 0o755)
        shutil.rmtree(run_dir)


@pytest.mark.parametrize("what", ["a file", "the folder"])
def test_a_checkpoint_that_cannot_be_read_is_not_passed_over(what, run, monkeypatch):
    """It may be whole: an earlier one, or none, in its place would lose what was trained."""

    def failing(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    if what == "a file":
        monkeypatch.setattr(_manifest, "sha256_file", failing)
        with pytest.raises(OSError, match=r"cannot read the checkpoint .*02: .*Permission"):
            latest(run)
    else:
        monkeypatch.setattr(Path, "iterdir", failing)
        monkeypatch.setattr(os, "scandir", failing)
        with pytest.raises(OSError, match="Permission denied"):
            latest(run)
