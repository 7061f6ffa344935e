"""Metrics on disk (JSONL and CSV) and progress on the screen.

`metrics.jsonl` is the record: one JSON object a line, {"step": 25, "train/negative_elbo": 31.2}.
`metrics.csv` is the same as one wide table, for `pandas.read_csv`: a column for every name that
occurred, empty where a record lacks it. Names are "<split>/<term>".
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from torch import Tensor

from steinvae._atomic import sync, write_text

JSONL, CSV = "metrics.jsonl", "metrics.csv"


class MetricsWriter:
    """Appends records to `run_dir`/metrics.jsonl and metrics.csv, without gaps or duplicates.

    `resume_step=k` continues after a checkpoint of step k: records of later steps, which the run
    will produce again, are dropped, and so is a last line that a kill cut short. `resume_step=None`
    starts over: earlier records are dropped. Each record is flushed; a name that is new adds a
    column, for which the CSV is rewritten whole (rare: names appear in the first few records).
    `name` is that of the files; `tensorboard` writes the same numbers as TensorBoard events too.

    Errors: ValueError naming file and line for a damaged line other than the last.
    """

    def __init__(
        self,
        run_dir: Path,
        resume_step: int | None,
        *,
        name: str = "metrics",
        tensorboard: bool = False,
    ) -> None:
        self.run_dir, self.tensorboard = Path(run_dir), tensorboard
        self._jsonl, self._csv = (self.run_dir / f"{name}.{suffix}" for suffix in ("jsonl", "csv"))
        self._tensorboard = (
            TensorBoard(self.run_dir / "tensorboard" / name) if tensorboard else None
        )
        self._open(-1 if resume_step is None else resume_step)

    def _open(self, keep: int) -> None:
        earlier = read_metrics(self._jsonl) if self._jsonl.exists() and keep >= 0 else []
        self._records = [record for record in earlier if record["step"] <= keep]
        self._columns = _columns(self._records)
        write_text(self._jsonl, "".join(json.dumps(record) + "\n" for record in self._records))
        self._jsonl_file = self._jsonl.open("a", encoding="utf-8")
        self._csv_file = self._rewrite_csv()
        if self._tensorboard is not None:
            self._tensorboard.open(keep)

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, from which the run goes on once more."""
        self.close()
        self._open(step)

    def write(self, step: int, scalars: Mapping[str, float | Tensor]) -> None:
        """Append one record; scalars may be numbers or 0-dimensional tensors.

        JSON has no NaN and no infinity: both are written as null (an empty field in the CSV).

        Errors: ValueError for a step before the last one, and for the name "step".
        """
        if "step" in scalars:
            raise ValueError('MetricsWriter.write: "step" is an argument, not a scalar')
        if self._records and step < self._records[-1]["step"]:
            last = self._records[-1]["step"]
            raise ValueError(f"MetricsWriter.write: expected a step from {last} on, got {step}")
        record = {"step": step, **{name: _number(value) for name, value in scalars.items()}}
        self._records.append(record)
        self._jsonl_file.write(json.dumps(record, allow_nan=False) + "\n")
        self._jsonl_file.flush()
        new = [name for name in record if name not in self._columns]
        if new:
            self._columns += new
            self._csv_file.close()
            self._csv_file = self._rewrite_csv()
        else:
            self._csv_file.write(_csv_lines([record], self._columns))
            self._csv_file.flush()
        if self._tensorboard is not None:
            self._tensorboard.write(record)

    def sync(self) -> None:
        """Force the records to the disk; call it before a checkpoint, so that none is ahead."""
        sync(self._jsonl)
        sync(self._csv)

    def close(self) -> None:
        """Close both files, also where the disk has no room for what is left of the first."""
        try:
            self._jsonl_file.close()
        finally:
            self._csv_file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rewrite_csv(self) -> TextIO:
        header = {name: name for name in self._columns}
        write_text(self._csv, _csv_lines([header, *self._records], self._columns))
        return self._csv.open("a", encoding="utf-8", newline="")


