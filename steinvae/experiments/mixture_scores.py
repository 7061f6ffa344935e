"""What a trained encoder of Figure 1 is worth: distances to the exact posterior, as records."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steinvae.data import step_generator
from steinvae.experiments.known_posterior import Score
from steinvae.models.gaussian_mixture import GaussianMixture, MixturePosterior
from steinvae.monitor import folded_fraction
from steinvae.networks import Networks
from steinvae.recognition import standard_normal
from steinvae.two_sample import (
    FAR,
    kernel_proposal,
    mass_error,
    mmd2,
    resample,
    sliced_w2,
    strays,
    whitened_sd,
)

DRAWS, POOL = 1_000, 10_000
COST, TRAINING = "cpu_seconds", "training"
METRICS = ("mmd2", "sliced_w2", "mass_error", "strays", "core_sd", "whitened_sd")
PLAIN, JACOBIAN, KERNEL = (
    f"{DRAWS} draws",
    f"{DRAWS} of {POOL} draws, resampled by the Jacobian density",
    f"{DRAWS} of {POOL} draws around codes, resampled by the kernel density",
)


def floor(model: GaussianMixture, points: Tensor, seed: int) -> list[Score]:
    """Two independent exact sets against each other: what exact draws score.

    An estimate with noise of its own: resampled draws have scored below it.
    """
    posterior = model.posterior(points)
    draws = posterior.draw(DRAWS, step_generator(seed, 1, "exact"))
    return _compare(posterior, draws, _exact(posterior), PLAIN)


@torch.no_grad()
def score(networks: Networks, points: Tensor, seed: int) -> list[Score]:
    """All metrics of an encoder's draws, as they come and after importance resampling.

    The Jacobian density is one for injective encoders only; for others the record `folded` (share
    of samples with the rarer sign of det df/dxi) says that it is not.
    """
    model = networks.model
    if not isinstance(model, GaussianMixture):
        raise TypeError(f"score: networks.model must be a GaussianMixture, got {type(model)}")
    posterior, encoder = model.posterior(points), networks.encoder
    exact = _exact(posterior)
    generator = step_generator(seed, 0, "figure1")
    noise = torch.randn(len(points), POOL, encoder.codes, generator=generator)
    pool = encoder(points, noise).double()
    scores = _compare(posterior, pool[:, :DRAWS], exact, PLAIN)
    parts = noise.split(1_000, dim=1)
    jacobians = torch.cat([encoder.jacobian(points, part) for part in parts], 1).double()
    log_q = standard_normal(noise.double()) - torch.linalg.slogdet(jacobians).logabsdet
    log_weights = posterior.log_density(pool) - log_q
    scores += _resampled(posterior, pool, log_weights, exact, JACOBIAN, generator)
    around, log_kernel = kernel_proposal(pool[:, :DRAWS], POOL, generator)
    log_weights = posterior.log_density(around) - log_kernel
    scores += _resampled(posterior, around, log_weights, exact, KERNEL, generator)
    folded = folded_fraction(encoder, points, noise[:, :DRAWS]).item()
    return [*scores, Score("folded", PLAIN, folded, 0.0)]


def _exact(posterior: MixturePosterior) -> Tensor:
    return posterior.draw(DRAWS, step_generator(0, 0, "exact"))


def _resampled(
    posterior: MixturePosterior,
    draws: Tensor,
    log_weights: Tensor,
    exact: Tensor,
    estimator: str,
    generator: torch.Generator,
) -> list[Score]:
    chosen, effective = resample(draws, log_weights, DRAWS, generator)
    scores = _compare(posterior, chosen, exact, estimator)
    return [*scores, _mean("effective_share", estimator, effective)]


def _compare(
    posterior: MixturePosterior, draws: Tensor, exact: Tensor, estimator: str
) -> list[Score]:
    values: dict[str, Any] = {
        "mmd2": mmd2(draws, exact),
        "sliced_w2": sliced_w2(draws, exact),
        "mass_error": mass_error(posterior, draws),
        "strays": strays(posterior, draws),
        "core_sd": whitened_sd(posterior, draws, reach=FAR),
        "whitened_sd": whitened_sd(posterior, draws),
    }
    return [_mean(name, estimator, value) for name, value in values.items()]


def _mean(metric: str, estimator: str, per_point: Tensor) -> Score:
    error = per_point.std() / len(per_point) ** 0.5
    return Score(metric, estimator, per_point.mean().item(), error.item())
