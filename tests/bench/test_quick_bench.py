"""The benchmarks run: a slice without just-in-time compilers, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench import records

ROOT = Path(__file__).resolve().parents[2]


def quick(tmp_path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess, Path]:
    path = tmp_path / "quick.jsonl"
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "--bench-quick", "-q"]
    command += ["-p", "no:cacheprovider", "--bench-records", str(path), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True), path


def test_quick_run_checks_its_bounds_and_keeps_records(tmp_path):
    chosen = (
        "(direction or backward) and (ours or eager) and not memory or memory and 8x20x8 and ours"
    )
    done, path = quick(tmp_path, "-k", f"({chosen}) and not compiled")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "MISSED" not in done.stdout
    assert "met           direction: relative error" in done.stdout
    found = records.read(path)
    assert {r["experiment"] for r in found} == {
        *("svgd_direction", "svgd_direction_with_median", "backward", "memory")
    }
    times = [r for r in found if r["metric"] == "seconds"]
    assert min(r["n"] for r in times) >= 6
    assert all(r["value"] > 0 for r in times)


def test_a_failing_benchmark_keeps_no_records(tmp_path):
    done, path = quick(tmp_path, "-k", "rbf_gram and 8x20x8", "-o", "usefixtures=no_such_fixture")
    assert done.returncode == 1
    assert not path.exists()
