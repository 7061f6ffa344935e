"""What a data set is: three splits of uint8 pixels and the rule that turns pixels into model input.

Shapes: N images of X = H * W pixels, batches of B.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

Binarization = Literal["fixed", "dynamic", "none"]

BadRecords = Literal["raise", "skip"]
"""What happens to a line or a file that is no example: an error names it, or it is counted."""


@runtime_checkable
class Examples(Protocol):
    """What training and evaluation ask of a split, whatever its examples are."""

    @property
    def features(self) -> int:
        """X, numbers in an example."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The examples at `indices` (B,) int64 as (B, X) float32 on the CPU; counts are sparse."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """One split of a data set of images, kept as uint8 so that MNIST's 60,000 images take 47 MB."""

    pixels: Tensor
    """(N, X) uint8, each in 0..levels; bits where levels is 1."""

    levels: int
    """The pixel value that means intensity 1: 255 (MNIST), 16 (digits) or 1 (bits)."""

    labels: Tensor | None = None
    """(N,) int64 class of each image, or None where the source has none."""

    resample: bool = False
    """Whether every batch is a fresh Bernoulli draw with probability = intensity (dynamic
    binarisation of a training split) instead of the stored pixels."""

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8:
            raise TypeError(f"Split: pixels must be uint8, got {self.pixels.dtype}")
        if self.pixels.ndim != 2:
            raise ValueError(f"Split: pixels must be (N, X), got {tuple(self.pixels.shape)}")
        if not 1 <= self.levels <= 255:
            raise ValueError(f"Split: levels must be in 1..255, got {self.levels}")
        most = int(self.pixels.max()) if self.pixels.numel() else 0
        if most > self.levels:
            raise ValueError(f"Split: pixels must be in 0..levels = {self.levels}, got {most}")
        if self.labels is not None:
            _check_labels(self.labels, len(self.pixels))

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def features(self) -> int:
        """X, pixels in an image."""
        return self.pixels.shape[1]

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The images at `indices` as float32 in [0, 1].

        x = pixels / levels, or, where `resample`, x ~ Bernoulli(pixels / levels) drawn from
        `generator` (the generator is left untouched otherwise).

        Shapes: indices (B,) int64 in 0..N-1 -> (B, X) float32, on the CPU.
        Errors: TypeError for other index dtypes; ValueError for indices out of range and for a
        resampling split without a generator.
        """
        rows = self.pixels.index_select(0, self._checked(indices))
        if not self.resample:
            return rows.to(torch.float32).div_(self.levels)
        if generator is None:
            raise ValueError("Split.batch: dynamic binarisation needs a generator, got None")
        return bernoulli(rows, self.levels, generator).to(torch.float32)

    def _checked(self, indices: Tensor) -> Tensor:
        if indices.dtype != torch.int64:
            raise TypeError(f"Split.batch: indices must be int64, got {indices.dtype}")
        if indices.ndim != 1:
            raise ValueError(f"Split.batch: indices must be (B,), got {tuple(indices.shape)}")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            low, high = int(indices.min()), int(indices.max())
            raise ValueError(
                f"Split.batch: indices must lie in 0..{len(self) - 1}, got {low}..{high}"
            )
        return indices


OneSplit = TypeVar("OneSplit", bound=Examples)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(Generic[OneSplit]):
    """Three splits of one source under one binarisation; validation and test never change."""

    name: str
    """The registered name, e.g. "mnist"."""

    binarization: Binarization
    """One of "fixed": stored bits; "dynamic": training batches are fresh draws, evaluation is on
    the bits of "fixed" with the same seed; "none": intensities in [0, 1]."""

    binarization_seed: int | None
    """Seed of the draw behind the stored bits; None where there is no draw of ours."""

    image_shape: tuple[int, ...] | None
    """(H, W) in pixels, (3, H, W) in colour; X is their product. None where the examples are no
    images."""

    train: OneSplit
    validation: OneSplit
    test: OneSplit

    def __post_init__(self) -> None:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        empty = [name for name, each in splits.items() if not len(each)]
        if empty:
            raise ValueError(f"Dataset {self.name}: {', '.join(empty)} must not be empty")
        widths = {name: each.features for name, each in splits.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"Dataset {self.name}: splits must be equally wide, got {widths}")
        if self.image_shape is not None and prod(self.image_shape) != self.train.features:
            raise ValueError(
                f"Dataset {self.name}: image_shape must have as many pixels as an image of the "
                f"splits, {self.train.features}, got {self.image_shape}"
            )

    def pictures(self, x: Tensor) -> Tensor:
        """Model input (n, X) as intensities that can be drawn, 0 to 1."""
        return x

    @property
    def title(self) -> str:
        """Name for reports, with the seed that decides the bits: "mnist, fixed, draw 2017"."""
        draw = "" if self.binarization_seed is None else f", draw {self.binarization_seed}"
        return f"{self.name}, {self.binarization}{draw}"


def bernoulli(pixels: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """Bits with probability pixels / levels, exactly 0 at 0 and 1 at `levels`.

    r uniform in 0..levels-1, bit = r < pixel: uint8 throughout, a quarter of the memory of
    comparing float32 uniforms.

    Shapes: pixels (...) uint8 -> (...) bool.
    """
    draw = torch.randint(levels, pixels.shape, dtype=torch.uint8, generator=generator)
    return draw < pixels


def _check_labels(labels: Tensor, count: int) -> None:
    if labels.dtype != torch.int64:
        raise TypeError(f"Split: labels must be int64, got {labels.dtype}")
    if labels.shape != (count,):
        raise ValueError(f"Split: labels must be ({count},), got {tuple(labels.shape)}")
