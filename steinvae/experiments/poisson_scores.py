"""What a trained encoder of Poisson factor analysis is worth: distances to Gibbs draws, as records.

All comparisons are between equal numbers of draws: an encoder's against the first half of the Gibbs
chains, and for the floor the second half of the chains against the first.

Shapes: B documents, n draws, V topics.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.data import step_generator
from steinvae.experiments.known_posterior import Score
from steinvae.gibbs import Prior, Tokens, posterior_draws
from steinvae.models.poisson_factor import PoissonFactor
from steinvae.networks import Networks
from steinvae.two_sample import mmd2

CHAINS = 4
METRICS = ("w1_over_sd", "sd_ratio", "mmd2")


AGAINST = "against the first half of the Gibbs chains"


class Truth(NamedTuple):
    """Gibbs draws of z in two halves that share no chain, each (B, n, V) float64."""

    first: Tensor
    second: Tensor
    rhat: Tensor
    """(B, V)."""


def ground_truth(model: PoissonFactor, counts: Tensor, *, seed: int = 0) -> Truth:
    """Posterior draws as the paper's: 2,000 burn-in, every 10th of 2,500; four chains."""
    prior = Prior(shape=model.shape, rate=model.rate)
    tokens = Tokens.of(counts.numpy())
    draws = posterior_draws(tokens, model.topics.double().numpy(), prior, seed=seed, chains=CHAINS)
    chains = torch.from_numpy(draws.astype(np.float64))  # (C, D, B, V)
    halves = [half.flatten(0, 1).transpose(0, 1) for half in chains.chunk(2)]
    return Truth(halves[0], halves[1], split_rhat(chains))


def split_rhat(chains: Float[Tensor, "C D *B"]) -> Float[Tensor, "*B"]:
    """Split R-hat: each chain in two, then sqrt of pooled over within variance.

    Source: Gelman et al. 2013, Bayesian Data Analysis, section 11.4.
    """
    draws = chains.shape[1] // 2
    parts = torch.cat([chains[:, :draws], chains[:, draws : 2 * draws]])
    within = parts.var(1).mean(0)
    between = parts.mean(1).var(0)
    return (((draws - 1) / draws * within + between) / within).sqrt()


@torch.no_grad()
def encoder_draws(networks: Networks, counts: Tensor, draws: int, seed: int) -> Tensor:
    """z of `draws` codes a document: (B, draws, V) float64."""
    model = networks.model
    if not isinstance(model, PoissonFactor):
        raise TypeError(f"encoder_draws: expected a PoissonFactor, got {type(model).__name__}")
    generator = step_generator(seed, 0, "poisson scores")
    noise = torch.randn(len(counts), draws, networks.encoder.codes, generator=generator)
    return model.scores(networks.encoder(counts, noise).double())


def compare(draws: Float[Tensor, "B n V"], exact: Float[Tensor, "B n V"]) -> list[Score]:
    """All metrics; W1 and the ratio of standard deviations over the topics with mass.

    A topic has mass in a document where its posterior mean is at least one token.
    """
    mass = (exact.mean(1) >= 1).double()
    spread = exact.std(1)
    w1 = (draws.sort(1).values - exact.sort(1).values).abs().mean(1) / spread
    ratio = draws.std(1) / spread
    per_document = {
        "w1_over_sd": (w1 * mass).sum(-1) / mass.sum(-1),
        "sd_ratio": (ratio * mass).sum(-1) / mass.sum(-1),
        "mmd2": mmd2(draws, exact),
    }
    return [_mean(name, value) for name, value in per_document.items()]


def _mean(metric: str, per_document: Tensor) -> Score:
    error = per_document.std() / len(per_document) ** 0.5
    return Score(metric, AGAINST, per_document.mean().item(), error.item())
