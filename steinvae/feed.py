"""Minibatches of a run, made while the one before is trained on where they come from files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from steinvae.config import IN_FILES, Config
from steinvae.data import Dataset, step_generator
from steinvae.device import send
from steinvae.draws import ALL, pick


class DataError(Exception):
    """A minibatch could not be read: a damaged file, or a reading process that has died."""


class Sampler(Protocol):
    """Which examples make up a minibatch, a pure function of the step."""

    def indices(self, step: int) -> Tensor:
        """(B,) int64 of minibatch `step`."""
        ...


class Some:
    """Some rows of every minibatch of a sampler."""

    def __init__(self, sampler: Sampler, rows: Sequence[slice]) -> None:
        self._sampler, self._rows = sampler, rows
        period = getattr(sampler, "steps_per_epoch", None)
        if period is not None:
            self.steps_per_epoch = period

    def indices(self, step: int) -> Tensor:
        """Those of the rows, of minibatch `step`."""
        return pick(self._sampler.indices(step), self._rows)


class Feed:
    """The examples of minibatch `step` = 0, 1, ... on the device, from (seed, step) alone; once
    they are shared out, those of own rows.

    Splits in memory are indexed at once. Images in files are prepared by `data.workers` processes,
    in order; a step that is not the next one, after a resume for example, starts them again there.
    Errors: DataError.
    """

    def __init__(
        self, config: Config, dataset: Dataset, sampler: Sampler, device: torch.device
    ) -> None:
        self._split, self._seed, self._device = dataset.train, config.seed, device
        self._sampler = sampler
        self._config = config
        self._rows: Sequence[slice] = ALL
        self._loader: Any = self._load(sampler) if config.data.name == IN_FILES else None
        self._ahead: Any = None
        self._next = 0

    def share(self, rows: Sequence[slice]) -> None:
        """These rows from now on: no others are read from files, or moved to the device."""
        self._rows = rows
        if self._loader is not None:
            self._loader = self._load(Some(self._sampler, rows))

    def _load(self, sampler: Sampler) -> Any:
        from steinvae.data.images import ImageLoader  # Pillow is not needed otherwise

        return ImageLoader(
            self._split,
            self._config.trainer.batch_size,
            self._seed,
            workers=self._config.data.workers,
            pin_memory=self._device.type == "cuda",
            sampler=sampler,
        )

    def __call__(self, step: int) -> Tensor:
        """(B, X), or own rows of it, float32 on the device."""
        if self._loader is not None:
            prepared = self._prepared(step).to(self._device, non_blocking=True)
            return self._split.as_input(prepared)
        generator = step_generator(self._seed, step, "binarization")
        whole = self._split.batch(self._sampler.indices(step), generator)
        return send(pick(whole, self._rows), self._device)

    def _prepared(self, step: int) -> Tensor:
        """(B, 3, side, side) uint8."""
        if self._ahead is None or step != self._next:
            self.close()
            self._ahead = self._loader.from_step(step)
        self._next = step + 1
        try:
            return next(self._ahead).pixels
        except (ValueError, OSError, RuntimeError) as error:
            raise DataError(f"minibatch {step} could not be read: {error}") from error

    def close(self) -> None:
        """End the processes; a later step starts others."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
