"""The bounds that a run must meet, checked from its records alone.

Speed is a ratio of medians of one run: another machine, or a busy one, moves both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from bench.records import Record
from bench.shapes import SHAPES, Shape, parse_shape

MEGABYTE = 1e6
HUGE_FEATURES = 100_000  # float32 sums over so many coordinates round more
FIRST_CALL_SECONDS = 0.2

Values = dict[tuple[str, str, str, int, str], float]  # experiment, method, shape, threads, metric


class Check(NamedTuple):
    """One bound; ``value`` is None where the run did not measure it."""

    name: str
    value: float | None
    bound: str
    met: bool
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.value is not None and not self.met


def values_of(records: Iterable[Record]) -> Values:
    return {_key(record): record["value"] for record in records}


def _key(record: Record) -> tuple[str, str, str, int, str]:
    shape, threads = record["setting"]["shape"], record["setting"]["threads"]
    return record["experiment"], record["method"], shape, threads, record["metric"]


def check(records: Iterable[Record]) -> list[Check]:
    """Every bound that these records can tell about, and the speeds that they cannot."""
    values = values_of(records)
    checks = []
    for threads in sorted({key[3] for key in values}):
        checks += _speeds(values, threads)
    return checks + _errors(values) + _memory(values) + _first_calls(values)


def fastest(values: Values, experiment: str, methods: Iterable[str], shape: Shape, threads: int):
    """Seconds of the fastest of some methods, None where none was measured."""
    found = [values.get((experiment, method, shape.name, threads, "seconds")) for method in methods]
    return min((seconds for seconds in found if seconds is not None), default=None)


def ratios(
    values: Values, experiment: str, ours: str, methods: tuple[str, ...], threads: int
) -> dict[Shape, float]:
    """Seconds of the fastest of ``methods`` over those of ``ours``, by shape."""
    found = {}
    for shape in SHAPES:
        mine = values.get((experiment, ours, shape.name, threads, "seconds"))
        other = fastest(values, experiment, methods, shape, threads)
        if mine is not None and other is not None:
            found[shape] = other / mine
    return found


def geometric_mean(numbers: Iterable[float]) -> float:
    logs = [math.log(number) for number in numbers]
    return math.exp(sum(logs) / len(logs))


def _speeds(values: Values, threads: int) -> list[Check]:
    direction, whole = "svgd_direction", "svgd_direction_with_median"
    compiled = ratios(values, direction, "ours", ("compiled_gemm",), threads)
    keops = ratios(values, direction, "ours", ("keops",), threads)
    with_median = ratios(
        values, whole, "ours", ("compiled_gemm_triu", "compiled_gemm_pdist"), threads
    )
    backward = ratios(values, "backward", "ours_forward", ("ours_forward_backward",), threads)
    at = f"{threads} thread" + ("s" if threads > 1 else "")
    return [
        _mean(f"direction / compiled GEMM, {at}", compiled, 2.5),
        _worst(f"direction / compiled GEMM, slowest shape, {at}", compiled, 1.3),
        _mean(f"direction / KeOps, {at}", keops, 10.0),
        _mean(f"direction with median / compiled with torch.median, {at}", with_median, 4.0),
        _most(f"forward + backward / forward, {at}", backward, 4.0),
    ]


def _listed(found: dict[Shape, float]) -> str:
    return ", ".join(f"{shape.name} {ratio:.2f}" for shape, ratio in found.items())


def _mean(name: str, found: dict[Shape, float], bound: float) -> Check:
    value = geometric_mean(found.values()) if len(found) == len(SHAPES) else None
    met = value is not None and value >= bound
    return Check(f"{name} (geometric mean)", value, f">= {bound}", met, _listed(found))


def _worst(name: str, found: dict[Shape, float], bound: float) -> Check:
    value = min(found.values(), default=None)
    return Check(name, value, f">= {bound}", value is not None and value >= bound)


def _most(name: str, found: dict[Shape, float], bound: float) -> Check:
    value = max(found.values(), default=None)
    return Check(name, value, f"<= {bound}", value is not None and value <= bound, _listed(found))


def _largest(
    name: str, sizes: dict[str, tuple[float, float]], unit: str, scale: float
) -> Check | None:
    """The entry nearest to, or furthest beyond, its own bound; entries are (value, bound)."""
    if not sizes:
        return None
    shares = {key: value / bound for key, (value, bound) in sizes.items()}
    where = max(shares, key=lambda key: math.inf if math.isnan(shares[key]) else shares[key])
    value, bound = sizes[where]
    shown = f"<= {bound / scale:.6g}{unit}"
    return Check(f"{name}, worst case", value / scale, shown, value <= bound, where)


def _errors(values: Values) -> list[Check]:
    found = []
    for metric in ("relative_error", "relative_error_shift_100", "relative_error_shift_1e4"):
        sizes = {
            f"{key[2]}, {key[3]} threads": (value, error_bound(parse_shape(key[2])))
            for key, value in values.items()
            if key[:2] == ("svgd_direction", "ours") and key[4] == metric
        }
        found.append(_largest(f"direction: {metric.replace('_', ' ')}", sizes, "", 1.0))
    return [one for one in found if one]


def error_bound(shape: Shape) -> float:
    return 5e-6 if shape.features >= HUGE_FEATURES else 2e-6


def memory_bound(shape: Shape) -> float:
    return 64 * MEGABYTE + 2 * shape.input_bytes


def _memory(values: Values) -> list[Check]:
    sizes = {
        f"{key[1]}, {key[2]}, {key[3]} threads": (value, memory_bound(parse_shape(key[2])))
        for key, value in values.items()
        if key[0] == "memory" and key[1] in ("ours", "ours_with_median")
    }
    worst = _largest("direction: extra memory", sizes, " MB", MEGABYTE)
    return [worst] if worst else []


def _first_calls(values: Values) -> list[Check]:
    sizes = {
        f"{key[2]}, {key[3]} threads": (value, FIRST_CALL_SECONDS)
        for key, value in values.items()
        if key[:2] == ("first_call", "ours") and key[4] == "first_call_seconds"
    }
    worst = _largest("first call in a fresh process", sizes, " s", 1.0)
    return [worst] if worst else []


def table(checks: list[Check]) -> str:
    """The checks as text, one a line, what they are made of below."""
    lines = []
    for one in checks:
        state = "not measured" if one.value is None else "met" if one.met else "MISSED"
        value = "-" if one.value is None else f"{one.value:.3g}"
        lines.append(f"{state:13} {one.name}: {value} (wanted {one.bound})")
        if one.detail:
            lines.append(" " * 14 + one.detail)
    return "\n".join(lines)
