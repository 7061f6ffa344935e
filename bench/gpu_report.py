"""``python -m bench.gpu_report``: the tables of docs/performance-gpu.md.

The counter model is drawn from ``bench.counters``, the measurements from bench/results/gpu/*.jsonl,
one file a device as ``bench.gpu`` leaves it; without any the page says that there are none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import counters, gpu_targets, records, tables
from bench.environment import ROOT
from bench.gpu_device import DRY
from bench.gpu_targets import Check, Values
from bench.records import Record
from bench.report import fill

PAGE = "docs/performance-gpu.md"
MODEL = ("<!-- model:begin -->", "<!-- model:end -->")
MEASURED = ("<!-- gpu:begin -->", "<!-- gpu:end -->")
FOLDER = records.RESULTS / "gpu"
UNMEASURED = (
    "No GPU has measured these kernels yet: there is no record to draw from, and nothing on this "
    "page claims a speed."
)
METRICS = (
    ("seconds", "milliseconds a call (CUDA events, cache flushed)", 1e3),
    ("wall_seconds", "milliseconds a call back to back, the host included", 1e3),
    ("graph_seconds", "milliseconds a replay of a CUDA graph", 1e3),
    ("share_of_floor", "floor over time, percent", 100),
    ("bytes_per_second", "GB/s as counted", 1e-9),
    ("flops_per_second", "TFLOP/s as counted", 1e-12),
    ("extra_bytes", "MB beyond the inputs", 1e-6),
)


def model() -> str:
    """Formulas and the floors of an H200."""
    header = ["launch", "form", "flops", "products", "exps", "elements"]
    formulas = tables.markdown(header, counters.formulas_table(), numeric=False)
    rates = counters.H200
    goals = {one.shape: f"<= {one.bound:g}" for one in gpu_targets.targets() if one.unit == "ms"}
    rows = [
        [
            " x ".join(f"{size:,}" for size in one.shape.sizes),
            f"{one.what}, {one.precision}",
            str(one.launches),
            *(digits(1e3 * one.terms[unit]) for unit in one.terms),
            f"**{digits(1e3 * one.seconds)}**",
            goals.get(one.shape.name, "-") if "median" in one.what else "-",
        ]
        for one in gpu_targets.floors(rates)
    ]
    units = ["memory", "fp32", "tensor cores", "exps"]
    header = ["particles", "what", "launches", *units, "**floor**", "goal"]
    given = (
        f"Rates: {rates.bandwidth / 1e12:g} TB/s copied, {rates.fp32 / 1e12:g} TFLOP/s float32, "
        f"{rates.tf32 / 1e12:g} tf32, {rates.bf16 / 1e12:g} bf16 (a third of these for x3), "
        f"{rates.exps / 1e12:.2g}e12 exponentials a second ({rates.source})."
    )
    return "\n\n".join([formulas, "### Floors, milliseconds", given, tables.markdown(header, rows)])


def digits(value: float) -> str:
    """Three of them, however small; a dash for nothing."""
    if not value:
        return "-"
    return tables.number(value) if value >= 0.1 else f"{value:.3g}"


def measured(files: list[Path]) -> str:
    """What GPUs showed, a section a device."""
    if not files:
        return UNMEASURED
    return "\n\n".join(_device(records.read(path)) for path in files)


def _device(found: list[Record]) -> str:
    """One device: conditions, targets, then every metric."""
    first = found[0]
    if any(record["device"] == DRY for record in found):
        raise ValueError("records of a dry run are no results")
    values = gpu_targets.values_of(found)
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    commits = ", ".join(sorted({record["commit"] for record in found}))
    conditions = f"<sub>float32; {versions}; medians; commit {commits}.</sub>"
    parts = [f"### {first['device']}", conditions, _facts(values)]
    parts += ["Goals:", targets_table(gpu_targets.check(found))]
    for experiment in sorted({key[0] for key in values} - {"device"}):
        parts.append(f"#### {experiment.replace('_', ' ')}")
        for metric, title, scale in METRICS:
            table = _grid(values, experiment, metric, scale)
            parts += [f"{title[0].upper()}{title[1:]}:", table] if table else []
        table = _grid(values, experiment, "relative_error", 1, scientific=True)
        parts += ["Relative error against float64:", table] if table else []
    return "\n\n".join(parts)


def _facts(values: Values) -> str:
    rows = [
        [key[3].replace("_", " "), f"{value:.3g}"]
        for key, value in sorted(values.items())
        if key[0] == "device"
    ]
    return tables.markdown(["device", "measured"], rows)


def targets_table(checks: list[Check]) -> str:
    rows = []
    for target, value in checks:
        sign = "<=" if target.most else ">="
        met = Check(target, value).met
        rows.append(
            [
                target.shape,
                target.what,
                f"{sign} {_with_unit(target.bound, target.unit)}",
                "-" if value is None else _with_unit(value, target.unit),
                {None: "not measured", True: "yes", False: "**no**"}[met],
            ]
        )
    return tables.markdown(["particles", "against", "goal", "measured", "met"], rows)


def _with_unit(value: float, unit: str) -> str:
    shown = f"{value:.3g}" if unit else f"{value:.1e}"
    return f"{shown} {unit}".strip()


def _grid(
    values: Values, experiment: str, metric: str, scale: float, scientific: bool = False
) -> str:
    """Shapes by methods; empty where nothing was measured."""
    keys = [key for key in values if key[0] == experiment and key[3] == metric]
    methods, shapes = (
        list(dict.fromkeys(k[1] for k in keys)),
        list(dict.fromkeys(k[2] for k in keys)),
    )
    rows = []
    for shape in shapes:
        row = [shape]
        for method in methods:
            value = values.get((experiment, method, shape, metric))
            shown = "-" if value is None else digits(scale * value)
            row.append(f"{value:.1e}" if scientific and value is not None else shown)
        rows.append(row)
    return tables.markdown(["particles", *methods], rows) if rows else ""


def draw(root: Path, folder: Path = FOLDER) -> list[str]:
    """Fill the page, and the read me where a GPU has measured and it has a place for it."""
    files = sorted(folder.glob("*.jsonl"))
    done = []
    for name, text, (begin, end) in (
        (PAGE, model(), MODEL),
        (PAGE, measured(files), MEASURED),
    ):
        filled = fill(root / name, text, begin, end)
        done.append(f"{name}: " + ("tables drawn" if filled else f"skipped, no {begin}"))
    if files:
        shown = [targets_table(gpu_targets.check(records.read(path))) for path in files]
        filled = fill(root / "README.md", "\n\n".join(shown), *MEASURED)
        done.append("README.md: " + ("GPU table drawn" if filled else f"skipped, no {MEASURED[0]}"))
    return done


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_report", description=__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of records")
    print("\n".join(draw(ROOT, parser.parse_args(arguments).results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
