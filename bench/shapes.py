"""The problems every method is measured on: sizes as data, inputs by a fixed seed, bandwidth apart.

Particles x ~ N(0, I) and scores g = -x + 0.1 noise, float32: the scores of a standard normal, as a
minibatch would estimate them.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SEED = 0
FLOAT_BYTES = 4


class Shape(NamedTuple):
    """Sizes of the particles: batch sets (none where 0), M particles, d features."""

    batch: int
    particles: int
    features: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self) if self.batch else (self.particles, self.features)

    @property
    def name(self) -> str:
        return "x".join(map(str, self.sizes))

    @property
    def sets(self) -> int:
        return max(1, self.batch)

    @property
    def pairs(self) -> int:
        """Kernel values, the pairs (i, i) and both orders counted."""
        return self.sets * self.particles**2

    @property
    def input_bytes(self) -> int:
        """x and its scores."""
        return 2 * FLOAT_BYTES * self.sets * self.particles * self.features

    @property
    def direction_bytes(self) -> int:
        """The least traffic of a direction: read x and the scores once, write phi once."""
        return self.input_bytes * 3 // 2

    @property
    def direction_flops(self) -> int:
        """Distances, K g and K x: 2 d each for a pair; the exponentials are not counted."""
        return 6 * self.pairs * self.features


# One thing each: codes of minibatches (two sizes), a mid-sized set, samplers at two dimensions,
# and the parameters of a decoder.
SHAPES = (
    Shape(64, 100, 50),
    Shape(1024, 20, 32),
    Shape(0, 2000, 50),
    Shape(0, 10000, 16),
    Shape(0, 20000, 3),
    Shape(0, 100, 200000),
)
QUICK_SHAPES = (Shape(8, 20, 8), Shape(0, 300, 8))
THREADS = (1, 2)
QUICK_THREADS = (1,)


def parse_shape(name: str) -> Shape:
    """The inverse of ``Shape.name``."""
    sizes = [int(size) for size in name.split("x")]
    if len(sizes) not in (2, 3):
        raise ValueError(f"shape must be MxD or BxMxD, got {name!r}")
    return Shape(*([0, *sizes] if len(sizes) == 2 else sizes))


def make_inputs(shape: Shape, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """x and its scores, float32; ``shift`` moves every coordinate and leaves the scores alone."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(shape.sizes, generator=generator)
    grad = -x + 0.1 * torch.randn(shape.sizes, generator=generator)
    return x + shift, grad


@functools.cache
def exact_bandwidth(shape: Shape) -> Tensor:
    """med^2 / log(M + 1) of every set, from all pairs in float64 by numpy: none of our kernels."""
    x, _ = make_inputs(shape)
    medians = [_midpoint_median(torch.pdist(one.double()).numpy()) for one in _sets(x)]
    h = torch.tensor(medians, dtype=torch.float64).square() / math.log(shape.particles + 1)
    return h.float() if shape.batch else h.float()[0]


def population_bandwidth(shape: Shape) -> Tensor:
    """About the same without a pass over the pairs: E|x - x'|^2 = 2 d for standard normals."""
    h = torch.tensor(2.0 * shape.features / math.log(shape.particles + 1))
    return h.expand(shape.batch).contiguous() if shape.batch else h


def _sets(x: Tensor) -> Tensor:
    return x if x.dim() == 3 else x[None]


def _midpoint_median(distances: np.ndarray) -> float:
    low, high = (distances.size - 1) // 2, distances.size // 2
    distances.partition((low, high))
    return (float(distances[low]) + float(distances[high])) / 2
