"""The GPU bench without a GPU: every phase on a CPU, a phase that fails, the counters, the page."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import stein_kernels
from bench import (
    counters,
    gpu,
    gpu_cases,
    gpu_measure,
    gpu_problems,
    gpu_report,
    gpu_targets,
    records,
)
from bench.gpu import Phase
from bench.gpu_device import DRY, Host, record
from bench.shapes import Shape, parse_shape

ROOT = Path(__file__).resolve().parents[2]


# --- the command ---------------------------------------------------------------------------------


def test_dry_run_takes_every_phase_and_keeps_to_its_folder(tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "bench/results").rglob("*")}
    command = [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path / "out"), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    logs = "".join(path.read_text() for path in (tmp_path / "out").glob("*.log"))
    assert done.returncode == 0, done.stdout + logs[-4000:]
    found = records.read(tmp_path / "out" / "dry-run.jsonl")
    assert {one["device"] for one in found} == {DRY}
    assert {one["experiment"].removeprefix("gpu_") for one in found} == {
        *("device", "direction", "direction_with_median", "backward", "median", "gram", "adam")
    }
    assert all(math.isfinite(one["value"]) for one in found)
    errors = [one["value"] for one in found if one["metric"] == "relative_error"]
    assert max(errors) < 1e-4
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "bench/results").rglob("*")} == before
    with pytest.raises(ValueError, match="dry run are no results"):
        gpu_report.measured([tmp_path / "out" / "dry-run.jsonl"])


def phase(name: str, code: str, seconds: float = 20.0, **options) -> Phase:
    return Phase(name, (sys.executable, "-S", "-c", code), seconds, **options)


def test_what_fails_hangs_or_is_absent_does_not_stop_the_next(tmp_path):
    todo = [
        phase("fails", "print('why'); raise SystemExit(3)"),
        phase("hangs", "import time; time.sleep(60)", 0.5),
        Phase("absent", ("no-such-sanitizer",), 5),
        phase("works", "print('fine')"),
    ]
    outcomes = gpu.run(todo, tmp_path, 60)
    assert [one.status for one in outcomes] == ["failed", "timed out", "absent", "ok"]
    assert outcomes[0].code == 3
    assert (tmp_path / "fails.log").read_text() == "why\n"
    assert (tmp_path / "works.log").read_text() == "fine\n"
    lines = [json.loads(line) for line in (tmp_path / "phases.jsonl").read_text().splitlines()]
    assert lines == [one._asdict() for one in outcomes]


def test_the_background_is_waited_for_where_it_is_needed(tmp_path):
    mark = tmp_path / "built"
    todo = [
        phase("build", f"import time; time.sleep(0.5); open({str(mark)!r}, 'w')", background=True),
        phase("beside", f"import os; raise SystemExit(os.path.exists({str(mark)!r}))"),
        phase(
            "after",
            f"import os; raise SystemExit(not os.path.exists({str(mark)!r}))",
            waits_for=("build",),
        ),
    ]
    outcomes = gpu.run(todo, tmp_path, 60)
    assert [(one.phase, one.status) for one in outcomes] == [
        *(("beside", "ok"), ("build", "ok"), ("after", "ok"))
    ]


def test_a_build_that_failed_is_not_tried_again(tmp_path):
    assert gpu.was_built(tmp_path)
    code = "import os; raise SystemExit(os.environ.get('STEIN_KERNELS_JIT') != '0')"
    outcomes = gpu.run([phase("build", "raise SystemExit(1)"), phase("next", code)], tmp_path, 60)
    assert [one.status for one in outcomes] == ["failed", "ok"]
    assert not gpu.was_built(tmp_path)


def test_no_phase_starts_when_the_time_is_over(tmp_path):
    start = time.monotonic()
    outcomes = gpu.run([phase("late", "raise SystemExit(1)")], tmp_path, gpu.LEAST / 2)
    assert [one.status for one in outcomes] == ["no time left"]
    assert time.monotonic() - start < 1


def test_a_whole_run_fits_nine_minutes(tmp_path):
    """But for the sanitizers, which take what is left; beside the benchmarks runs nothing."""
    found = gpu.phases(tmp_path, dry=False)
    kinds = [one.name.split("_")[0] for one in found]
    sanitizers = ("memcheck", "racecheck") * 2
    assert kinds == ["facts", "build", *["tests"] * 2, *["benchmark"] * 4, *sanitizers]
    first = [one for one in found if one.name not in gpu.SANITIZERS and not one.background]
    tests = [one for one in first if one.name.startswith("tests")]  # which may need their grace
    assert sum(one.seconds for one in first) + gpu.GRACE * len(tests) <= 9 * 60
    begin = kinds.index("benchmark")
    beside = {one.name for one in found[:begin] if one.background}
    assert beside == {name for one in found[:begin] for name in one.waits_for} == {"build"}


def test_a_phase_out_of_time_says_how_far_it_came(tmp_path):
    code = """
