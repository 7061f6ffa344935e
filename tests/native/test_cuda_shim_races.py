"""The CUDA kernels have no data race, and every barrier of the pair tiles is one that they need."""

from __future__ import annotations

import re

import pytest

from tests.native import cuda_races
from tests.native.cuda_shim import CUDA

DRIVER = "races_pairs.cpp"
SOURCES = ["direction", "direction_backward", "divergence", "divergence_backward"]
SOURCES += ["gram", "gram_backward"]
BARRIER = re.compile(r"__sync(?:threads|warp)\(\);")
# The barriers of tile.cuh in their order, each with a launch that has a race without it.
NEEDED = [
    ("direction", "direction"),  # before a chunk of features is read
    ("direction", "direct"),  # before feature tiles are read that came with the only chunk
    ("direction_backward", "direction_backward"),  # before a feature tile is replaced
    ("direction_backward", "direction_backward"),  # before the new one is read
    ("divergence_backward", "divergence_backward"),  # before coefficients are replaced
    ("direction", "direction"),  # before the new ones are read
]


SETS = ["small_set", "small_set_backward", "median_pass", "median_refine"]
SET_LAUNCHES = ["small_set", "small_set_backward", "median", "median_stored", "median_counted"]


def stubs(needed: str) -> str:
    """The launchers that a program of one source lacks."""
    return "".join(
        f'#include "{name.removesuffix("_backward")}.h"\n'
        f"cudaError_t stein::{name}(Scalar, const {camel(name)}Arguments&, cudaStream_t)"
        " { return cudaErrorNotSupported; }\n"
        for name in SOURCES
        if name != needed
    )


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def test_every_barrier_of_the_tiles_is_listed():
    assert len(BARRIER.findall((CUDA / "tile.cuh").read_text())) == len(NEEDED)


def test_no_kernel_has_a_race(tmp_path):
    program = cuda_races.program(DRIVER, [f"{name}.cu" for name in SOURCES], tmp_path)
    assert cuda_races.races(program, *SOURCES, "direct") == 0


def test_sets_and_medians_have_no_race(tmp_path):
    program = cuda_races.program("races_sets.cpp", [f"{name}.cu" for name in SETS], tmp_path)
    assert cuda_races.races(program, *SET_LAUNCHES) == 0


@pytest.mark.parametrize(("barrier", "needed"), list(enumerate(NEEDED)), ids=str)
def test_without_a_barrier_there_is_a_race(tmp_path, barrier, needed):
    source, launch = needed

    def without_it(name: str, text: str) -> str:
        if name == f"{source}.cu":
            return text + stubs(source)
        if name != "tile.cuh":
            return text
        match = list(BARRIER.finditer(text))[barrier]
        return text[: match.start()] + text[match.end() :]

    program = cuda_races.program(DRIVER, [f"{source}.cu"], tmp_path, change=without_it)
    assert cuda_races.races(program, launch) > 0
