"""Which flow and which kernels an op takes on a GPU: the dispatch table.

A flow is a sequence of launches for a range of shapes; a backend ("cuda", CUDA C++; "triton") is a
set of launches. No choice reads a value from the device, and none depends on what is measured at
run time, so the same shapes give the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from stein_kernels.gpu import small_set

PACKED_FEATURES = 128  # the accumulator of one row tile fits the registers of a block


class Problem(NamedTuple):
    """What the choice depends on."""

    batch: int
    particles: int
    targets: int
    features: int
    dtype: torch.dtype
    query: bool


class Route(NamedTuple):
    flow: str
    backend: str
    precision: str  # of matrix products: "ieee", "tf32x3" or "tf32"
    reason: str


class Rule(NamedTuple):
    """Backends in order of preference, and why."""

    backends: tuple[str, ...]
    reason: str


# The orders are by design, not yet by measurement: docs/performance-gpu.md has what is measured.
TABLE = {
    ("small_set", "ieee"): Rule(
        ("cuda", "triton"),
        "one launch, a block for each set; CUDA C++ holds larger sets in shared memory",
    ),
    ("packed", "ieee"): Rule(
        ("cuda", "triton"),
        "tiles of pairs by differences; CUDA C++ stages them by asynchronous copies",
    ),
    ("packed", "tf32x3"): Rule(("triton", "cuda"), "tiles of pairs on the tensor cores by Triton"),
    ("packed", "tf32"): Rule(("triton", "cuda"), "tiles of pairs on the tensor cores by Triton"),
    ("long_rows", "ieee"): Rule(
        ("cuda", "triton"), "split over features; CUDA C++ streams rows by asynchronous copies"
    ),
    ("long_rows", "tf32x3"): Rule(
        ("triton", "cuda"),
        "split over features on the tensor cores by Triton: 3 products of 11 bits are as exact",
    ),
    ("long_rows", "tf32"): Rule(("triton", "cuda"), "split over features on the tensor cores"),
    ("median", "ieee"): Rule(
        ("cuda", "triton"), "selection on bits; CUDA C++ has histograms in shared memory"
    ),
}
TENSOR_CORES = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}
SMALL_SET_OPS = ("svgd_direction", "svgd_direction_backward")


def flow_of(op: str, problem: Problem, backend: str) -> str:
    """The flow of an op on one backend."""
    m, d = problem.particles, problem.features
    if op == "median_distance":
        return "median" if d <= PACKED_FEATURES else "long_rows"
    if op in SMALL_SET_OPS and not problem.query and small_set.fits(backend, m, d, problem.dtype):
        return "small_set"
    return "packed" if d <= PACKED_FEATURES else "long_rows"


def precision_of(flow: str, problem: Problem) -> str:
    """ "ieee" unless torch.set_float32_matmul_precision allows less, or less is as exact."""
    if problem.dtype == torch.float64 or flow in ("small_set", "median"):
        return "ieee"
    allowed = TENSOR_CORES[_allowed()]
    return "tf32x3" if flow == "long_rows" and allowed == "ieee" else allowed


def _allowed() -> str:
    """What torch has been told, by whichever of its two interfaces."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was told by the other
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"


def choose(op: str, problem: Problem, backends: tuple[str, ...]) -> Route:
    """The route of an op among the backends that may be used, of which there is at least one.

    CUDA C++ multiplies in float32 only, so there the precision is "ieee" whatever is allowed.
    """
    candidates = []
    for backend in backends:
        flow = flow_of(op, problem, backend)
        precision = precision_of(flow, problem)
        rule = TABLE[flow, precision]
        rank = rule.backends.index(backend)
        used = "ieee" if backend == "cuda" else precision
        candidates.append((rank, Route(flow, backend, used, rule.reason)))
    return min(candidates, key=lambda candidate: candidate[0])[1]


# Where x and query stand among the arguments of an op: after the cotangent of a backward.
_POSITIONS = {
    "median_distance": (0, None),
    "rbf_gram": (0, 1),
    "rbf_gram_backward": (1, 2),
    "svgd_direction": (0, 3),
    "svgd_direction_backward": (1, 4),
    "stein_divergence": (0, 3),
    "stein_divergence_backward": (1, 4),
}


def position(op: str) -> int:
    """Where x stands among the arguments of an op."""
    return _POSITIONS[op][0]


def problem_of(op: str, arguments: tuple[Any, ...]) -> Problem:
    """The sizes in the arguments of an op, (B, M, d) throughout."""
    at, other = _POSITIONS[op]
    x = arguments[at]
    query = None if other is None else arguments[other]
    targets = x.shape[1] if query is None else query.shape[1]
    return Problem(x.shape[0], x.shape[1], targets, x.shape[2], x.dtype, query is not None)
