"""What tells one training split from another when a run is continued."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from torch import Tensor

from steinvae.data.dataset import Dataset, Examples
from steinvae.data.documents import Documents

DIGITS = 16
"""Hexadecimal digits of a SHA-256 that are kept."""


SHARED = ("classes", "vocabulary")
"""Names that give labels and words their meaning: with others a trained model says other things."""

_FIRST = ("examples", "features", "mean", "pixels", "labels", "chosen", "lengths")
"""What checkpoints had before there was more; anything else is compared where both have it."""


def identity(split: Examples, dataset: Dataset[Any] | None = None) -> dict[str, Any]:
    """Numbers and digests of what decides a split, as JSON has them.

    Of images in files: how many, their classes, order and mean, and not their pixels, which differ
    by a grey level from one decoder to another. A tree has the identity of its pack. With the
    `dataset` of a training split: the names of classes and words, and the other splits, too.
    """
    own: dict[str, Any] = {"examples": len(split), "features": split.features}
    mean = getattr(split, "mean", None)
    if mean is not None:
        own["mean"] = list(mean)
    for name in ("pixels", "labels", "chosen", "lengths"):
        value = getattr(split, name, None)
        array = value.numpy() if isinstance(value, Tensor) else value
        if isinstance(array, np.ndarray):
            own[name] = _digest(array)
    if isinstance(split, Documents):
        own["words"], own["counts"] = _digest(split.bags.words), _digest(split.bags.counts)
    return own if dataset is None else own | _beside(dataset)


def _beside(dataset: Dataset[Any]) -> dict[str, Any]:
    """What is not of the training split alone."""
    own: dict[str, Any] = {}
    for name in SHARED:
        names = getattr(dataset, name, None)
        if names is not None:
            text = json.dumps(list(names))
            own[name] = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
    for part in ("validation", "test"):
        of_part = identity(getattr(dataset, part))
        own |= {f"{part}.{name}": value for name, value in of_part.items()}
    return own


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What has another value, for a message; nothing where all is the same."""
    names = [
        name
        for name in {**before, **now}
        if before.get(name) != now.get(name)
        and (name in _FIRST or (name in before and name in now))
    ]
    return ", ".join(f"{name} is {now.get(name)}, was {before.get(name)}" for name in names)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()[:DIGITS]
