"""A split of images in files: uint8 batches, cropped and flipped, decoded when they are asked for.

Shapes: N images, batches of B, S = the side of a crop, X = 3 S S.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from steinvae.data.dataset import Dataset
from steinvae.data.images.augment import draw_windows
from steinvae.data.images.decode import square
from steinvae.data.images.faults import BadImage
from steinvae.data.images.places import Places

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Mean red, green and blue over ImageNet's training images, in grey levels of 255."""


class Store(Protocol):
    """Squares of pixels by number."""

    @property
    def side(self) -> int:
        """Rows and columns of a square."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """(side, side, 3) uint8, perhaps a view of a file."""
        ...


@dataclass(frozen=True, eq=False)
class FileStore:
    """Squares decoded from files on the disk or in tars."""

    places: Places
    side: int

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> np.ndarray:
        """Errors: ValueError naming the file and what is wrong with it."""
        try:
            return square(self.places.read(index), self.side)
        except BadImage as error:
            raise ValueError(
                f"{self.places.title(index)}: {error}; mend the file, then resume; a new "
                "run may leave such files out (data.bad_records=skip)"
            ) from error


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSplit:
    """Images with their classes; nothing of them is held in memory but where they lie."""

    store: Store
    chosen: Tensor
    """(N,) int64: the number in the store of each image."""

    labels: Tensor
    """(N,) int64: the class of each image."""

    crop: int
    """S, at most the side of the store."""

    random: bool
    """Random crops, half of them mirrored, or the central crop."""

    mean: tuple[float, float, float]
    """Red, green and blue that `batch` subtracts, in grey levels of 255."""

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.store.side:
            raise ValueError(
                f"ImageSplit: crop must lie in 1..{self.store.side}, the side of the images, "
                f"got {self.crop}"
            )
        if self.labels.shape != self.chosen.shape or self.labels.dtype != torch.int64:
            raise ValueError(
                f"ImageSplit: labels must be ({len(self.chosen)},) int64, "
                f"got {tuple(self.labels.shape)} {self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def features(self) -> int:
        """X, numbers in a cropped image."""
        return 3 * self.crop**2

    def pixels(self, indices: Tensor, key: int | None = None) -> Tensor:
        """The crops of the images at `indices`, (B,) int64, in channels-last memory.

        Where `random`, crop and flip are a function of (key, number of the image in the store): the
        same for any order, batch size and number of processes. `key` is not looked at otherwise.

        Shapes: -> (B, 3, S, S) uint8. Errors: TypeError for other index dtypes; ValueError for
        indices out of range, for a missing key and for an image that cannot be decoded.
        """
        rows = self.chosen[self._checked(indices)].numpy()
        slack = self.store.side - self.crop
        top = left = np.full(len(rows), slack // 2)
        flip = np.zeros(len(rows), dtype=np.int64)
        if self.random:
            if key is None:
                raise ValueError("ImageSplit.pixels: random crops need a key, got None")
            top, left, flip = draw_windows(key, rows, slack + 1)
        out = torch.empty((len(rows), self.crop, self.crop, 3), dtype=torch.uint8)
        for i, row in enumerate(rows):
            image = self.store.read(int(row))
            window = image[top[i] : top[i] + self.crop, left[i] : left[i] + self.crop]
            pixels = torch.from_numpy(window)
            out[i] = pixels.flip(1) if flip[i] else pixels  # numpy's [::-1] takes 50 times as long
        return out.permute(0, 3, 1, 2)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The same as `centred` float32 vectors on the CPU, the key drawn from `generator`.

        Shapes: indices (B,) int64 -> (B, X), X running over colours, rows, columns.
        """
        key = None
        if self.random and generator is not None:
            key = int(torch.randint(2**63 - 1, (), generator=generator))
        return self.as_input(self.pixels(indices, key))

    def as_input(self, pixels: Tensor) -> Tensor:
        """Crops (B, 3, S, S) uint8 as (B, X) float32, `centred`, on their device."""
        return centred(pixels, self.mean).flatten(1)

    def _checked(self, indices: Tensor) -> Tensor:
        if indices.dtype != torch.int64 or indices.ndim != 1:
            raise TypeError(
                f"ImageSplit: indices must be (B,) int64, got {tuple(indices.shape)} "
                f"{indices.dtype}"
            )
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            low, high = int(indices.min()), int(indices.max())
            raise ValueError(
                f"ImageSplit: indices must lie in 0..{len(self) - 1}, got {low}..{high}"
            )
        return indices


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageDataset(Dataset[ImageSplit]):
    """Training, validation and test images with their classes."""

    classes: tuple[str, ...]
    """Their names; a label is a position here."""

    skipped: Mapping[str, int] = field(default_factory=dict)
    """Files and labels left out, by reason."""

    def pictures(self, x: Tensor) -> Tensor:
        """What `ImageSplit.batch` centred, as intensities: (n, X) -> (n, X), 0 black, 1 full."""
        mean = x.new_tensor(self.train.mean)[:, None] / 255
        return (x.unflatten(1, (3, -1)) + mean).flatten(1)

    @property
    def title(self) -> str:
        """Name for reports."""
        _, side, _ = self.image_shape or (0, 0, 0)
        return f"{self.name}, {side} x {side}"


def centred(pixels: Tensor, mean: tuple[float, float, float]) -> Tensor:
    """(pixels - mean) / 255, on the device of `pixels`: send uint8 there, a quarter of the bytes.

    Krizhevsky et al. 2012 subtract the mean of every pixel; this is its mean over the image, as is
    usual since, so that it fits crops of any place and size.

    Shapes: (B, 3, S, S) uint8 -> (B, 3, S, S) float32, the memory format kept.
    """
    return (pixels.to(torch.float32) - _mean_on(mean, pixels.device)) / 255


@functools.lru_cache(maxsize=8)
def _mean_on(mean: tuple[float, float, float], device: torch.device) -> Tensor:
    """(3, 1, 1), kept: a minibatch need not wait for a copy of it."""
    return torch.tensor(mean, dtype=torch.float32, device=device).view(3, 1, 1)
