"""Relative error of an output against the reference in float64, on random targets.

error = max |actual - expected| / max |expected| over the targets: about 200 of them, fewer where
M d is so large that the float64 differences would take longer than the benchmark.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import stein_kernels
from bench.shapes import SEED, Shape, exact_bandwidth, make_inputs

TARGETS = 200
SETS = 8  # of a batch, at most
WORK = 8e7  # differences in all: a few seconds in float64
CHUNK = 2**25  # differences at a time: 256 MB in float64
SHIFTS = {"relative_error": 0.0, "relative_error_shift_100": 1e2, "relative_error_shift_1e4": 1e4}


@functools.cache
def sampled_rows(shape: Shape) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """(set, targets) pairs, the same in every run."""
    generator = torch.Generator().manual_seed(SEED + 1)
    sets = torch.randperm(shape.sets, generator=generator)[:SETS].tolist()
    affordable = max(1, int(WORK / (shape.particles * shape.features)))
    count = min(shape.particles, max(1, min(TARGETS, affordable) // len(sets)))
    return tuple(
        (s, tuple(torch.randperm(shape.particles, generator=generator)[:count].tolist()))
        for s in sets
    )


def pick(shape: Shape, output: Tensor) -> Tensor:
    """The sampled rows of an output (..., M, anything)."""
    sets = output if shape.batch else output[None]
    return torch.cat([sets[s, list(targets)] for s, targets in sampled_rows(shape)])


@functools.cache
def expected_rows(op: str, shape: Shape, shift: float) -> Tensor:
    """The same rows in float64 from the same float32 inputs and bandwidth."""
    x, grad = (
        value.double().view(shape.sets, -1, shape.features) for value in make_inputs(shape, shift)
    )
    h = exact_bandwidth(shape).double().expand(shape.sets)
    step = max(1, CHUNK // (shape.particles * shape.features))
    rows = []
    for s, targets in sampled_rows(shape):
        for start in range(0, len(targets), step):
            y = x[s, list(targets[start : start + step])]
            rows.append(_reference(op, x[s], grad[s], y, h[s]))
    return torch.cat(rows)


def relative_error(op: str, shape: Shape, shift: float, output: Tensor) -> float:
    expected = expected_rows(op, shape, shift)
    error = (pick(shape, output).double() - expected).abs().max()
    return float(error / expected.abs().max())


def _reference(op: str, x: Tensor, grad: Tensor, y: Tensor, h: Tensor) -> Tensor:
    with stein_kernels.use_backend("reference"):
        if op == "rbf_gram":
            return stein_kernels.rbf_gram(x, y, bandwidth=h).mT
        return stein_kernels.svgd_direction(x, grad, query=y, bandwidth=h)