def tensorboard_writer() -> Callable[..., Any]:
    """torch's SummaryWriter; ImportError naming the extra where tensorboard is missing."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "trainer.tensorboard needs tensorboard, which the extra of that name installs "
            "(pip install 'stein-kernels[tensorboard]')"
        ) from error
    return SummaryWriter


class TensorBoard:
    """The same records as events in `folder`, for whoever watches runs with TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self._make, self._folder = tensorboard_writer(), folder

    def open(self, keep: int) -> None:
        """Begin after step `keep`: what was written for later steps is not shown any more."""
        self._events = self._make(str(self._folder), purge_step=keep + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """One scalar for each number."""
        for name, value in record.items():
            if name != "step" and value is not None:
                self._events.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush and close."""
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a kill cut short is left out.

    Errors: ValueError naming file and line for any other line that is not a record.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last "\n" is torn
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines) - 1:
                break
            raise ValueError(f"{path}, line {number}: expected JSON, got: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"{path}, line {number}: expected an object with an integer step")
        records.append(record)
    return records


class Progress:
    """Shows how a run gets on: a live bar on a terminal, else a line every `interval` seconds.

    Nothing is shown on ranks other than 0 (`rank` defaults to torchrun's environment variable
    RANK), nor from the moment on when nobody reads the stream: that must not end a run. Use it as a
    context manager.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        label: str = "train",
        rank: int | None = None,
        stream: TextIO | None = None,
        interval: float = 10.0,
        unit: str = "steps",
    ) -> None:
        rank = int(os.environ.get("RANK", "0")) if rank is None else rank
        out: TextIO | None = sys.stderr if stream is None else stream  # None: `2>&-` closed it
        self._total = total
        self._terms = ""
        self._rate = _Rate(start, time.monotonic())
        self._display: _Display = _Silent()
        if rank == 0 and out is not None:
            live = out.isatty()
            self._display = (
                _Bar(out, label, total, unit) if live else _Lines(out, label, interval, unit)
            )

    def update(self, step: int, terms: Mapping[str, float] | None = None) -> None:
        """`step` updates are done; `terms` are the numbers to show, the latest ones by default."""
        if terms is not None:
            self._terms = "  ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
        now = time.monotonic()
        rate = self._rate.update(step, now)
        with self._silent_once_closed():
            self._display.show(step, self._total, self._terms, rate, now)

    def print(self, text: str) -> None:
        """A line of its own, above the bar."""
        with self._silent_once_closed():
            self._display.print(text)

    def close(self) -> None:
        """Take the bar down."""
        with self._silent_once_closed():
            self._display.close()

    @contextmanager
    def _silent_once_closed(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # the pipe's reader has ended, or the terminal is gone
            self._display = _Silent()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def shown(record: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a record that the progress shows, by the names that it gives them."""
    names = {
        "train/distortion": "distortion",
        "validation/nll": "nll",
        "images_per_second": "images/s",
        "model_flops_per_second": "FLOP/s",
    }
    return {short: record[name] for name, short in names.items() if name in record}


class _Display(Protocol):
    def show(self, step: int, total: int, terms: str, rate: float, now: float) -> None: ...
    def print(self, text: str) -> None: ...
    def close(self) -> None: ...


class _Silent:
    def show(self, step: int, total: int, terms: str, rate: float, now: float) -> None:
        """Other ranks say nothing."""

    def print(self, text: str) -> None:
        """Other ranks say nothing."""

    def close(self) -> None:
        """Nothing was opened."""


class _Lines:
    """Plain lines: the first and the last step, and one every `interval` seconds between."""

    def __init__(self, stream: TextIO, label: str, interval: float, unit: str) -> None:
        self._stream, self._label, self._interval = stream, label, interval
        self._unit = unit
        self._next = -math.inf

    def show(self, step: int, total: int, terms: str, rate: float, now: float) -> None:
        if now < self._next and step < total:
            return
        self._next = now + self._interval
        parts = [f"{self._label} {step}/{total}", terms]
        if rate > 0:
            parts.append(f"{rate:.1f} {self._unit}/s  ETA {_clock((total - step) / rate)}")
        self.print("  ".join(part for part in parts if part))

    def print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        self._stream.flush()


class _Bar:
    """rich's live bar."""

    def __init__(self, stream: TextIO, label: str, total: int, unit: str) -> None:
        self._unit = unit
        try:
            from rich import progress
            from rich.console import Console
        except ImportError as error:
            raise ImportError(
                "the progress bar needs rich, which the extra `train` installs "
                "(pip install 'stein-kernels[train]')"
            ) from error
        self._console = Console(file=stream)
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[terms]}  {task.fields[pace]}"),
            console=self._console,
        )
        self._task = self._progress.add_task(label, total=total, terms="", pace="")
        self._progress.start()

    def show(self, step: int, total: int, terms: str, rate: float, now: float) -> None:
        pace = f"{rate:.1f} {self._unit}/s  ETA {_clock((total - step) / rate)}" if rate > 0 else ""
        self._progress.update(self._task, completed=step, terms=terms, pace=pace)

    def print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


class _Rate:
    """Steps a second over the last 20 s or so: marks at least a second apart, 20 of them."""

    def __init__(self, step: int, now: float) -> None:
        self._marks = deque([(now, step)], maxlen=20)

    def update(self, step: int, now: float) -> float:
        """The rate now, 0 while unknown."""
        start, first = self._marks[0]
        if now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, step))
        return (step - first) / (now - start) if now > start else 0.0


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _number(value: Any) -> int | float | None:
    if isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def _columns(records: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(["step", *(name for record in records for name in record)]))


def _csv_lines(rows: list[Any], columns: list[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()
