"""Launches of the exact median: sample, count and collect, refine. See ``gpu/median.py``.

A squared distance v is never negative, so its bits order as its value. One pass over all pairs
counts those below a bracket of bits and sorts those inside it into 2048 bins, whose first ``depth``
values it keeps. The counts prove which bin holds the middle ranks; the values of that bin are
selected from, or it is the bracket of the next pass. A pass gives the same bits to the same pair
every time, so the counts of two passes agree. NaN is in no bin: padded particles are NaN.

``points`` is a packed cloud (B, D, ld), NaN beyond the count, or with ``stored`` the matrix of
squared distances (B, M, M) of which the upper triangle is read. ``state`` (B, 8) int64 is laid out
in ``median_kernels.py``, ``histogram`` (B, rows, 2048) int64, ``buckets`` (B, rows, 2048, depth) of
T. Programs share a row of these two by their number: many programs that meet equal distances would
wait for each other at one counter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
from torch import Tensor

from stein_kernels.triton.configs import Tile
from stein_kernels.triton.median_kernels import (
    median_pass_kernel,
    median_refine_kernel,
    median_sample_kernel,
)
from stein_kernels.triton.specialisation import Specialisation

# Tiles of pairs of a pass, and what a thread keeps of them.
TILES = {"fp32": Tile(64, 64, 8, 4), "fp64": Tile(64, 64, 8, 4)}
PROGRAMS = 1584  # of a pass: 12 for each of 132 multiprocessors, which hold 2 or 3 at a time
# Rows of the histogram and values that a bin keeps in each; depth 0 keeps none.
_SHALLOW = ((1, 0), (1, 64), (1, 256), (1, 512), (32, 64), (32, 256))
SHAPES = {"fp32": (*_SHALLOW, (32, 512)), "fp64": _SHALLOW}
SAMPLES = 256  # pairs of one sampling program
REFINE_WARPS = 8


def _features(points: Tensor, stored: bool) -> int:
    return 0 if stored else points.shape[1]


def median_sample(points: Tensor, sample: Tensor, count: int, stored: bool) -> None:
    """Squared distances of pseudo-random pairs, the same for every set, into ``sample`` (B, S)."""
    batch, size = sample.shape
    programs = triton.cdiv(size, SAMPLES)
    median_sample_kernel[(batch * programs,)](
        *(points, sample, count, _features(points, stored), size, programs),
        **{"STORED": stored, "BLOCK": SAMPLES},
        num_warps=SAMPLES // 32,
        enable_fp_fusion=True,
    )


def median_pass(
    points: Tensor, state: Tensor, histogram: Tensor, buckets: Tensor, count: int, stored: bool
) -> None:
    """Count the pairs of every set that is not done: below its bracket, and by bin in it."""
    tile = TILES["fp64" if points.element_size() == 8 else "fp32"]
    batch, rows, _, depth = buckets.shape
    across = triton.cdiv(count, tile.rows)
    programs = max(1, min(across * (across + 1) // 2, PROGRAMS // batch))
    median_pass_kernel[(batch * programs,)](
        *(points, state, histogram, buckets, count, _features(points, stored), programs),
        *(rows, depth),
        **{"SHAPE": tile[:4], "STORED": stored},
        **tile.options(),
    )


def median_refine(state: Tensor, histogram: Tensor, buckets: Tensor, count: int) -> None:
    """Read the counts of a pass and clear them: a set is done, or has its next bracket."""
    batch, rows, _, depth = buckets.shape
    median_refine_kernel[(batch,)](
        *(state, histogram, buckets, count, rows, depth),
        num_warps=REFINE_WARPS,
        enable_fp_fusion=True,
    )


def specialisations() -> Iterator[Specialisation]:
    """Every specialisation that the launches can reach."""
    for dtype in TILES:
        for stored in (False, True):
            yield from _reading(dtype, stored)
        for rows, depth in SHAPES[dtype]:
            pointers = {"state": "*i64", "histogram": "*i64", "buckets": f"*{dtype}"}
            yield Specialisation(
                kernel=median_refine_kernel,
                name=f"median_refine[rows={rows},depth={depth},{dtype}]",
                arguments={**pointers, "count": "i32"},
                constants={"R": rows, "DEPTH": depth},
                aligned=tuple(pointers),
                num_warps=REFINE_WARPS,
                num_stages=3,
            )


def _reading(dtype: str, stored: bool) -> Iterator[Specialisation]:
    """The kernels that read points: a stored matrix may begin anywhere, a packed cloud is ours."""
    tile, source = TILES[dtype], "stored" if stored else "packed"
    for hinted in (True, False) if stored else (True,):
        name = f"[{source},{dtype}]" if hinted else f"[{source},{dtype},unaligned]"
        points = ("points",) if hinted else ()
        sample = {"points": f"*{dtype}", "sample": f"*{dtype}"}
        integers: tuple[str, ...] = ("count", "features", "size", "programs")
        yield Specialisation(
            kernel=median_sample_kernel,
            name="median_sample" + name,
            arguments={**sample, **dict.fromkeys(integers, "i32")},
            constants={"STORED": stored, "BLOCK": SAMPLES},
            aligned=(*points, "sample"),
            num_warps=SAMPLES // 32,
            num_stages=3,
        )
        own = {"state": "*i64", "histogram": "*i64", "buckets": f"*{dtype}"}
        integers = ("count", "features", "programs", "rows", "depth")
        constants: dict[str, Any] = {"SHAPE": tile[:4], "STORED": stored}
        yield Specialisation(
            kernel=median_pass_kernel,
            name="median_pass" + name,
            arguments={"points": f"*{dtype}", **own, **dict.fromkeys(integers, "i32")},
            constants=constants,
            aligned=(*points, *own),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            instruction=None if stored or dtype == "fp64" else "fma",
        )
