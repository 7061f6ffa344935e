"""The kernels of small sets have no data race, and the barriers that order their stages matter."""

from __future__ import annotations

import re

import pytest

from tests.native import cuda_races

DRIVER = "races_small_set.cpp"
FORWARD, BACKWARD = "small_set.cu", "small_set_backward.cu"
CASES = ["warp", "four", "sixteen", "direct", "largest", "even"]
CASES += ["warp_backward", "four_backward", "sixteen_backward"]
# Barriers, each by the line before it, and a launch that has a race without it.
NEEDED = [
    ("small_set.cu", "bad = g.reduce(bad, 0u, Most{});", "warp"),
    ("small_set.cuh", "__pipeline_wait_prior(0);\n      }", "four"),
    ("small_set_select.cuh", "atomicAdd(&counts[(key - low) >> shift], 1u);\n    }", "warp"),
    ("small_set_backward.cu", "store_shifts(g, s);", "four_backward"),
    ("small_set_backward.cu", "kernel_to_moves(g, s);", "warp_backward"),
]


def of_float(name: str, text: str) -> str:
    """Without the other types, which differ in nothing that a barrier orders: a faster build."""
    return re.sub(r"\n    case Scalar::\w+:\n[^\n]*", "", text) if "launch" in name else text


def test_no_kernel_has_a_race(tmp_path):
    program = cuda_races.program(DRIVER, [FORWARD, BACKWARD], tmp_path, change=of_float)
    assert cuda_races.races(program, *CASES) == 0


@pytest.mark.parametrize(("file", "before", "launch"), NEEDED)
def test_without_a_barrier_there_is_a_race(tmp_path, file, before, launch):
    def without_it(name: str, text: str) -> str:
        if name != file:
            return of_float(name, text)
        start = text.index(before) + len(before)
        return text[:start] + re.sub(r"\bg\.sync\(\);", "", text[start:], count=1)

    program = cuda_races.program(DRIVER, [FORWARD, BACKWARD], tmp_path, change=without_it)
    assert cuda_races.races(program, launch) > 0
