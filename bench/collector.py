"""Gathers what the tests measure and turns it into records at the end of the run."""

from __future__ import annotations

from typing import Any

from bench.environment import commit, device_name, versions
from bench.records import Record, median_and_error
from bench.shapes import SEED, Shape

Key = tuple[str, str, Shape, int, str]  # experiment, method, shape, threads, metric


class Collector:
    """What a session measured; an experiment of which a part failed is left out."""

    def __init__(self) -> None:
        self._values: dict[Key, list[float]] = {}
        self._modules: dict[str, set[str]] = {}
        self._failed: set[str] = set()
        self.module = ""
        """Whose tests are running."""

    def fail(self) -> None:
        """A test of `module` did not pass: numbers of code that fails are worth nothing."""
        self._failed.add(self.module)

    def add(
        self, experiment: str, method: str, shape: Shape, threads: int, metric: str, value: float
    ) -> None:
        self._values.setdefault((experiment, method, shape, threads, metric), []).append(value)
        self._modules.setdefault(experiment, set()).add(self.module)

    def add_times(
        self, experiment: str, method: str, shape: Shape, threads: int, seconds: list[float]
    ) -> None:
        for value in seconds:
            self.add(experiment, method, shape, threads, "seconds", value)

    def describe(self, shape: Shape, threads: int) -> dict[str, Any]:
        """What every row of pytest-benchmark says of itself."""
        return {
            "device": device_name(),
            **versions(),
            "commit": commit(),
            "dtype": "float32",
            "shape": shape.name,
            "threads": threads,
            "bytes": shape.direction_bytes,
            "flops": shape.direction_flops,
        }

    def records(self) -> list[Record]:
        return [
            _record(key, values)
            for key, values in self._values.items()
            if not self._modules[key[0]] & self._failed
        ]


def _record(key: Key, values: list[float]) -> Record:
    experiment, method, shape, threads, metric = key
    value, stderr = median_and_error(values)
    return {
        "experiment": experiment,
        "method": method,
        "setting": {"shape": shape.name, "threads": threads, "dtype": "float32"},
        "seed": SEED,
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "n": len(values),
        "estimator": "median" if len(values) > 1 else "single",
        "seconds": sum(values) if metric.endswith("seconds") else None,
        "device": device_name(),
        "versions": versions(),
        "commit": commit(),
    }
