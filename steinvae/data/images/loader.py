"""Batches of images prepared by other processes, in an order that needs no state to resume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

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


class Sampler(Protocol):
    """Which images make up a minibatch."""

    def indices(self, step: int) -> Tensor:
        """(B,) int64 of minibatch `step` = 0, 1, ..., a pure function of the step."""
        ...


class Steps(Dataset[ImageBatch]):
    """Minibatch `step` as a pure function of (seed, step).

    The images are those of the sampler; crop and flip of image i are a function of (seed, epoch,
    i), so they do not depend on the batch size either. Under a sampler without epochs, in which an
    image may come often, every step is one.
    """

    def __init__(self, split: ImageSplit, sampler: Sampler, seed: int) -> None:
        self.split, self.sampler, self.seed = split, sampler, seed
        self._period = getattr(sampler, "steps_per_epoch", 1)

    def __getitem__(self, step: int) -> ImageBatch:
        indices = self.sampler.indices(step)
        key = epoch_key(self.seed, step // self._period)
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
        sampler: which images a minibatch has, in place of a `BatchSampler` of `batch_size`.

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
        sampler: Sampler | None = None,
    ) -> None:
        for name, value in (("workers", workers), ("start", start)):
            if value < 0:
                raise ValueError(f"ImageLoader: {name} must be at least 0, got {value}")
        self.sampler = sampler or BatchSampler(len(split), batch_size, seed)
        self.steps = Steps(split, self.sampler, seed)
        self._workers, self._start, self._pin_memory = workers, start, pin_memory

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the images; 1 under a sampler without epochs."""
        return getattr(self.sampler, "steps_per_epoch", 1)

    def __iter__(self) -> Iterator[ImageBatch]:
        return self.from_step(self._start)

    def from_step(self, start: int) -> Results[ImageBatch]:
        """Minibatches `start`, `start` + 1, ..."""
        order = range(start, _LAST)
        return Results(self.steps, order, self._workers, pin_memory=self._pin_memory)
