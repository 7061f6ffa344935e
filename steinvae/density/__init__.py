"""Estimates of log p(x) under a trained model; each module says what its own bound.

`importance`: iw_g, the reported number, a lower bound of log p(x) for every encoder.
`elbo`: ELBO and S-ELBO by the encoder's density, lower bounds where the encoder is injective.
`annealed`: AIS by HMC from the prior, a lower bound that uses no encoder.
`sandwich`: how far AIS can be off, on images of the model whose exact codes are known.
`units`: active units. `suite`: all of them on one run, as findings with their assumptions.
"""

from __future__ import annotations

from steinvae.density.annealed import Annealed, ais, reverse_ais
from steinvae.density.annealing import Annealing
from steinvae.density.elbo import EncoderBounds, encoder_bounds
from steinvae.density.findings import Assumption, Finding
from steinvae.density.importance import (
    Estimate,
    evenly_spaced,
    fit_gaussian,
    gaussian_log_density,
    importance_weights,
    iw_g,
    negative_log_likelihood,
)
from steinvae.density.likelihood import effective_samples, log_mean_exp
from steinvae.density.sandwich import Sandwich, Simulator, bdmc, simulate
from steinvae.density.suite import ESTIMATORS, Suite, measure_all
from steinvae.density.units import active_units, unit_activity

__all__ = [
    "ESTIMATORS",
    "Annealed",
    "Annealing",
    "Assumption",
    "EncoderBounds",
    "Estimate",
    "Finding",
    "Sandwich",
    "Simulator",
    "Suite",
    "active_units",
    "ais",
    "bdmc",
    "effective_samples",
    "encoder_bounds",
    "evenly_spaced",
    "fit_gaussian",
    "gaussian_log_density",
    "importance_weights",
    "iw_g",
    "log_mean_exp",
    "measure_all",
    "negative_log_likelihood",
    "reverse_ais",
    "simulate",
    "unit_activity",
]