import time
print("begun", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("one test had failed", flush=True)
"""
    (outcome,) = gpu.run([phase("hangs", code, 6.0)], tmp_path, 60)
    assert outcome.status == "timed out"
    assert (tmp_path / "hangs.log").read_text() == "begun\none test had failed\n"


@pytest.mark.parametrize(
    ("said", "built"), [("9.0\n9.0\n", "9.0"), ("No devices were found\n", None), ("", None)]
)
def test_kernels_are_built_for_the_device_that_is_here(said, built, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf %s '{said}'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpu, "SEARCHED", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpu.device_environment().get("TORCH_CUDA_ARCH_LIST") == built


def test_a_phase_has_its_own_environment(tmp_path):
    code = "import os; raise SystemExit(os.environ.get('TESTED') != 'here')"
    todo = [phase("one", code, environment=(("TESTED", "here"),)), phase("other", code)]
    assert [one.status for one in gpu.run(todo, tmp_path, 60)] == ["ok", "failed"]


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError(), AssertionError("why\nmore")])
def test_whatever_fails_is_written_down_and_the_next_is_measured(error, tmp_path, monkeypatch):
    bench, called = gpu_measure.Bench(Host(), tmp_path, 60), []

    def fail() -> None:
        called.append("first")
        raise error

    shape = Shape(0, 6, 3)
    todo = [
        gpu_measure.Measurement("gram", "one", shape, None, fail),
        gpu_measure.Measurement("gram", "other", shape, None, lambda: called.append("second")),
    ]
    monkeypatch.setattr(gpu_measure, "measurements", lambda bench, regime: todo)
    gpu_measure.run(bench, "codes")
    assert called == ["first", "second"]
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"].startswith(type(error).__name__)


def test_a_lost_device_leaves_the_others_to_a_new_process(tmp_path, monkeypatch):
    class Executed(BaseException):
        """In the place of a new process."""

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def execute(path: str, command: tuple[str, ...]) -> None:
        raise Executed(command)

    device = Host()
    monkeypatch.setattr(device, "release", lost)
    monkeypatch.setattr(gpu_measure, "open_device", lambda dry: device)
    monkeypatch.setattr(os, "execv", execute)
    with pytest.raises(Executed) as begun:
        gpu_measure.main(["--regime", "codes", "adam", "--out", str(tmp_path), "--after", "2"])
    command = list(begun.value.args[0])
    assert command[command.index("--regime") + 1 :][:2] == ["codes", "adam"]
    assert command[command.index("--after") + 1] == "3"


# --- problems ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [Shape(3, 12, 4), Shape(0, 60, 5)], ids=lambda shape: shape.name)
def test_the_error_is_against_float64(shape):
    device = Host()
    x, grad = gpu_problems.make_inputs(shape, device)
    h = gpu_problems.given_bandwidth(shape, device)
    phi = stein_kernels.svgd_direction(x, grad, bandwidth=h)
    assert gpu_problems.relative_error(shape, x, grad, h, phi) < 2e-6
    assert gpu_problems.relative_error(shape, x, grad, h, 1.01 * phi) == pytest.approx(
        0.01, rel=0.1
    )


def test_a_method_that_does_not_fit_is_left_out_with_a_reason():
    device = Host()
    for regime in gpu_problems.REGIMES:
        for method in gpu_problems.methods(regime, dry=False):
            if method.name == "auto" and method.experiment != "gram":
                shapes = gpu_problems.REGIMES[regime]
                assert all(gpu_problems.why_not(method, shape, device) is None for shape in shapes)
    eager = next(m for m in gpu_problems.methods("samplers", False) if m.name == "eager_gemm")
    assert "needs 160 GB" in str(gpu_problems.why_not(eager, Shape(0, 100_000, 64), device))
    assert "1e+12 pairs" in str(gpu_problems.why_not(eager, Shape(0, 1_000_000, 16), device))


def test_the_cases_of_the_sanitizer_take_every_flow_and_op():
    from stein_kernels.gpu import routes

    flows = set()
    for b, m, d in gpu_cases.SHAPES.values():
        problem = routes.Problem(b, m, m, d, torch.float32, query=False)
        for backend in ("triton", "cuda"):
            flows.add((routes.choose("svgd_direction", problem, (backend,)).flow, d <= 16))
    assert flows >= {("small_set", True), ("small_set", False), ("packed", True)}
    assert flows >= {("packed", False)}
    assert {flow for flow, _ in flows} >= {"small_set", "packed"}
    names = set(gpu_cases.cases("cpu"))
    assert len(names) == 8 * len(gpu_cases.SHAPES)


# --- counters ------------------------------------------------------------------------------------


def test_a_formula_at_a_shape():
    shape = Shape(2, 10, 3)  # 200 pairs, 90 distinct ones
    one = counters.count("direction", "ieee", shape)
    assert one == ("direction", 6 * 200 * 3 + 8 * 200, 0, 200, 4 * (2 * 60 + 2 * 60 + 20 + 20))
    of_query = counters.count("direction", "tensor", shape, targets=5)
    assert of_query.products == 4 * 100 * 3
    assert counters.count("median_pass", "ieee", shape).flops == 4 * 90 * 3 + 8 * 90


def test_a_floor_is_its_slowest_unit():
    rates = counters.Rates(1e12, 1e13, 3e14, 6e14, 1e12, "made up")
    one = counters.Count("made up", 1e10, 1e11, 1e8, 1e8)
    assert counters.floor(one, rates) == 1e-3  # flops
    assert counters.terms(one, rates, "tf32x3")["tensor cores"] == 1e-3
    assert counters.terms(one, rates, "bf16x3")["tensor cores"] == 5e-4
    assert counters.floor(one._replace(bytes=2e9), rates) == 2e-3
    assert counters.total_floor([one, one], rates) == 2e-3


def test_long_rows_have_the_floor_of_sixteen_bytes():
    """Regime A reads x twice and the scores once and writes the direction once."""
    shape = parse_shape("100x2000000")
    counts = counters.direction(shape, "long_rows", "tf32x3", with_median=False)
    least = 16 * shape.particles * shape.features
    assert least <= sum(one.bytes for one in counts) < 1.01 * least


# --- records and pages ---------------------------------------------------------------------------


def measured(**seconds: float) -> list[records.Record]:
    """Records of direction_with_median at 64x100x50."""
    device, setting = Host(), {"shape": "64x100x50"}
    return [
        record(device, "direction_with_median", method, setting, "seconds", [value])
        for method, value in seconds.items()
    ]


def found(checks: list[gpu_targets.Check], shape: str, what: str) -> gpu_targets.Check:
    return next(one for one in checks if one.target[:2] == (shape, what))


def test_targets_are_met_missed_or_not_measured():
    checks = gpu_targets.check(measured(auto=1e-5, eager_gemm=1.6e-4, compiled_gemm=4e-5))
    assert found(checks, "64x100x50", "eager").met is True
    assert found(checks, "64x100x50", "compiled").met is False
    assert found(checks, "4096x20x32", "eager").met is None
    table = gpu_report.targets_table(checks)
    assert "| 64x100x50 | eager | >= 15 x | 16 x | yes |" in table
    assert "| 64x100x50 | compiled | >= 5 x | 4 x | **no** |" in table
    assert "| 4096x20x32 | eager | >= 15 x | - | not measured |" in table


def test_the_page_is_current(tmp_path):
    """``python -m bench.gpu_report`` changes nothing."""
    page = tmp_path / gpu_report.PAGE
    page.parent.mkdir()
    page.write_text((ROOT / gpu_report.PAGE).read_text())
    gpu_report.draw(tmp_path)
    assert page.read_text() == (ROOT / gpu_report.PAGE).read_text()


def test_the_page_shows_what_a_device_measured(tmp_path):
    page = tmp_path / gpu_report.PAGE
    page.parent.mkdir()
    page.write_text("{}\n{}\n{}\n{}\n".format(*gpu_report.MODEL, *gpu_report.MEASURED))
    (tmp_path / "README.md").write_text("{}\n{}\n".format(*gpu_report.MEASURED))
    results = tmp_path / "results" / "device.jsonl"
    for one in measured(auto=1e-5, eager_gemm=1.6e-4):
        records.append(results, one | {"device": "A GPU"})
    gpu_report.draw(tmp_path, results.parent)
    assert "### A GPU" in page.read_text()
    assert "| 64x100x50 | 0.01 | 0.16 |" in page.read_text()
    assert "| 64x100x50 | eager | >= 15 x | 16 x | yes |" in (tmp_path / "README.md").read_text()


def test_a_page_without_records_says_so(tmp_path):
    assert "No GPU has measured" in gpu_report.measured([])
