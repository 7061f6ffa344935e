"""The training runs of Poisson factor analysis: topics known, an encoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from steinvae.config import Config, MethodConfig
from steinvae.data import step_generator
from steinvae.experiments.cells import slug
from steinvae.experiments.known_posterior import encoder_config
from steinvae.experiments.poisson_encoder import AnchoredEncoder, RootCounts
from steinvae.gibbs import Prior
from steinvae.models.poisson_factor import PoissonFactor, Positivity
from steinvae.networks import Networks
from steinvae.recognition import GaussianEncoder, make_encoder

HIDDEN = (100,)
LAYERS = 10  # of the planar flow


@dataclass(frozen=True, eq=False, kw_only=True)
class Known:
    """What the posteriors of an experiment are conditioned on."""

    topics: Tensor
    """theta, (V, P) float64."""

    prior: Prior
    test: Tensor
    """(B, P) counts of the documents whose posteriors are compared."""

    def model(self, positivity: Positivity = "log") -> PoissonFactor:
        """The generative model on one of the maps from codes to scores."""
        return PoissonFactor(self.topics, self.prior.shape, self.prior.rate, positivity)


@dataclass(frozen=True, kw_only=True)
class PoissonCell:
    """One training run."""

    row: str
    method: str = "stein_vae"
    encoder: str = "flow"
    self_term: str = "leave_one_out"
    positivity: Positivity = "log"
    anchor: int = 0
    """EM steps of an `AnchoredEncoder`; 0 for the network alone."""

    kernel: Literal["joint", "sum"] = "joint"
    """`method.kernel`."""

    bandwidth_factor: float = 1.0
    """`method.bandwidth_factor`."""

    particles: int = 20
    """Codes a document and step."""

    steps: int = 2_500
    learning_rate: float = 2e-3
    seed: int = 0

    def folder(self, shape: float) -> str:
        """Name of the run folder, for z ~ Gamma(shape, b)."""
        return f"a-{shape:g}-{slug(self.row)}-{self.seed}"

    def config(self, folder: Path, images: int) -> Config:
        """Adam with a cosine, 64 documents a step; the NLL of `images` test documents."""
        method = MethodConfig(
            name=self.method,  # type: ignore[arg-type]
            self_term=self.self_term,  # type: ignore[arg-type]
            code_particles=self.particles,
            importance_samples=1,
            weights="none",
            theta_particles=1,
            fixed_theta=True,
            kernel=self.kernel,
            bandwidth_factor=self.bandwidth_factor,
        )
        return encoder_config(
            folder,
            seed=self.seed,
            steps=self.steps,
            method=method,
            images=images,
            learning_rate=self.learning_rate,
        )

    def setting(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the numbers, flat; `common` is what the cells of an experiment share."""
        setting = dict(common) | {
            "positivity": self.positivity,
            "encoder": self.encoder,
            "code_particles": self.particles,
            "steps": self.steps,
        }
        if self.method == "stein_vae":
            setting["self_term"] = self.self_term
        if self.anchor:
            setting["anchor"] = self.anchor
        if self.kernel != "joint":
            setting["kernel"] = self.kernel
        if self.bandwidth_factor != 1:
            setting["bandwidth_factor"] = self.bandwidth_factor
        if self.learning_rate != PoissonCell.learning_rate:
            setting["learning_rate"] = self.learning_rate
        return setting


def build(cell: PoissonCell, known: Known) -> Networks:
    """Networks of a cell: one hidden layer of 100, as in section 5.1, on root counts."""
    model = known.model(cell.positivity)
    topics, words = known.topics.shape
    draws = step_generator(cell.seed, 0, "encoder")
    depth = LAYERS if cell.encoder == "planar" else 1
    encoder = make_encoder(cell.encoder, words, HIDDEN, topics, draws, depth)
    if not isinstance(encoder, GaussianEncoder):
        raise TypeError(f"build: {cell.encoder} has no features to take root counts")
    encoder.trunk = nn.Sequential(RootCounts(), encoder.trunk)  # type: ignore[assignment]
    if not cell.anchor:
        return Networks(model, model.ensemble(), encoder)
    with torch.no_grad():  # start at the anchor
        encoder.head.last.weight.zero_()
        encoder.head.last.bias.zero_()
    anchored = AnchoredEncoder(encoder, model, steps=cell.anchor)
    return Networks(model, model.ensemble(), anchored)
