"""What tells one training split from another when a run is continued."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from steinvae.data.dataset import Examples

DIGITS = 16
"""Hexadecimal digits of a SHA-256 that are kept."""


def identity(split: Examples) -> dict[str, Any]:
    """Numbers and digests of what decides a split, as JSON has them.

    Of images in files: how many, their classes, order and mean, and not their pixels, which differ
    by a grey level from one decoder to another. A tree has the identity of its pack.
    """
    own: dict[str, Any] = {"examples": len(split), "features": split.features}
    mean = getattr(split, "mean", None)
    if mean is not None:
        own["mean"] = list(mean)
    for name in ("pixels", "labels", "chosen", "lengths"):
        value = getattr(split, name, None)
        array = value.numpy() if isinstance(value, Tensor) else value
        if isinstance(array, np.ndarray):
            digest = hashlib.sha256(np.ascontiguousarray(array).data)
            own[name] = digest.hexdigest()[:DIGITS]
    return own


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What has another value, for a message; nothing where all is the same."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} is {now.get(name)}, was {before.get(name)}" for name in names)
