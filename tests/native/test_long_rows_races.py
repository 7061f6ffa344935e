"""The kernels of long rows have no data race, and the barriers between their stages matter."""

from __future__ import annotations

import pytest

from tests.native import cuda_races

DRIVER = "races_long_rows.cpp"
SOURCES = ["long_products.cu", "long_direction.cu"]
CASES = ["products_whole", "products_tiles", "products_query"]
CASES += ["direction_whole", "direction_tiles", "direction_query", "adam"]
BARRIER = "__syncthreads();"
# Barriers by their number in the file, and a launch that has a race without it.
NEEDED = [
    ("long_products.cu", 0, "products_whole"),
    ("long_products.cu", 1, "products_whole"),
    ("long_products.cu", 2, "products_whole"),
    ("long_direction.cu", 0, "direction_whole"),
    ("long_direction.cu", 1, "direction_whole"),
    ("long_direction.cu", 2, "direction_whole"),
]


def test_no_kernel_has_a_race(tmp_path):
    assert cuda_races.races(cuda_races.program(DRIVER, SOURCES, tmp_path), *CASES) == 0


@pytest.mark.parametrize(("file", "number", "launch"), NEEDED)
def test_without_a_barrier_there_is_a_race(tmp_path, file, number, launch):
    def without_it(name: str, text: str) -> str:
        if name != file:
            return text
        parts = text.split(BARRIER)
        assert len(parts) == 4
        return BARRIER.join(parts[: number + 1]) + ";" + BARRIER.join(parts[number + 1 :])

    program = cuda_races.program(DRIVER, SOURCES, tmp_path, change=without_it)
    assert cuda_races.races(program, launch) > 0
