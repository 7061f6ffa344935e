"""The first call in a fresh process, after the import (timed: the whole process)."""

from __future__ import annotations

import pytest

from bench import probe
from bench.methods import FIRST_CALL

PROCESSES = 3  # of ours; a compiler starting from an empty cache takes 10 to 50 s, and runs once


def cases(shapes, threads):
    """Ours on the minibatch and the mid-sized set; the compilers once, on the first shape."""
    single = next(shape for shape in shapes if not shape.batch)
    ours = [(shape, count, "ours") for shape in (shapes[0], single) for count in threads]
    return ours + [(shapes[0], max(threads), name) for name in FIRST_CALL if name != "ours"]


def test_first_call(benchmark, collector, shape, threads, method):
    reason = FIRST_CALL[method].skip(shape)
    if reason:
        pytest.skip(f"{method} at {shape.name}: {reason}")
    ours = method == "ours"

    def fresh_process():
        found.append(probe.run("first_call", method, shape.name, threads, cold=not ours))

    found: list[dict[str, float]] = []
    benchmark.pedantic(fresh_process, rounds=PROCESSES if ours else 1)
    benchmark.group = "first call (times are those of the processes)"
    benchmark.extra_info.update(collector.describe(shape, threads), **found[-1])
    for one in found:
        for metric, seconds in one.items():
            collector.add("first_call", method, shape, threads, metric, seconds)
