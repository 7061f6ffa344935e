"""Tidy records of measurements: one a line, in ``bench/results/<machine>.jsonl``.

``setting`` is a flat object; ``value`` is in seconds, bytes, or a plain ratio, as ``metric`` says;
``seconds`` is the time that the measurement took, where it is known. A value that is not finite is
null in the file and NaN in memory.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.environment import ROOT

RESULTS = ROOT / "bench" / "results"
KEYS = (
    *("experiment", "method", "setting", "seed", "metric", "value", "stderr", "n"),
    *("estimator", "seconds", "device", "versions", "commit"),
)
Record = dict[str, Any]


def median_and_error(values: list[float]) -> tuple[float, float | None]:
    """Median and its standard error by the interquartile range, as for a normal sample.

    sd = IQR / 1.349 and se(median) = 1.2533 sd / sqrt(n); no error from fewer than two values.
    """
    median = statistics.median(values)
    if len(values) < 2:
        return median, None
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, 1.2533 * (high - low) / 1.349 / math.sqrt(len(values))


def read(path: Path) -> list[Record]:
    """Records of a file; ValueError where a line is no record."""
    records = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        record = json.loads(line)
        if set(record) != set(KEYS):
            raise ValueError(f"{path.name}:{number}: keys must be {KEYS}, got {tuple(record)}")
        record["value"] = math.nan if record["value"] is None else record["value"]
        records.append(record)
    return records


def replace(path: Path, records: Iterable[Record]) -> None:
    """Put the records of a run in place of the earlier ones of the same experiments."""
    records = list(records)
    measured = {record["experiment"] for record in records}
    kept = read(path) if path.exists() else []
    kept = [record for record in kept if record["experiment"] not in measured]
    ordered = sorted(kept + records, key=_order)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(_line(record) + "\n" for record in ordered))


def append(path: Path, record: Record) -> None:
    """Add one record to a file, whatever is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(_line(record) + "\n")


def _line(record: Record) -> str:
    """One record as JSON, which has no NaN: a value that is not finite becomes null."""
    value = record["value"] if math.isfinite(record["value"]) else None
    return json.dumps(record | {"value": value}, allow_nan=False)


def worst(values: Iterable[float]) -> float:
    """The largest value; NaN where one is NaN, which max() would pass over."""
    values = list(values)
    return math.nan if any(map(math.isnan, values)) else max(values)


def _order(record: Record) -> tuple[str, str, str, str]:
    setting = json.dumps(record["setting"], sort_keys=True)
    return record["experiment"], setting, record["method"], record["metric"]
