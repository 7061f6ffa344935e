"""Minibatches and random streams as pure functions of (seed, step): resuming needs no state."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK = 2**32 - 1


class BatchSampler:
    """Which images make up minibatch `step`, a pure function of (seed, step).

    Every epoch is a fresh permutation of 0..size-1 cut into batches; the size % batch_size images
    left over are dropped in that epoch, and since the permutation changes every image is left out
    equally often. The permutation of the latest epoch is kept (8 bytes an image).

    Errors: ValueError where batch_size is not in 1..size, or seed or step is negative.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= size:
            raise ValueError(
                f"trainer.batch_size must lie in 1..{size} (the training examples there are), "
                f"got {batch_size}"
            )
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the data."""
        return self.size // self.batch_size

    def indices(self, step: int) -> Tensor:
        """Indices of minibatch `step` = 0, 1, ...: (batch_size,) int64."""
        if step < 0:
            raise ValueError(f"BatchSampler.indices: step must be at least 0, got {step}")
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = step_generator(self.seed, epoch, "permutation")
            self._order = torch.randperm(self.size, generator=generator)
            self._epoch = epoch
        start = position * self.batch_size
        return self._order[start : start + self.batch_size].clone()


def step_generator(seed: int, step: int, stream: str) -> torch.Generator:
    """A CPU generator that depends on (seed, step, stream) alone, for noise and binarisation.

    torch's CPU generator uses the low 32 bits of its seed only, so hashing (seed, step, stream)
    would repeat a seed within about 80,000 steps. Here each (seed, stream) selects a bijection of
    0..2**32-1 (an affine map, then the finaliser of MurmurHash3): one stream never repeats.

    Errors: ValueError for a negative seed and a step outside 0..2**32-1.
    """
    if seed < 0:
        raise ValueError(f"step_generator: seed must be at least 0, got {seed}")
    if not 0 <= step <= _MASK:
        raise ValueError(f"step_generator: step must lie in 0..2**32-1, got {step}")
    key = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    factor = int.from_bytes(key[:4], "little") | 1  # odd: invertible modulo 2**32
    offset = int.from_bytes(key[4:8], "little")
    return torch.Generator().manual_seed(_finalise((factor * step + offset) & _MASK))


def _finalise(value: int) -> int:
    """MurmurHash3's 32-bit finaliser: invertible, every input bit flips half the output bits."""
    value ^= value >> 16
    value = (value * 0x85EBCA6B) & _MASK
    value ^= value >> 13
    value = (value * 0xC2B2AE35) & _MASK
    return value ^ (value >> 16)
