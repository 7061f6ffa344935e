"""Tables in Markdown, drawn from records alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from bench import baselines, targets, train_table
from bench.records import Record, worst
from bench.shapes import SHAPES, Shape
from bench.targets import Values, values_of

Column = tuple[str, str]  # method, heading
DIRECTION: tuple[Column, ...] = (
    ("ours", "**stein_kernels**"),
    ("compiled_gemm", "torch.compile"),
    ("keops", "KeOps"),
    ("eager_gemm", "eager GEMM"),
    ("eager_difference", "eager difference"),
)
WITH_MEDIAN: tuple[Column, ...] = (
    ("ours", "**stein_kernels**"),
    ("compiled_gemm_triu", "torch.compile + `triu` median"),
    ("compiled_gemm_pdist", "torch.compile + `pdist` median"),
)
BACKWARD: tuple[Column, ...] = (
    ("ours_forward", "forward"),
    ("ours_forward_backward", "forward + backward"),
)
GRAM: tuple[Column, ...] = (
    ("ours", "**stein_kernels**"),
    ("eager_gemm", "eager GEMM"),
    ("eager_cdist", "eager cdist"),
)
MEMORY: tuple[Column, ...] = (
    *DIRECTION,
    ("ours_with_median", "stein_kernels with median"),
    ("ours_forward_backward", "stein_kernels, forward + backward"),
    ("triu_median", "`triu` median"),
    ("pdist_median", "`pdist` median"),
)
ERRORS = (
    ("relative_error", "as they are"),
    ("relative_error_shift_100", "+ 100"),
    ("relative_error_shift_1e4", "+ 10,000"),
)
_SKIPS = {
    "eager_difference": baselines.skip_difference,
    "compiled_gemm_triu": baselines.skip_triu,
    "triu_median": baselines.skip_triu,
    "compiled_gemm_pdist": baselines.skip_pdist,
    "pdist_median": baselines.skip_pdist,
}


def readme(records: list[Record]) -> str:
    """The short story: times at the most threads, speed-ups at every count, errors."""
    values = values_of(records)
    threads = thread_counts(values)
    most = threads[-1]
    parts = [
        f"Milliseconds a call, {_threads(most)}:",
        direction_times(values, most),
        speedups(values, threads),
        "Relative error with every coordinate shifted, largest of the shapes:",
        worst_errors(values),
        conditions(records),
    ]
    return "\n\n".join(parts)


def performance(records: list[Record]) -> str:
    """Everything measured."""
    values = values_of(records)
    threads = thread_counts(values)
    parts = [conditions(records), speedups(values, threads)]
    sections = (
        ("Direction at a given bandwidth", "svgd_direction", DIRECTION),
        ("Direction with its exact median bandwidth", "svgd_direction_with_median", WITH_MEDIAN),
        ("Forward and backward", "backward", BACKWARD),
        ("Gram matrix", "rbf_gram", GRAM),
    )
    for title, experiment, columns in sections:
        parts.append(f"### {title}")
        for count in threads:
            parts += [f"Milliseconds, {_threads(count)}:"]
            parts += [_times(values, experiment, columns, count)]
    parts += ["### Extra memory", f"Peak MB, {_threads(threads[-1])}:"]
    parts += [_grid(values, "memory", MEMORY, threads[-1], "extra_bytes", 1e-6)]
    parts += ["### Relative error", "Coordinates as they are, and shifted, largest of the shapes:"]
    parts += [worst_errors(values), "### First call", first_calls(values)]
    header, *rows = train_table.table(values)
    if rows:
        parts += ["### Training step", "Milliseconds of processor time, all threads together:"]
        parts += [markdown(header, rows), _train_conditions(records)]
    return "\n\n".join(parts)


def _train_conditions(records: list[Record]) -> str:
    steps = [record for record in records if record["metric"] == "cpu_seconds"]
    commits = ", ".join(sorted({record["commit"] for record in steps}))
    rounds = sorted({record["n"] for record in steps})
    return (
        f"<sub>Batches of 64, decoder 50-200-200-784; medians of {_range(rounds)} steps, the "
        f"rivals taking turns; commit {commits}.</sub>"
    )


def thread_counts(values: Values) -> list[int]:
    counts = sorted({key[3] for key in values})
    if not counts:
        raise ValueError("there are no records to draw: run pytest bench --benchmark-only")
    return counts


def conditions(records: Iterable[Record]) -> str:
    """One line: device, versions, commit, rounds."""
    times = [r for r in records if r["metric"] == "seconds"]
    if not times:
        raise ValueError("the records hold no times: run pytest bench --benchmark-only")
    first = times[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    rounds = sorted({record["n"] for record in times})
    commits = ", ".join(sorted({record["commit"] for record in times}))
    return (
        f"<sub>{first['device']}; float32; {versions}; medians of {_range(rounds)} calls, the "
        f"methods taking turns; compilation outside the timing; commit {commits}.</sub>"
    )


def direction_times(values: Values, threads: int) -> str:
    """Times of the direction, and of the direction with its median beside the faster rival."""
    header = ["particles", *(heading for _, heading in DIRECTION)]
    header += ["**with exact median**", "torch.compile + torch.median"]
    rows = []
    for shape in shapes_in(values):
        row = [_shape(shape)]
        row += [_cell(values, "svgd_direction", m, shape, threads, 1e3) for m, _ in DIRECTION]
        whole = "svgd_direction_with_median"
        rival = targets.fastest(values, whole, [m for m, _ in WITH_MEDIAN[1:]], shape, threads)
        row += [_cell(values, whole, "ours", shape, threads, 1e3)]
        rows.append([*row, "-" if rival is None else number(rival * 1e3)])
    return markdown(header, rows)


def speedups(values: Values, threads: Iterable[int]) -> str:
    """Geometric means over the shapes, a line a comparison."""
    whole = ("svgd_direction_with_median", tuple(method for method, _ in WITH_MEDIAN[1:]))
    comparisons = (
        ("torch.compile of the GEMM form", "svgd_direction", ("compiled_gemm",)),
        ("KeOps", "svgd_direction", ("keops",)),
        ("eager GEMM form", "svgd_direction", ("eager_gemm",)),
        ("torch.compile + torch.median, with exact median", *whole),
    )
    counts = list(threads)
    rows = []
    for label, experiment, methods in comparisons:
        row = [label]
        for count in counts:
            found = targets.ratios(values, experiment, "ours", methods, count)
            row.append(_factor(found.values()))
        rows.append(row)
    return markdown(["times faster than (geometric mean)", *map(_threads, counts)], rows)


def worst_errors(values: Values) -> str:
    rows = []
    for method, heading in DIRECTION:
        row = [heading]
        for metric, _ in ERRORS:
            found = [
                v
                for k, v in values.items()
                if k[:2] == ("svgd_direction", method) and k[4] == metric
            ]
            row.append(_scientific(worst(found)) if found else "-")
        rows.append(row)
    return markdown(["coordinates", *(heading for _, heading in ERRORS)], rows)


def first_calls(values: Values) -> str:
    rows = [
        [method, shape, str(threads), number(value)]
        for (experiment, method, shape, threads, metric), value in sorted(values.items())
        if experiment == "first_call" and metric == "first_call_seconds"
    ]
    return markdown(["method, caches empty", "particles", "threads", "first call, seconds"], rows)


def shapes_in(values: Values) -> list[Shape]:
    """The shapes that were measured, in their usual order."""
    measured = {key[2] for key in values}
    return [shape for shape in SHAPES if shape.name in measured]


def bytes_refused(method: str, shape: Shape) -> str | None:
    """What a method was left out for needing, as in 4.8 GB; None where it runs."""
    reason = _SKIPS[method](shape) if method in _SKIPS else None
    found = re.search(r"need ([\d.]+ GB)", reason or "")
    return found.group(1) if found else None


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.01 else "< 0.01"


def _times(values: Values, experiment: str, columns: Iterable[Column], threads: int) -> str:
    return _grid(values, experiment, columns, threads, "seconds", 1e3)


def _grid(
    values: Values,
    experiment: str,
    columns: Iterable[Column],
    threads: int,
    metric: str,
    scale: float,
) -> str:
    columns = list(columns)
    rows = [
        [_shape(s), *(_cell(values, experiment, m, s, threads, scale, metric) for m, _ in columns)]
        for s in shapes_in(values)
    ]
    return markdown(["particles", *(heading for _, heading in columns)], rows)


def _cell(
    values: Values,
    experiment: str,
    method: str,
    shape: Shape,
    threads: int,
    scale: float,
    metric: str = "seconds",
) -> str:
    value = values.get((experiment, method, shape.name, threads, metric))
    if value is not None:
        return number(value * scale)
    needed = bytes_refused(method, shape)
    return f"- ({needed})" if needed else "-"


def _scientific(value: float) -> str:
    if not math.isfinite(value):
        return "NaN"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _range(numbers: list[int]) -> str:
    low, high = numbers[0], numbers[-1]
    return str(low) if low == high else f"{low} to {high}"


def _factor(ratios: Iterable[float]) -> str:
    ratios = list(ratios)
    return f"{targets.geometric_mean(ratios):.1f}" if ratios else "-"


def _shape(shape: Shape) -> str:
    return " x ".join(f"{size:,}" for size in shape.sizes)


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


def markdown(header: list[str], rows: Iterable[list[str]], numeric: bool = True) -> str:
    """A table; all columns but the first are aligned as numbers, or none."""
    rule = "---:" if numeric else "---"
    lines = [header, ["---"] + [rule] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
