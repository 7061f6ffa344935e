"""The training runs of Poisson factor analysis: topics known, an encoder alone, simulated text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steinvae.config import Config, MethodConfig
from steinvae.data import Dataset, step_generator
from steinvae.data.synthetic import Vectors, drawn
from steinvae.experiments.cells import slug
from steinvae.experiments.known_posterior import encoder_config
from steinvae.models.poisson_factor import PoissonFactor, Positivity
from steinvae.networks import Networks
from steinvae.recognition import GaussianEncoder, make_encoder

TOPICS, WORDS = 20, 200
LENGTH = 100
"""Expected tokens of a document."""

CONCENTRATION = 0.05
TRAINING, VALIDATION, TEST = 4_000, 64, 50
HIDDEN = (100,)
LAYERS = 10  # of the planar flow


@dataclass(frozen=True, kw_only=True)
class PoissonCell:
    """One training run."""

    row: str
    method: str = "stein_vae"
    encoder: str = "flow"
    self_term: str = "leave_one_out"
    positivity: Positivity = "log"
    shape: float = 1.0
    """a of z ~ Gamma(a, b)."""

    particles: int = 20
    """Codes a document and step."""

    steps: int = 2_500
    seed: int = 0

    @property
    def folder(self) -> str:
        """Name of the run folder."""
        return f"a-{self.shape:g}-{slug(self.row)}-{self.seed}"

    def config(self, run_dir: Path) -> Config:
        """Adam 2e-3 with a cosine, 64 documents a step."""
        method = MethodConfig(
            name=self.method,  # type: ignore[arg-type]
            self_term=self.self_term,  # type: ignore[arg-type]
            code_particles=self.particles,
            importance_samples=1,
            weights="none",
            theta_particles=1,
            fixed_theta=True,
        )
        folder = run_dir / self.folder
        return encoder_config(folder, seed=self.seed, steps=self.steps, method=method, images=TEST)

    def setting(self) -> dict[str, Any]:
        """What decides the numbers, flat."""
        setting: dict[str, Any] = {
            "topics": TOPICS,
            "words": WORDS,
            "shape": self.shape,
            "positivity": self.positivity,
            "encoder": self.encoder,
            "code_particles": self.particles,
            "steps": self.steps,
        }
        if self.method == "stein_vae":
            setting["self_term"] = self.self_term
        return setting


def simulated(shape: float, positivity: Positivity = "log") -> PoissonFactor:
    """Topics ~ Dir(0.05) in float64, the same for all runs; b = V a / expected length."""
    gammas = np.random.default_rng(0).standard_gamma(CONCENTRATION, (TOPICS, WORDS))
    rows = torch.from_numpy(gammas / gammas.sum(-1, keepdims=True))
    return PoissonFactor(rows, shape, TOPICS * shape / LENGTH, positivity)


def documents(shape: float) -> Dataset[Vectors]:
    """4,000 documents to train on and 50 to test, the same for all runs."""
    source = simulated(shape)
    sizes = {"train": TRAINING, "validation": VALIDATION, "test": TEST}
    return drawn("simulated documents", source, **sizes)


def build(cell: PoissonCell) -> Networks:
    """Networks of a cell: one hidden layer of 100, as in section 5.1, on root counts."""
    model = simulated(cell.shape, cell.positivity)
    draws = step_generator(cell.seed, 0, "encoder")
    encoder = make_encoder(
        cell.encoder, WORDS, HIDDEN, TOPICS, draws, LAYERS if cell.encoder == "planar" else 1
    )
    if not isinstance(encoder, GaussianEncoder):
        raise TypeError(f"build: {cell.encoder} has no features to take root counts")
    encoder.trunk = nn.Sequential(RootCounts(), encoder.trunk)  # type: ignore[assignment]
    return Networks(model, model.ensemble(), encoder)


class RootCounts(nn.Module):
    """2 sqrt(x): the transform that makes the variance of a Poisson count about 1."""

    def forward(self, counts: Tensor) -> Tensor:
        """(..., P) -> (..., P)."""
        return 2 * counts.sqrt()
