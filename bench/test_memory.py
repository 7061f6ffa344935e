"""Extra peak memory of one call, each in a process of its own (whose time is what is timed)."""

from __future__ import annotations

import pytest

from bench import probe
from bench.methods import MEMORY


def cases(shapes, threads):
    """Ours at every thread count; a baseline's memory does not depend on its threads."""
    return [
        (shape, count, name)
        for shape in shapes
        for count in threads
        for name in MEMORY
        if name in ("ours", "ours_with_median") or count == max(threads)
    ]


def test_memory(benchmark, collector, shape, threads, method):
    reason = MEMORY[method].skip(shape)
    if reason:
        pytest.skip(f"{method} at {shape.name}: {reason}")
    found = benchmark.pedantic(probe.run, args=("memory", method, shape.name, threads))
    benchmark.group = "memory (times are those of the processes)"
    benchmark.extra_info.update(collector.describe(shape, threads), **found)
    collector.add("memory", method, shape, threads, "extra_bytes", found["extra_bytes"])
