"""Goals of the GPU kernels, checked from records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from bench import counters
from bench.counters import Rates
from bench.records import Record
from bench.shapes import Shape, parse_shape

Key = tuple[str, str, str, str]  # experiment, method, shape, metric
Values = dict[Key, float]

WEIGHTS = ("100x2000000", "20x11000000")
CODES = ("64x100x50", "4096x20x32")
SAMPLERS = ("32768x16", "100000x64")
MEDIAN = "direction_with_median"


class Target(NamedTuple):
    """A bound on a value; ``most`` where the value must not exceed it."""

    shape: str
    what: str
    bound: float
    most: bool
    unit: str  # "ms", "x", "%", "MB" or ""
    value: Callable[[Values], float | None]


class Check(NamedTuple):
    target: Target
    value: float | None

    @property
    def met(self) -> bool | None:
        """None where it was not measured."""
        if self.value is None:
            return None
        bound = self.target.bound
        return self.value <= bound if self.target.most else self.value >= bound


def values_of(records: Iterable[Record]) -> Values:
    return {
        (
            record["experiment"].removeprefix("gpu_"),
            record["method"],
            record["setting"].get("shape", ""),
            record["metric"],
        ): record["value"]
        for record in records
    }


def ratio(values: Values, above: Key, below: Key) -> float | None:
    """One value over another, None where one is missing."""
    top, bottom = values.get(above), values.get(below)
    return None if top is None or not bottom else top / bottom


def _speedup(experiment: str, rival: str, shape: str) -> Callable[[Values], float | None]:
    """Seconds of a rival over ours, as the dispatch table chooses."""

    def value(values: Values) -> float | None:
        theirs, mine = (experiment, rival, shape), (experiment, "auto", shape)
        return ratio(values, (*theirs, "seconds"), (*mine, "seconds"))

    return value


def _metric(experiment: str, method: str, shape: str, metric: str, scale: float = 1.0):
    def value(values: Values) -> float | None:
        found = values.get((experiment, method, shape, metric))
        return None if found is None else scale * found

    return value


def _share_of_copy(shape: str) -> Callable[[Values], float | None]:
    """16 M d bytes over the time, of the measured copy bandwidth, in percent."""
    size = parse_shape(shape)

    def value(values: Values) -> float | None:
        seconds = values.get((MEDIAN, "auto", shape, "seconds"))
        copy = values.get(("device", "torch", "", "copy_bytes_per_second"))
        if not seconds or not copy:
            return None
        return 100 * 16 * size.particles * size.features / seconds / copy

    return value


def _share_of_rate(shape: str) -> Callable[[Values], float | None]:
    """Counted flops over the time, in percent of the measured rate of the unit that does them.

    Products on the tensor cores count against a third of the tf32 rate; up to 16 features there are
    none, and the flops count against that of float32.
    """
    size = parse_shape(shape)
    counts = counters.direction(size, "packed", "tf32x3", with_median=False)
    products, flops = sum(one.products for one in counts), sum(one.flops for one in counts)
    unit, share, work = ("tf32", 3, products) if products else ("fp32", 1, flops)

    def value(values: Values) -> float | None:
        seconds = values.get(("direction", "triton_tf32x3", shape, "seconds"))
        rate = values.get(("device", "torch", "", f"{unit}_flops_per_second"))
        return 100 * share * work / seconds / rate if seconds and rate else None

    return value


def _gram_passes(values: Values) -> float | None:
    """The median of 1e6 particles in units of a Gram pass: that of 32,768, scaled by the pairs."""
    median = values.get(("median", "auto", "1000000x16", "seconds"))
    gram = values.get(("gram", "auto", "32768x16", "seconds"))
    return median / (gram * (1e6 / 32768) ** 2) if median and gram else None


def targets() -> list[Target]:
    found = []
    for shape in WEIGHTS:
        found += [
            Target(shape, "of copy bandwidth over 16 M d", 75, False, "%", _share_of_copy(shape)),
            Target(shape, "eager", 2.5, False, "x", _speedup(MEDIAN, "eager_gemm", shape)),
            Target(shape, "compiled", 1.5, False, "x", _speedup(MEDIAN, "compiled_gemm", shape)),
            Target(
                *(shape, "direction + fused Adam of torch", 1.3, False, "x"),
                _speedup("adam", "direction_then_adam", shape),
            ),
        ]
    large = "5000x208000"
    found += [Target(large, "time", 70, True, "ms", _metric(MEDIAN, "auto", large, "seconds", 1e3))]
    for shape in CODES:
        found += [
            Target(shape, "eager", 15, False, "x", _speedup(MEDIAN, "eager_gemm", shape)),
            Target(shape, "compiled", 5, False, "x", _speedup(MEDIAN, "compiled_gemm", shape)),
        ]
    tiled = "64x5000x50"
    found += [
        Target(tiled, "time", 4, True, "ms", _metric(MEDIAN, "auto", tiled, "seconds", 1e3)),
        Target(
            *(tiled, "memory beyond the inputs", 1000, True, "MB"),
            _metric(MEDIAN, "auto", tiled, "extra_bytes", 1e-6),
        ),
    ]
    for shape in SAMPLERS:
        found += [
            Target(shape, "KeOps", 10, False, "x", _speedup("direction", "keops", shape)),
            Target(shape, "eager", 20, False, "x", _speedup("direction", "eager_gemm", shape)),
            Target(shape, "of its precision's rate", 50, False, "%", _share_of_rate(shape)),
            Target(
                *(shape, "relative error, tf32x3", 1e-5, True, ""),
                _metric("direction", "triton_tf32x3", shape, "relative_error"),
            ),
            Target(
                *(shape, "relative error, ieee", 2e-6, True, ""),
                _metric("direction", "auto", shape, "relative_error"),
            ),
        ]
    largest = "1000000x16"
    found += [
        Target(
            *(largest, "memory beyond the inputs", 200, True, "MB"),
            _metric("direction", "auto", largest, "extra_bytes", 1e-6),
        ),
        Target(largest, "exact median, in Gram passes", 2, True, "x", _gram_passes),
    ]
    return found


def check(records: Iterable[Record]) -> list[Check]:
    values = values_of(records)
    return [Check(target, target.value(values)) for target in targets()]


class Floor(NamedTuple):
    """The least time of one problem, and of every unit alone, in seconds."""

    shape: Shape
    what: str
    precision: str
    launches: int
    bytes: float
    terms: dict[str, float]
    seconds: float


def floors(rates: Rates) -> list[Floor]:
    """For the shapes that have goals."""
    found = []
    for name in WEIGHTS:
        found.append(_floor(name, "long_rows", "tf32x3", True, rates))
    for precision in ("tf32x3", "bf16x3", "tf32"):
        found.append(_floor("5000x208000", "long_rows", precision, True, rates))
    for name in CODES:
        found.append(_floor(name, "small_set", "ieee", True, rates))
    for precision in ("ieee", "tf32x3"):
        found.append(_floor("64x5000x50", "packed", precision, True, rates))
    found.append(_floor("32768x16", "packed", "ieee", False, rates))
    for precision in ("ieee", "tf32x3"):
        found.append(_floor("100000x64", "packed", precision, False, rates))
    found += [
        _floor("1000000x16", "packed", "ieee", with_median, rates) for with_median in (False, True)
    ]
    return found


def _floor(name: str, flow: str, precision: str, with_median: bool, rates: Rates) -> Floor:
    shape = parse_shape(name)
    counts = counters.direction(shape, flow, precision, with_median)
    terms: dict[str, float] = {}
    for one in counts:
        for unit, seconds in counters.terms(one, rates, precision).items():
            terms[unit] = terms.get(unit, 0.0) + seconds
    return Floor(
        shape,
        "direction and median" if with_median else "direction",
        precision,
        counters.launches(shape, flow, with_median),
        sum(one.bytes for one in counts),
        terms,
        counters.total_floor(counts, rates, precision),
    )
