"""The picture: time and extra memory of every method, side by side, with its conditions below."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bench.records import Record
from bench.shapes import Shape
from bench.tables import bytes_refused, shapes_in, thread_counts
from bench.targets import Values, values_of

# Okabe & Ito's palette: told apart with any colour vision, and by brightness.
METHODS = (
    ("ours", "stein_kernels", "#D55E00"),
    ("compiled_gemm", "torch.compile, GEMM form", "#0072B2"),
    ("keops", "KeOps", "#009E73"),
    ("eager_gemm", "eager torch, GEMM form", "#E69F00"),
    ("eager_difference", "eager torch, difference form", "#999999"),
)
BAR = 0.16  # of the room of a shape
MEMORY_FLOOR = 0.1  # MB: less than this is a stub of a bar
STYLE: dict[Any, Any] = {"font.size": 11, "svg.hashsalt": "benchmark", "svg.fonttype": "path"}


def draw(records: list[Record], folder: Path) -> list[Path]:
    """Write benchmark.svg and benchmark.png into ``folder``; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    values = values_of(records)
    threads = thread_counts(values)[-1]
    with matplotlib.rc_context(STYLE):
        figure, (times, memory) = pyplot.subplots(1, 2, figsize=(10, 7.2), sharey=True)
        shapes = shapes_in(values)
        _bars(times, values, "svgd_direction", "seconds", 1e3, threads, shapes, 0.0)
        _bars(memory, values, "memory", "extra_bytes", 1e-6, threads, shapes, MEMORY_FLOOR)
        times.set_title("time of a direction, ms (log scale)", fontsize=12)
        memory.set_title("extra memory, MB (log scale)", fontsize=12)
        times.set_yticks(range(len(shapes)), [_label(shape) for shape in shapes])
        times.invert_yaxis()
        handles, labels = times.get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=3, frameon=False, fontsize=11)
        figure.text(0.5, 0.012, _caption(records, threads), ha="center", va="bottom", fontsize=9.5)
        figure.tight_layout(rect=(0, 0.09, 1, 0.92))
        paths = _save(figure, folder)
        pyplot.close(figure)
    return paths


def _bars(
    axes: Any,
    values: Values,
    experiment: str,
    metric: str,
    scale: float,
    threads: int,
    shapes: list[Shape],
    floor: float,
) -> None:
    axes.set_xscale("log")
    for rank, (method, label, colour) in enumerate(METHODS):
        for row, shape in enumerate(shapes):
            value = values.get((experiment, method, shape.name, threads, metric))
            if value is None:
                continue
            shown = max(value * scale, floor * 1.15)
            y, named = row + _offset(rank), {"label": label} if row == 0 else {}
            axes.barh(y, shown, BAR * 0.92, color=colour, **named)
            if method == "ours":
                _annotate(axes, _short(value * scale, floor), shown, y, colour)
    axes.grid(axis="x", which="major", linewidth=0.6, alpha=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=floor or 10.0 ** math.floor(math.log10(axes.get_xlim()[0])))
    _refused(axes, shapes)


def _refused(axes: Any, shapes: list[Shape]) -> None:
    """Say in the room of a bar why there is none."""
    left = axes.get_xlim()[0]
    for rank, (method, _, _) in enumerate(METHODS):
        for row, shape in enumerate(shapes):
            needed = bytes_refused(method, shape)
            if needed:
                y = row + _offset(rank)
                _annotate(axes, f"not run: needs {needed}", left, y, "#555555", 9)


def _offset(rank: int) -> float:
    """Height of a method's bar in the room of a shape."""
    return (rank - (len(METHODS) - 1) / 2) * BAR


def _annotate(axes: Any, text: str, x: float, y: float, colour: str, size: float = 10) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=size,
        fontweight="bold" if size >= 10 else "normal",
    )


def _short(value: float, floor: float) -> str:
    if value < floor:
        return f"< {floor:g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _label(shape: Shape) -> str:
    batch = f"{shape.batch:,} sets of\n" if shape.batch else ""
    return f"{batch}M = {shape.particles:,}\nd = {shape.features:,}"


def _caption(records: list[Record], threads: int) -> str:
    times = [r for r in records if r["experiment"] == "svgd_direction"]
    times = [r for r in times if r["metric"] == "seconds"]
    versions = times[0]["versions"]
    named = [f"{name} {versions[name]}" for name in ("torch", "pykeops") if name in versions]
    return (
        "svgd_direction at a given bandwidth, float32, M particles in d dimensions; "
        f"{threads} threads of {times[0]['device']}.\n{', '.join(named)}; median of "
        f"{min(r['n'] for r in times)} or more calls, the methods taking turns, compilation not "
        f"counted.\nMemory: peak of one call in a fresh process; a stub is under {MEMORY_FLOOR} MB."
    )


def _save(figure: Any, folder: Path) -> list[Path]:
    """Without a date, so that the same records give the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    svg, png = folder / "benchmark.svg", folder / "benchmark.png"
    figure.savefig(svg, metadata={"Date": None}, facecolor="white")
    figure.savefig(png, dpi=160, metadata={"Software": None}, facecolor="white")
    return [svg, png]
