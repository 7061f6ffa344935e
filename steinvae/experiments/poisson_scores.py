"""What a trained encoder of Poisson factor analysis is worth: distances to Gibbs draws, as records.

All comparisons are between equal numbers of draws: an encoder's against the first half of the Gibbs
chains, and for the floor the second half of the chains against the first.

Shapes: B documents, n draws, V topics.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steinvae.data import step_generator
from steinvae.experiments.known_posterior import Score
from steinvae.experiments.poisson_cells import Known
from steinvae.gibbs import Tokens, posterior_draws
from steinvae.models.poisson_factor import PoissonFactor
from steinvae.networks import Networks
from steinvae.two_sample import mmd2

CHAINS = 4
METRICS = ("w1_over_sd", "sd_ratio", "mmd2")


AGAINST = "against the first half of the Gibbs chains"
RHAT = "largest rank-normalised split R-hat of the topics with mass"
ESS = "smallest bulk effective sample size of the topics with mass"


class Truth(NamedTuple):
    """Gibbs draws of z."""

    chains: Float[Tensor, "C D B V"]
    """D draws of each of C chains, float64."""

    @property
    def first(self) -> Float[Tensor, "B n V"]:
        """Half of the chains: what encoders are compared with."""
        return self._half(0)

    @property
    def second(self) -> Float[Tensor, "B n V"]:
        """The other half, which shares no chain with the first: the floor."""
        return self._half(1)

    def _half(self, which: int) -> Tensor:
        return self.chains.chunk(2)[which].flatten(0, 1).transpose(0, 1)


def ground_truth(known: Known, *, seed: int = 0) -> Truth:
    """Posterior draws as the paper's: 2,000 burn-in, every 10th of 2,500; four chains."""
    tokens, topics = Tokens.of(known.test.numpy()), known.topics.numpy()
    draws = posterior_draws(tokens, topics, known.prior, seed=seed, chains=CHAINS)
    return Truth(torch.from_numpy(draws.astype(np.float64)))


def diagnose(truth: Truth) -> list[Score]:
    """R-hat and effective sample size of the Gibbs chains (Vehtari et al. 2021), by ArviZ.

    Errors: ImportError naming the extra.
    """
    stats = chain_statistics()
    held = truth.chains[:, :, has_mass(truth.first)].numpy()  # (C, D, pairs with mass)
    axes = {"chain_axis": 0, "draw_axis": 1}
    rhat, ess = stats.rhat(held, **axes), stats.ess(held, **axes)
    return [
        Score("rhat", RHAT, float(np.max(rhat)), None),
        Score("ess", ESS, float(np.min(ess)), None),
    ]


def chain_statistics() -> Any:
    """The module of arviz-stats that takes arrays; nothing else needs it."""
    try:
        return importlib.import_module("arviz_stats.base").array_stats
    except ImportError as error:
        raise ImportError(
            "R-hat and effective sample sizes of Gibbs chains come from arviz-stats, which is not "
            'installed (it needs Python 3.11): pip install "stein-kernels[mcmc]"'
        ) from error


@torch.no_grad()
def encoder_draws(networks: Networks, counts: Tensor, draws: int, seed: int) -> Tensor:
    """z of `draws` codes a document: (B, draws, V) float64."""
    model = networks.model
    if not isinstance(model, PoissonFactor):
        raise TypeError(f"encoder_draws: expected a PoissonFactor, got {type(model).__name__}")
    generator = step_generator(seed, 0, "poisson scores")
    noise = torch.randn(len(counts), draws, networks.encoder.codes, generator=generator)
    return model.scores(networks.encoder(counts, noise).double())


def has_mass(exact: Float[Tensor, "B n V"]) -> Bool[Tensor, "B V"]:
    """Whether a topic holds at least one token of a document in the posterior mean."""
    return exact.mean(1) >= 1


def compare(draws: Float[Tensor, "B n V"], exact: Float[Tensor, "B n V"]) -> list[Score]:
    """All metrics; W1 and the ratio of standard deviations over the topics with mass.

    Means over documents of a document's mean over topics. A document in which no topic has mass,
    one of a few words, has no say in those two.
    """
    mass = has_mass(exact)
    held = mass.any(-1)
    spread = exact.std(1)
    w1 = (draws.sort(1).values - exact.sort(1).values).abs().mean(1) / spread
    ratio = draws.std(1) / spread
    weights = mass[held] / mass[held].sum(-1, keepdim=True)
    per_document = {
        "w1_over_sd": (w1[held] * weights).sum(-1),
        "sd_ratio": (ratio[held] * weights).sum(-1),
        "mmd2": mmd2(draws, exact),
    }
    return [_mean(name, value) for name, value in per_document.items()]


def _mean(metric: str, per_document: Tensor) -> Score:
    error = per_document.std() / len(per_document) ** 0.5
    value = per_document.mean().item()
    return Score(metric, AGAINST, value, error.item(), len(per_document))
