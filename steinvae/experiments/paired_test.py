"""A paired test that assumes no distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST = 20
"""Pairs of an exact test: 2^20 signs, 8 MB."""


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the mean difference of pairs under random signs (Fisher's permutation test).

    Exact: all 2^n assignments of signs, so that p is at least 2 / 2^n: below six pairs nothing is
    significant at 0.05. Sums that rounding alone keeps apart count as equal.

    Errors: ValueError without a difference, and for more than 20.
    """
    if not 1 <= len(differences) <= MOST:
        raise ValueError(f"sign_flip_p: expected 1 to {MOST} differences, got {len(differences)}")
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate([sums + value, sums - value])
    observed = abs(float(np.sum(differences)))
    slack = 1e-12 * float(np.abs(differences).sum())
    return float((np.abs(sums) >= observed - slack).mean())
