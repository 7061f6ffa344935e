"""Metrics survive kills and resumes without gaps or duplicates; progress is shown once."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from steinvae import logging
from steinvae.logging import MetricsWriter, Progress, read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]


def write_steps(run_dir: Path, steps, resume_step: int | None = None) -> None:
    with MetricsWriter(run_dir, resume_step) as metrics:
        for step in steps:
            metrics.write(step, {"train/loss": step / 4})
            if step % 4 == 0:
                metrics.write(step, {"validation/nll": float(step)})


def table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_records_are_lines_of_json_and_a_wide_table(tmp_path):
    with MetricsWriter(tmp_path, None) as metrics:
        metrics.write(1, {"train/loss": torch.tensor(0.1, dtype=torch.float64), "train/n": 3})
        metrics.write(2, {"train/loss": float("nan"), "train/n": 4})
        metrics.write(2, {"validation/nll": float("inf")})
        metrics.write(3, {'a,"b"\nc': 1e-30})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 0.1, "train/n": 3},
        {"step": 2, "train/loss": None, "train/n": 4},
        {"step": 2, "validation/nll": None},
        {"step": 3, 'a,"b"\nc': 1e-30},
    ]
    rows = table(tmp_path)
    assert list(rows[0]) == ["step", "train/loss", "train/n", "validation/nll", 'a,"b"\nc']
    assert [row["step"] for row in rows] == ["1", "2", "2", "3"]
    assert (rows[0]["train/loss"], rows[1]["train/loss"], rows[3]['a,"b"\nc']) == (
        "0.1",
        "",
        "1e-30",
    )


def test_each_record_is_on_disk_at_once(tmp_path):
    with MetricsWriter(tmp_path, None) as metrics:
        for step in range(3):
            metrics.write(step, {"train/loss": step})
            assert len(read_metrics(tmp_path / "metrics.jsonl")) == step + 1
            assert len(table(tmp_path)) == step + 1
        metrics.sync()


def test_resuming_gives_the_files_of_an_uninterrupted_run(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    write_steps(whole, range(1, 21))
    write_steps(resumed, range(1, 15))  # killed at 14 with a checkpoint of step 10
    write_steps(resumed, range(11, 21), resume_step=10)
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("cut", range(1, 20, 3))
def test_a_torn_last_line_is_dropped_and_written_again(tmp_path, cut):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    write_steps(whole, range(1, 10))
    write_steps(torn, range(1, 8))
    path = torn / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    (torn / "metrics.csv").write_text("step,tra")  # the table is made anew from the records
    write_steps(torn, range(7, 10), resume_step=6)
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes()


def test_starting_over_drops_earlier_records(tmp_path):
    write_steps(tmp_path, range(5))
    write_steps(tmp_path, range(2))
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [0, 0, 1]


def test_a_kill_leaves_every_record_that_was_written(tmp_path):
    program = """
import os, signal, sys
from pathlib import Path
from steinvae.logging import MetricsWriter
metrics = MetricsWriter(Path(sys.argv[1]), None)
for step in range(50):
    metrics.write(step, {"train/loss": step})
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == list(range(50))
    assert len(table(tmp_path)) == 50


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2: expected JSON"),
        ("[1]", "line 2: expected an object with an integer step"),
        ('{"step": "x"}', "line 2: expected an object with an integer step"),
        ("\x00\xff", "line 2: expected JSON"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n', encoding="latin-1")
    with pytest.raises(ValueError, match=message) as caught:
        MetricsWriter(tmp_path, 5)
    assert str(path) in str(caught.value)


def test_wrong_records_are_refused(tmp_path):
    with MetricsWriter(tmp_path, None) as metrics:
        metrics.write(5, {"train/loss": 1.0})
        with pytest.raises(ValueError, match="expected a step from 5 on, got 4"):
            metrics.write(4, {"train/loss": 1.0})
        with pytest.raises(ValueError, match='"step" is an argument'):
            metrics.write(6, {"step": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(logging.time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_at_the_interval_and_at_the_end(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(100, start=20, stream=stream, rank=0, interval=10.0, label="vae") as progress:
        for step in range(21, 101):
            clock.now += 0.5
            progress.update(step, {"loss": 1 / step} if step % 25 == 0 else None)
        progress.print("done")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "vae 21/100  2.0 steps/s  ETA 0:40"
    assert lines[1] == "vae 41/100  loss 0.04  2.0 steps/s  ETA 0:30"
    assert [line.split()[1] for line in lines[:-1]] == [
        "21/100",
        "41/100",
        "61/100",
        "81/100",
        "100/100",
    ]
    assert lines[-1] == "done"


def test_the_rate_follows_the_last_seconds(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress(10_000, stream=stream, rank=0, interval=0.0)
    for step in range(1, 101):
        clock.now += 1.0 if step <= 50 else 0.01  # slow, then a hundred times faster
        progress.update(step)
    for step in range(101, 5101):
        clock.now += 0.01
        progress.update(step)
    assert "100.0 steps/s  ETA 0:49" in stream.getvalue().splitlines()[-1]


def test_long_estimates_have_hours():
    assert logging._clock(59.6) == "1:00"
    assert logging._clock(3 * 3600 + 62) == "3:01:02"


def test_a_terminal_gets_a_live_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    clock, stream = Clock(monkeypatch), Terminal()
    with Progress(40, stream=stream, rank=0, label="stein_vae") as progress:
        for step in range(1, 41):
            clock.now += 0.1
            progress.update(step, {"negative_elbo": 21.5})
        progress.print("a line [with brackets]")
    text = stream.getvalue()
    for part in (
        "stein_vae",
        "40/40",
        "negative_elbo 21.5",
        "10.0 steps/s",
        "ETA 0:00",
        "[with brackets]",
    ):
        assert part in text


def test_other_ranks_say_nothing(monkeypatch):
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setenv("RANK", "1")
        with Progress(2, stream=stream) as progress:
            progress.update(2, {"loss": 1.0})
            progress.print("x")
        assert stream.getvalue() == ""


def test_a_missing_rich_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r"needs rich.*extra `train`"):
        Progress(2, stream=Terminal(), rank=0)
    Progress(2, stream=io.StringIO(), rank=0).close()  # plain lines need nothing


def test_json_lines_are_strict_json(tmp_path):
    with MetricsWriter(tmp_path, None) as metrics:
        metrics.write(1, {"x": float("nan"), "y": float("-inf")})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 1, "x": None, "y": None}


@pytest.mark.parametrize("closes", ["print", "update", "close"])
def test_a_stream_that_nobody_reads_ends_no_run(closes):
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    os.close(reader)
    with Progress(2, rank=0, stream=stream) as progress:
        if closes == "print":
            progress.print("a line")
        elif closes == "close":
            stream.write("not flushed")
            progress.close()
        progress.update(1)
        progress.update(2)
    with suppress(BrokenPipeError):  # of what is left in its buffer
        stream.close()


def test_no_stream_at_all_is_silence(monkeypatch):
    """As `2>&-` has it."""
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(1, rank=0) as progress:
        progress.print("a line")
        progress.update(1)
