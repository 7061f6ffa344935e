"""The benchmarks run: a slice without just-in-time compilers, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import records

ROOT = Path(__file__).resolve().parents[2]
PYTEST = (sys.executable, "-m", "pytest")


def quick(
    tmp_path: Path, *arguments: str, start: Sequence[str] = PYTEST
) -> tuple[subprocess.CompletedProcess, Path]:
    path = tmp_path / "quick.jsonl"
    command = [*start, "bench", "--benchmark-only", "--bench-quick", "-q"]
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


def test_a_training_step_is_measured_against_its_rivals(tmp_path):
    """Whether its speed is enough, a full run says."""
    done, path = quick(tmp_path, "-k", "train_step")
    assert "1 passed" in done.stdout, done.stdout[-4000:]
    assert {r["method"] for r in records.read(path)} == {"ours", "naive", "products", "iwae"}
    assert {r["metric"] for r in records.read(path)} == {"cpu_seconds", "stein_share"}


FAILING = """
import sys
import pytest

class Fails:
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item):
        assert "test_memory" not in item.nodeid

sys.exit(pytest.main(sys.argv[1:], plugins=[Fails()]))
"""


def test_an_experiment_that_fails_keeps_no_records(tmp_path):
    chosen = "8x20x8 and ours and (rbf_gram or memory)"
    start = [sys.executable, "-c", FAILING]
    done, path = quick(tmp_path, "-k", chosen, start=start)
    assert done.returncode == 1, done.stdout[-4000:]
    assert {record["experiment"] for record in records.read(path)} == {"rbf_gram"}
