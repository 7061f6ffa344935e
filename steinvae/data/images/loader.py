"""Batches of images prepared by other processes, in an order that needs no state to resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from steinvae.data.images.augment import epoch_key
from steinvae.data.images.processes import Results
from steinvae.data.images.split import ImageSplit
from steinvae.data.sampling import BatchSampler

_LAST = 2**31  # steps


class ImageBatch(NamedTuple):
    """What the loader gives for a step."""

    pixels: Tensor
    """(B, 3, S, S) uint8, channels-last; `centred` makes it model input on the device."""

    labels: Tensor
    """(B,) int64."""

    indices: Tensor
    """(B,) int64: positions in the split."""


class Steps(Dataset[ImageBatch]):
    """Minibatch `step` as a pure function of (seed, step).

    The images are those of `BatchSampler`; crop and flip of image i are a function of (seed, epoch,
    i), so they do not depend on the batch size either.
    """

    def __init__(self, split: ImageSplit, batch_size: int, seed: int) -> None:
        self.split, self.seed = split, seed
        self.sampler = BatchSampler(len(split), batch_size, seed)

    def __getitem__(self, step: int) -> ImageBatch:
        indices = self.sampler.indices(step)
        key = epoch_key(self.seed, step // self.sampler.steps_per_epoch)
        return ImageBatch(self.split.pixels(indices, key), self.split.labels[indices], indices)


class ImageLoader:
    """Iterates over minibatches `start`, `start` + 1, ... of a split, without end.

    The sequence is the same for any number of workers, and a loader that starts at step k gives
    what an uninterrupted one gives from k on, bit for bit. A worker prepares whole batches, two
    ahead.

    Args:
        split: the images.
        batch_size: B; the images left over in an epoch are dropped in that epoch.
        seed: of order, crops and flips.
        workers: processes; 0 prepares batches in this one, when they are asked for.
        start: the first step.
        pin_memory: page-locked batches, for copies to a GPU that do not wait.

    Errors: ValueError for negative workers or start; of `ImageSplit.pixels` and `BatchSampler`.
    """

    def __init__(
        self,
        split: ImageSplit,
        batch_size: int,
        seed: int,
        *,
        workers: int = 0,
        start: int = 0,
        pin_memory: bool = False,
    ) -> None:
        for name, value in (("workers", workers), ("start", start)):
            if value < 0:
                raise ValueError(f"ImageLoader: {name} must be at least 0, got {value}")
        self.steps = Steps(split, batch_size, seed)
        self._workers, self._start, self._pin_memory = workers, start, pin_memory

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the images."""
        return self.steps.sampler.steps_per_epoch

    def __iter__(self) -> Iterator[ImageBatch]:
        order = range(self._start, _LAST)
        return Results(self.steps, order, self._workers, pin_memory=self._pin_memory)
