"""What a command says of a run that is damaged, or of a plan that cannot be made: one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from steinvae import evaluate, sample, train

SHORT = ["--trainer.max_steps=2", "--trainer.device=cpu", "--trainer.baseline=none"]
SHORT += ["--evaluation.samples=5", "--evaluation.images=5"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([*SHORT, f"--run_dir={folder}"]) == 0
    return folder


def cut(content: bytes) -> bytes:
    return content[:-100]


def flipped(content: bytes) -> bytes:
    """One bit, of a number."""
    return content[:-10] + bytes([content[-10] ^ 1]) + content[-9:]


@pytest.mark.parametrize("damage", [cut, flipped])
@pytest.mark.parametrize("command", [evaluate, sample])
def test_a_damaged_model_is_named(command, damage, finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    model = run / "model.safetensors"
    model.write_bytes(damage(model.read_bytes()))
    extra = ["--output=x.png"] if command is sample else []
    assert command.main([str(run), *extra]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1
    assert shown[0].startswith(f"steinvae.{command.__name__.split('.')[1]}: {model} is damaged: ")


@pytest.mark.parametrize("text", ["", "model: [", "model: {codes: eight}", "- 1", "1: 2\nx: 3"])
@pytest.mark.parametrize("command", [evaluate, sample, train])
def test_a_damaged_configuration_is_named(command, text, finished, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(text)
    extra = {sample: ["--output=x.png"], train: [*SHORT, "--resume=auto"]}.get(command, [])
    assert command.main([f"--run_dir={run}", *extra]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1
    assert f"{run / 'config.yaml'} is no configuration of a run: " in shown[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset=text", "--data.name=bag_of_words"], "data.name must be one of"),
        (["--preset=imagenet", "--model.codes=100"], "model.codes must be a multiple of 49"),
        (["--preset=imagenet", "--data.side=100", "--data.crop=100"], "data.crop must be"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_line(arguments, named, capsys):
    assert train.main([*arguments, "--plan"]) == 1
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert shown.err.startswith("steinvae.train: ")
    assert named in shown.err


def test_a_sample_that_cannot_be_written_is_said_in_a_line(finished, tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    assert sample.main([str(finished), f"--output={tmp_path / 'folder.png'}"]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1
    assert shown[0].startswith("steinvae.sample: ")


def test_a_configuration_that_is_no_utf_8_is_named(tmp_path):
    (tmp_path / "old.yaml").write_bytes("preset: caf\xe9".encode("latin-1"))
    with pytest.raises(SystemExit, match=r"old\.yaml is not UTF-8"):
        train.main([f"--config={tmp_path / 'old.yaml'}"])
