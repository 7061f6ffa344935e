"""``python -m bench.gpu_measure --regime codes --out DIR``: the benchmarks of one regime.

A record a line in DIR, as soon as it is there. A method that cannot run, or fails, is written to
skipped.jsonl with its reason, and the next one goes on; where a kernel's fault has ended the use of
the device, in a new process.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import stein_kernels
from bench import baselines, counters, gpu, gpu_adam
from bench.counters import Rates
from bench.gpu_device import Device, keep, matmul_precision, open_device, record
from bench.gpu_problems import (
    DRY,
    REGIMES,
    Method,
    given_bandwidth,
    make_inputs,
    methods,
    relative_error,
    why_not,
)
from bench.shapes import Shape
from stein_kernels.gpu import routes

ENOUGH = 0.5  # seconds of rounds
MOST, FEWEST = 40, 3
SLOW = 1.0  # seconds of a call of which one round is enough
SHORT = 0.05  # seconds of a call whose launches may count


class Bench:
    """Where the records of a regime go, and how much time is left for them."""

    def __init__(self, device: Device, out: Path, seconds: float) -> None:
        self.device, self.out = device, out
        self.rates, self.built = read_rates(out), gpu.was_built(out)
        self._deadline = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._deadline - time.monotonic()

    def keep(
        self,
        experiment: str,
        method: str,
        setting: dict[str, Any],
        metric: str,
        values: list[float],
    ) -> None:
        keep(
            self.device, self.out, record(self.device, experiment, method, setting, metric, values)
        )

    def skip(self, experiment: str, method: str, shape: Shape, reason: str) -> None:
        line = {"experiment": experiment, "method": method, "shape": shape.name, "reason": reason}
        print(f"skipped {experiment} {method} {shape.name}: {reason}", flush=True)
        with (self.out / "skipped.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def rounds(self, estimate: float) -> int:
        """3 to 40, half a second of them; one of a slow call; no more than there is time for."""
        if estimate > SLOW:
            return 1
        wanted = min(MOST, max(FEWEST, math.ceil(ENOUGH / max(estimate, 1e-6))))
        return max(1, min(wanted, int(0.5 * self.left / max(estimate, 1e-6))))


def read_rates(out: Path) -> Rates:
    """The rates of this device as the facts have them; an H200's where there are none."""
    facts = out / "facts.json"
    return Rates(**json.loads(facts.read_text())["rates"]) if facts.exists() else counters.H200


def setting_of(method: Method, shape: Shape, built: bool) -> dict[str, Any]:
    """The flat setting of a record: for our methods also what the dispatch table chose."""
    setting = {"shape": shape.name, "dtype": "float32", "matmul_precision": method.precision}
    if method.ours and method.backend != "reference":
        there = ("cuda", "triton") if built else ("triton",)
        backends = there if method.backend == "auto" else (method.backend,)
        m, d = shape.particles, shape.features
        problem = routes.Problem(shape.sets, m, m, d, torch.float32, query=False)
        op = "median_distance" if method.experiment == "median" else "svgd_direction"
        route = routes.choose(op, problem, backends)
        setting |= {"flow": route.flow, "backend": route.backend, "precision": route.precision}
    return setting


@contextlib.contextmanager
def running_as(method: Method) -> Iterator[None]:
    """Backend and precision of a method."""
    with contextlib.ExitStack() as stack:
        if method.ours:
            stack.enter_context(stein_kernels.use_backend(method.backend))  # type: ignore[arg-type]
        stack.enter_context(matmul_precision(method.precision))
        yield


def measure(bench: Bench, method: Method, shape: Shape) -> None:
    """Every metric of one method at one shape."""
    device = bench.device
    x, grad = make_inputs(shape, device)
    h = given_bandwidth(shape, device)
    setting = setting_of(method, shape, bench.built)

    def keep(metric: str, *values: float) -> None:
        bench.keep(method.experiment, method.name, setting, metric, list(values))

    compute = method.make(device.dry)
    call = lambda: compute(x, grad, h)  # noqa: E731 (it is the unit of every clock)
    output = call()
    if method.checked and isinstance(output, Tensor):
        keep("relative_error", relative_error(shape, x, grad, bandwidth(method, x, h), output))
    del output
    start = time.perf_counter()
    keep("extra_bytes", device.extra_bytes(call))  # waits for the device
    estimate = time.perf_counter() - start
    times = device.seconds(call, bench.rounds(estimate))
    keep("seconds", *times)
    keep("iqr_seconds", spread(times))
    seconds = statistics.median(times)
    if method.ours and method.experiment != "backward":
        for metric, value in shares(bench.rates, method, shape, setting, seconds).items():
            keep(metric, value)
    if seconds < SHORT:
        keep("wall_seconds", device.wall(call, 20))
    if seconds < SHORT and method.ours and method.experiment != "backward":
        keep("graph_seconds", *device.seconds(device.captured(call), bench.rounds(estimate)))


