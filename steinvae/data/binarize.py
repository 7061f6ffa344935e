"""From grey levels to the three splits of a data set under a binarisation rule."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from steinvae.data.dataset import Binarization, Dataset, Split

BINARIZATION_SEED = 2017
"""Default seed of the fixed draw. It belongs to the data set, not to a run: runs with different
training seeds must be tested on the same bits to be comparable."""

SPLITS = ("train", "validation", "test")
_CHUNK = 4096  # rows drawn at once: 3 MB of uint8 for MNIST, so the draw needs no second copy


def build(
    name: str,
    image_shape: tuple[int, int],
    levels: int,
    sources: Mapping[str, tuple[Tensor, Tensor | None]],
    *,
    binarization: Binarization,
    seed: int,
) -> Dataset:
    """A `Dataset` from grey levels, `sources[split] = (pixels (N, X) uint8, labels (N,) or None)`.

    "fixed": every pixel is one Bernoulli draw with probability pixel / levels. "dynamic": training
    keeps its grey levels and draws anew in every batch; validation and test are the bits that
    "fixed" gives for the same seed, so both are evaluated on the same images. "none": grey levels.
    """
    splits: dict[str, Split] = {}
    for index, split in enumerate(SPLITS):
        pixels, labels = sources[split]
        resample = binarization == "dynamic" and split == "train"
        if binarization == "none" or resample:
            splits[split] = Split(pixels=pixels, levels=levels, labels=labels, resample=resample)
        else:
            bits = fixed_bits(pixels, levels, seed, index)
            splits[split] = Split(pixels=bits, levels=1, labels=labels)
    return Dataset(
        name=name,
        binarization=binarization,
        binarization_seed=None if binarization == "none" else seed,
        image_shape=image_shape,
        **splits,
    )


def fixed_bits(pixels: Tensor, levels: int, seed: int, split: int) -> Tensor:
    """One Bernoulli(pixels / levels) draw that is the same on every machine and version.

    NumPy freezes the streams of `RandomState` (NEP 19), torch does not freeze its own; the stream
    is seeded by (seed, split) with split 0, 1, 2 for train, validation, test.

    Shapes: pixels (N, X) uint8 -> (N, X) uint8 of 0 and 1.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"data: the binarisation seed must lie in 0..2**32-1, got {seed}")
    stream = np.random.RandomState([seed, split])
    bits = torch.empty_like(pixels)
    for start in range(0, len(pixels), _CHUNK):
        rows = pixels[start : start + _CHUNK]
        draw = torch.from_numpy(stream.randint(0, levels, size=tuple(rows.shape), dtype=np.uint8))
        torch.lt(draw, rows, out=bits[start : start + _CHUNK])
    return bits
