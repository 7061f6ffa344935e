"""Measurements that need a fresh process: peak memory of a call, and the first call after import.

``python -m bench.probe memory|first_call METHOD SHAPE THREADS`` prints JSON as its last line.
Memory on Linux only: the peak is VmHWM of /proc/self/status.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(
    kind: str, method: str, shape: str, threads: int, *, cold: bool = False
) -> dict[str, float]:
    """Measure in a new process; with ``cold``, with empty caches of the just-in-time compilers."""
    with tempfile.TemporaryDirectory() as empty:
        caches = {"TORCHINDUCTOR_CACHE_DIR": empty, "KEOPS_CACHE_FOLDER": empty} if cold else {}
        done = subprocess.run(
            [sys.executable, "-m", "bench.probe", kind, method, shape, str(threads)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **caches},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"{kind} of {method} at {shape} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def extra_memory(method: str, shape: str, threads: int) -> dict[str, float]:
    """Peak resident bytes of one call beyond what was resident before it, its output included.

    A call before it, on few particles (on the same inputs for torch.compile), loads libraries,
    starts threads and compiles.
    """
    from bench.environment import set_threads
    from bench.methods import MEMORY, build
    from bench.shapes import make_inputs, parse_shape, population_bandwidth

    problem = parse_shape(shape)
    set_threads(threads)
    inputs = (*make_inputs(problem), population_bandwidth(problem))
    call = build(MEMORY[method], problem, inputs)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = _status("VmRSS")
    output = call(*inputs)
    peak = _status("VmHWM")
    del output
    return {"extra_bytes": max(0, peak - before)}


def first_call(method: str, shape: str, threads: int) -> dict[str, float]:
    """Seconds of the import of this package and of the first call after it, torch being loaded."""
    from bench.environment import set_threads  # loads torch

    set_threads(threads)
    start = time.perf_counter()
    importlib.import_module("stein_kernels")
    imported = time.perf_counter()
    from bench.methods import FIRST_CALL
    from bench.shapes import make_inputs, parse_shape, population_bandwidth

    problem = parse_shape(shape)
    inputs = (*make_inputs(problem), population_bandwidth(problem))
    call = FIRST_CALL[method].make()
    begin = time.perf_counter()
    call(*inputs)
    return {"import_seconds": imported - start, "first_call_seconds": time.perf_counter() - begin}


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")


if __name__ == "__main__":
    kinds = {"memory": extra_memory, "first_call": first_call}
    parser = argparse.ArgumentParser(prog="python -m bench.probe", description=__doc__)
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("method", metavar="METHOD", help="a name in bench/methods.py")
    parser.add_argument("shape", metavar="SHAPE", help="MxD or BxMxD")
    parser.add_argument("threads", metavar="THREADS", type=int)
    found = parser.parse_args()
    print(json.dumps(kinds[found.kind](found.method, found.shape, found.threads)))
