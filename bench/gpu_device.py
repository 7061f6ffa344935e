"""A device and its clock; run as a module, what the device is and how fast, into DIR.

Times are of CUDA events around one call with the second-level cache flushed before it. The host
stands in for a device in a dry run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import records
from bench.counters import Rates
from bench.environment import commit, versions
from bench.records import Record, median_and_error
from bench.shapes import SEED

Call = Callable[[], object]
DRY = "dry run on a CPU: no result"
AHEAD = 2_000_000  # clocks, about a millisecond
EXPS_PER_CLOCK = 16  # of a multiprocessor
FMAS_PER_CLOCK = 128


class Host:
    """A CPU in the place of a device: everything runs, and no time means anything."""

    name = DRY
    slug = "dry-run"
    kind = "cpu"
    memory = 2e9
    dry = True

    def seconds(self, call: Call, rounds: int) -> list[float]:
        found = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        return found

    def wall(self, call: Call, rounds: int) -> float:
        return sum(self.seconds(call, rounds)) / rounds

    def captured(self, call: Call) -> Call:
        return call

    def extra_bytes(self, call: Call) -> float:
        call()
        return 0.0

    def release(self) -> None:
        """There is no cache of device memory here."""


class Cuda:
    """The current CUDA device."""

    kind = "cuda"
    dry = False

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.name = properties.name
        self.slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        self.memory = float(properties.total_memory)
        self.multiprocessors = properties.multi_processor_count
        cache = getattr(properties, "L2_cache_size", 2**26)
        self._flush = torch.empty(4 * cache, dtype=torch.uint8, device="cuda")

    def seconds(self, call: Call, rounds: int) -> list[float]:
        """Of each call between two events, the cache flushed before the first."""
        pairs = []
        for _ in range(rounds):
            self._flush.zero_()
            torch.cuda._sleep(AHEAD)  # the host comes ahead: its part is none of these times
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]

    def wall(self, call: Call, rounds: int) -> float:
        """Seconds a call back to back, the host's part included."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(rounds):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / rounds

    def captured(self, call: Call) -> Call:
        """The replay of a call, which has run before, as a CUDA graph."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def extra_bytes(self, call: Call) -> float:
        """Peak device memory of a call beyond what was taken before it, its output included."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del output
        return float(peak)

    def release(self) -> None:
        torch.cuda.empty_cache()


Device = Host | Cuda


def open_device(dry: bool) -> Device:
    if dry:
        return Host()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: use --dry-run, which measures nothing")
    return Cuda()


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def record(
    device: Device,
    experiment: str,
    method: str,
    setting: dict[str, Any],
    metric: str,
    values: list[float],
) -> Record:
    """One measurement on this device."""
    value, stderr = median_and_error(values)
    return {
        "experiment": f"gpu_{experiment}",
        "method": method,
        "setting": setting,
        "seed": SEED,
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "n": len(values),
        "estimator": "median" if len(values) > 1 else "single",
        "seconds": sum(values) if metric.endswith("seconds") else None,
        "device": device.name,
        "versions": {**versions(), **_versions()},
        "commit": commit(),
    }


def _versions() -> dict[str, str]:
    found = {}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    with contextlib.suppress(ImportError):
        import triton

        found["triton"] = triton.__version__
    return found


def keep(device: Device, out: Path, new: Record) -> None:
    """Append to the device's records; a line is whole or not there."""
    records.append(out / f"{device.slug}.jsonl", new)


def smi() -> dict[str, str]:
    """Clocks, power and driver as nvidia-smi reads them; empty without it."""
    fields = "name driver_version clocks.sm clocks.mem clocks.max.sm clocks.max.mem power.limit"
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", f"--query-gpu={fields.replace(' ', ',')}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    values = done.stdout.splitlines()[0].split(",") if done.returncode == 0 else []
    return dict(zip(fields.split(), (value.strip() for value in values), strict=False))


def measure_facts(device: Device, out: Path) -> Rates:
    """Copy bandwidth, matrix products and the launch of a graph; returns the device's rates."""
    edge, size = (64, 2**16) if device.dry else (8192, 2**31)
    rounds = 3 if device.dry else 15
    found: dict[str, float] = {}

    def take(metric: str, work: float, call: Call) -> None:
        call()
        times = device.seconds(call, rounds)
        rates = [work / seconds for seconds in times]
        found[metric] = median_and_error(rates)[0]
        keep(device, out, record(device, "device", "torch", {}, metric, rates))

    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device.kind)
    take("copy_bytes_per_second", 2.0 * size, partial(torch.empty_like(source).copy_, source))
    del source
    a, b = (torch.randn(edge, edge, device=device.kind) for _ in range(2))
    for name, precision in (("fp32", "highest"), ("tf32", "high")):
        with matmul_precision(precision):
            take(f"{name}_flops_per_second", 2.0 * edge**3, lambda: a @ b)
    a, b = a.bfloat16(), b.bfloat16()
    take("bf16_flops_per_second", 2.0 * edge**3, lambda: a @ b)
    one = torch.zeros(1, device=device.kind).add_(1)
    replay = device.captured(lambda: one.add_(1))
    wall = [device.wall(replay, 100) for _ in range(5)]
    keep(device, out, record(device, "device", "torch", {}, "one_launch_graph_seconds", wall))
    return _rates(device, found)


def _rates(device: Device, found: dict[str, float]) -> Rates:
    """Copies and matrix products as measured; fp32 and exponentials by processors and clock."""
    clock = re.match(r"\d+", smi().get("clocks.max.sm", ""))
    ticks = (float(clock[0]) * 1e6 if clock else 1.98e9) * getattr(device, "multiprocessors", 1)
    return Rates(
        found["copy_bytes_per_second"],
        2 * FMAS_PER_CLOCK * ticks,
        found["tf32_flops_per_second"],
        found["bf16_flops_per_second"],
        EXPS_PER_CLOCK * ticks,
        f"{device.name}; float32 and exponentials by its clock, the rest measured",
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_device", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    device = open_device(options.dry_run)
    facts = {"device": device.name, "smi": smi(), "versions": {**versions(), **_versions()}}
    facts["tools"] = {name: shutil.which(name) for name in ("nvcc", "compute-sanitizer", "ninja")}
    print(json.dumps(facts, indent=2))
    rates = measure_facts(device, options.out)
    facts["rates"] = rates._asdict()
    (options.out / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts["rates"], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
