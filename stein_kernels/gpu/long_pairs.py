"""Pairs of long rows: their squared distances and inner products, by launches split over features.

A stored matrix is (B, M, n) for a run of n targets, never more than the particles themselves take:
where M x N would be, the targets go in runs of at most 2 d.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stein_kernels._checks import accumulation_dtype
from stein_kernels.gpu import median

# Particles of a set that a launch reads once and centres as it goes, by the type of the sums.
WHOLE = {torch.float32: 128, torch.float64: 64}
TILE = 128  # particles of the tiles that the splits are counted in
SPAN = 256  # features of a split, at least
PROGRAMS = 264  # two for each of 132 multiprocessors; a constant keeps the bits the same


def rows(value: Tensor) -> Tensor:
    """(B, M, d) as the launches read it: rows contiguous, sets a whole number of rows apart."""
    b, m, d = value.shape
    step = value.stride(1)
    if value.stride(2) == 1 and step >= d and m > 1 and (b == 1 or value.stride(0) % step == 0):
        return value
    return value.clone(memory_format=torch.contiguous_format)


def mean(x: Tensor) -> Tensor:
    """The centre of the particles, (B, d), in the accumulation dtype; the same for any strides."""
    return x.contiguous().mean(1, dtype=accumulation_dtype(x.dtype))


def is_whole(x: Tensor) -> bool:
    """Whether a launch centres the set by itself."""
    return x.shape[1] <= WHOLE[accumulation_dtype(x.dtype)]


def splits(b: int, m: int, n: int, d: int, same: bool) -> int:
    """Into how many parts the features go, so that few tiles fill a device too."""
    across, down = -(-m // TILE), -(-n // TILE)
    tiles = b * (across * (across + 1) // 2 if same else across * down)
    # Many tiles take several rounds: in parts, the last round leaves fewer processors idle.
    wanted = PROGRAMS // tiles if tiles <= PROGRAMS else -(-8 * PROGRAMS // tiles)
    return max(1, min(wanted, d // SPAN, 2 * d // n))


def products(
    kernels: Any,
    row: Tensor,
    col: Tensor,
    row_centre: Tensor,
    col_centre: Tensor,
    same: bool,
    precision: str,
) -> Tensor:
    """(row_i - centre) . (col_j - centre), (B, M, N) in T; only i <= j is right where ``same``.

    The parts are added in float64: they are few, and a large set has one.
    """
    (b, m, d), n = row.shape, col.shape[1]
    partial = row_centre.new_empty(splits(b, m, n, d, same), b, m, n)
    kernels.long_products(row, col, row_centre, col_centre, partial, same, precision)
    if partial.shape[0] == 1:
        return partial[0]
    return partial.sum(0, dtype=torch.float64).to(partial.dtype)


def squared_distances(kernels: Any, x: Tensor, centre: Tensor | None, precision: str) -> Tensor:
    """|x_i - x_j|^2 within each set, (B, M, M); the diagonal is 0, or NaN where x is not finite.

    |x_i|^2 comes from the same sums as x_i . x_j, so equal particles are exactly 0 apart.
    """
    if centre is None:  # a whole set is centred by the launch
        centre = x.new_empty(x.shape[0], x.shape[2], dtype=accumulation_dtype(x.dtype))
    inner = products(kernels, x, x, centre, centre, True, precision)
    norm = inner.diagonal(0, 1, 2)
    squared = (norm[:, :, None] + norm[:, None] - 2 * inner).clamp_(min=0)
    return squared.triu() + squared.triu(1).mT


def median_of(kernels: Any, squared: Tensor) -> Tensor:
    """The median distance by the rule of ``reference.median_distance``, (B,)."""
    m = squared.shape[1]
    mean_square = squared.double().sum((1, 2)) / max(1, m * (m - 1))
    fallback = torch.where(mean_square > 0, mean_square.sqrt(), 1.0).to(squared.dtype)
    found = median.median_of_distances(kernels, squared, fallback)
    finite = squared.diagonal(0, 1, 2).isfinite().all(1)
    return torch.where(finite, found, math.nan)


def median_distance(kernels: Any, x: Tensor, precision: str = "ieee") -> Tensor:
    """The exact median distance, from stored squares where they take no more room than x."""
    x = rows(x)
    if x.shape[1] > 2 * x.shape[2]:
        return median.median_distance(kernels, x)
    centre = None if is_whole(x) else mean(x)
    return median_of(kernels, squared_distances(kernels, x, centre, precision))


class Tile(NamedTuple):
    """Pairs of all sources with a run of targets."""

    targets: slice
    y: Tensor  # (B, n, d)
    squared: Tensor  # (B, M, n)
    kernel: Tensor  # (B, M, n), 0 at the pair of a particle with itself


class Problem(NamedTuple):
    """What the ops of this flow have in common; ``squared`` of a set with itself may be at hand."""

    kernels: Any
    x: Tensor
    query: Tensor | None
    centre: Tensor  # (B, d) of T
    h: Tensor  # (B,)
    precision: str
    squared: Tensor | None = None

    @property
    def y(self) -> Tensor:
        return self.x if self.query is None else self.query

    def tiles(self) -> Iterator[Tile]:
        n, step = self.y.shape[1], 2 * self.x.shape[2]
        norm = None
        for start in range(0, n, step):
            targets = slice(start, min(n, start + step))
            y = self.y[:, targets]
            if self.query is None and n <= step:
                squared = self.squared
                if squared is None:
                    squared = squared_distances(self.kernels, self.x, self.centre, self.precision)
            else:
                norm = self.norm(self.x) if norm is None else norm
                squared = self.apart(y, norm)
            kernel = torch.exp(-squared / self.h[:, None, None])
            if self.query is None:
                kernel.diagonal(-start, 1, 2).zero_()
            yield Tile(targets, y, squared, kernel)

    def apart(self, y: Tensor, norm: Tensor) -> Tensor:
        centres = self.centre, self.centre
        inner = products(self.kernels, self.x, y, *centres, False, self.precision)
        return (norm[:, :, None] + self.norm(y)[:, None] - 2 * inner).clamp_(min=0)

    def norm(self, values: Tensor) -> Tensor:
        return (values - self.centre[:, None]).square_().sum(-1)


def source_weights(x: Tensor, weights: Tensor | None, leave_one_out: bool) -> Tensor:
    """w_i (B, M) in T; 1/M, or 1/(M - 1) with leave-one-out, where none are given."""
    wide = accumulation_dtype(x.dtype)
    if weights is not None:
        return weights.to(wide)
    return x.new_full(x.shape[:2], 1.0 / max(1, x.shape[1] - leave_one_out), dtype=wide)
