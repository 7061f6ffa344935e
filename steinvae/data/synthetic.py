"""Data that a model draws: vectors in memory, as training asks for them.

Shapes: N vectors of X numbers, batches of B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steinvae.data.dataset import Dataset

DRAW_SEED = 2017
"""Seed of the draw, not of a run: runs that are compared see the same points."""


class Source(Protocol):
    """What can draw data."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, X)."""
        ...


@dataclass(frozen=True, eq=False)
class Vectors:
    """A split of real vectors, kept as float32."""

    rows: Tensor
    """(N, X) float32."""

    def __post_init__(self) -> None:
        if self.rows.dtype != torch.float32:
            raise TypeError(f"Vectors: rows must be float32, got {self.rows.dtype}")
        if self.rows.ndim != 2:
            raise ValueError(f"Vectors: rows must be (N, X), got {tuple(self.rows.shape)}")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def features(self) -> int:
        """X, numbers in a vector."""
        return self.rows.shape[1]

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The vectors at `indices` (B,) int64, (B, X) float32; `generator` is not used."""
        return self.rows.index_select(0, indices)


def drawn(
    name: str, source: Source, *, train: int, validation: int, test: int, seed: int = DRAW_SEED
) -> Dataset[Vectors]:
    """`train` + `validation` + `test` independent vectors of `source`.

    The test set is drawn first and the validation set next, so that neither depends on how much is
    trained on. Errors: ValueError for a split without a vector.
    """
    sizes = {"test": test, "validation": validation, "train": train}
    empty = [split for split, size in sizes.items() if size < 1]
    if empty:
        raise ValueError(f"synthetic.drawn: {empty[0]} must be at least 1, got {sizes[empty[0]]}")
    generator = torch.Generator().manual_seed(seed)
    splits = {
        split: Vectors(source.draw(size, generator).to(torch.float32))
        for split, size in sizes.items()
    }
    return Dataset(
        name=name, binarization="none", binarization_seed=None, image_shape=None, **splits
    )
