"""Estimates of log p(x) under a trained model; each module says what its own bound.

`importance`: iw_g, the reported number, a lower bound of log p(x) for every encoder.
"""

from __future__ import annotations

from steinvae.density.importance import (
    Estimate,
    evenly_spaced,
    fit_gaussian,
    gaussian_log_density,
    iw_g,
    negative_log_likelihood,
)
from steinvae.density.likelihood import log_mean_exp

__all__ = [
    "Estimate",
    "evenly_spaced",
    "fit_gaussian",
    "gaussian_log_density",
    "iw_g",
    "log_mean_exp",
    "negative_log_likelihood",
]