def spread(times: list[float]) -> float:
    """The interquartile range; 0 of one value."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return high - low


def bandwidth(method: Method, x: Tensor, h: Tensor) -> Tensor:
    """The one that the method used: torch.median takes the lower of two middle distances."""
    if method.experiment != "direction_with_median":
        return h
    return stein_kernels.median_bandwidth(x) if method.ours else baselines.triu_bandwidth(x)


def shares(
    rates: Rates, method: Method, shape: Shape, setting: dict[str, Any], seconds: float
) -> dict[str, float]:
    """Achieved bytes and flops, and the share of the floor, by the counter model."""
    flow, precision = setting.get("flow", "packed"), setting.get("precision", "ieee")
    if method.experiment == "median":
        counts = counters.median(shape)
    elif method.experiment == "gram":
        counts = [counters.count("gram", "ieee", shape)]
    else:
        with_median = method.experiment == "direction_with_median"
        counts = counters.direction(shape, flow, precision, with_median)
    floor = counters.total_floor(counts, rates, precision)
    return {
        **counters.achieved(counts, seconds),
        "floor_seconds": floor,
        "share_of_floor": floor / seconds if seconds > 0 else math.nan,
    }


class DeviceLostError(Exception):
    """Nothing runs on the device in this process any more."""


class Measurement(NamedTuple):
    experiment: str
    method: str
    shape: Shape
    why_not: str | None
    call: Callable[[], None]


def measurements(bench: Bench, regime: str) -> Iterator[Measurement]:
    """All methods of a regime, each at all its shapes."""
    dry = bench.device.dry
    if regime == "adam":
        for name, shape, call in gpu_adam.calls(bench):
            yield Measurement("adam", name, shape, None, call)
        return
    for method in methods(regime, dry):
        for shape in (DRY if dry else REGIMES)[regime]:
            reason = why_not(method, shape, bench.device)
            call = functools.partial(_as, bench, method, shape)
            yield Measurement(method.experiment, method.name, shape, reason, call)


def _as(bench: Bench, method: Method, shape: Shape) -> None:
    with running_as(method):
        measure(bench, method, shape)


def run(bench: Bench, regime: str, after: int = 0) -> None:
    """The measurements of a regime but for the first `after`; what fails is written down.

    Errors: DeviceLostError, with how many are behind.
    """
    todo = list(measurements(bench, regime))
    for number, (experiment, method, shape, reason, call) in enumerate(todo[after:], after + 1):
        if reason is None and bench.left <= 0:
            reason = "no time left"
        if reason is not None:
            bench.skip(experiment, method, shape, reason)
            continue
        print(f"{experiment} {method} {shape.name}", flush=True)
        try:
            call()
        except Exception as error:  # out of memory is the first
            said = (str(error).splitlines() or [""])[0]
            bench.skip(experiment, method, shape, f"{type(error).__name__}: {said}"[:300])
        try:
            torch.compiler.reset()
            bench.device.release()
        except RuntimeError as error:
            raise DeviceLostError(number) from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_measure", description=__doc__)
    parser.add_argument("--regime", nargs="+", choices=(*REGIMES, "adam"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--after", type=int, default=0, help="measurements to pass over at first")
    options = parser.parse_args(arguments)
    bench = Bench(open_device(options.dry_run), options.out, options.seconds)
    options.out.mkdir(parents=True, exist_ok=True)
    after = options.after
    for index, regime in enumerate(options.regime):
        try:
            run(bench, regime, after)
        except DeviceLostError as lost:
            left = ("--regime", *options.regime[index:], "--seconds", f"{bench.left:.0f}")
            further = ("--out", str(options.out), "--after", str(lost))
            command = (sys.executable, "-m", "bench.gpu_measure", *left, *further)
            os.execv(sys.executable, command)
        after = 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
