"""Random crops and flips as a pure function of (key, image): no state, whatever the order.

The generator is SplitMix64 (Steele, Lea, Flood 2014) used as a counter: its output for a counter
is two multiplications and three shifts, the same on every machine and version.
"""

from __future__ import annotations

import hashlib

import numpy as np

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_STREAMS = np.arange(1, 4, dtype=np.uint64) * _WEYL
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def epoch_key(seed: int, epoch: int) -> int:
    """The key of an epoch's crops and flips, in 0..2**63-1."""
    digest = hashlib.sha256(f"{seed}/{epoch}/crops and flips".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def draw_windows(key: int, images: np.ndarray, places: int) -> tuple[np.ndarray, ...]:
    """Top, left and flip of each image: two of `places` positions, and 0 or 1.

    (top, left, flip) is a function of (key, image) alone and uniform (to 2**-32 of a part in
    `places`) and independent over images, keys and the three.

    Shapes: images (B,) int64 -> three of (B,) int64. Errors: ValueError for a key not in
    0..2**63-1.
    """
    if not 0 <= key < 2**63:
        raise ValueError(f"draw_windows: key must lie in 0..2**63-1, got {key}")
    start = _mix(np.array([key], dtype=np.uint64) * _WEYL)  # arrays: a scalar would warn
    image = _mix(start + (images.astype(np.uint64) + np.uint64(1)) * _WEYL)
    draws = [_mix(image + shift) >> np.uint64(32) for shift in _STREAMS]
    limits = (places, places, 2)
    return tuple(
        ((draw * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)
        for draw, limit in zip(draws, limits, strict=True)
    )


def _mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of 64 bits."""
    value = (value ^ (value >> np.uint64(30))) * _FACTORS[0]
    value = (value ^ (value >> np.uint64(27))) * _FACTORS[1]
    return value ^ (value >> np.uint64(31))
