"""The training runs of Figure 1: theta known, an encoder alone, data of section 5.1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steinvae.config import Config, MethodConfig
from steinvae.data import Dataset, step_generator
from steinvae.data.synthetic import Vectors, drawn
from steinvae.experiments.cells import slug
from steinvae.experiments.known_posterior import encoder_config
from steinvae.models.gaussian_mixture import GaussianMixture
from steinvae.networks import Networks
from steinvae.recognition import ConcatEncoder, GaussianEncoder, make_encoder

TRAINING, VALIDATION, TEST = 10_000, 64, 10
HIDDEN = (100, 100)
LAYERS = 10  # of the planar flow
BLOCKS = 6  # of the flow encoder
WIDE = 5.0
"""Codes reach +-5: output scale of concat; the means of other encoders start that much wider."""

HOT = 50.0
"""Initial temperature: half the distance of the modes is 7 standard deviations, squared."""


@dataclass(frozen=True, kw_only=True)
class MixtureCell:
    """One training run."""

    row: str
    method: str = "stein_vae"
    encoder: str = "concat"
    self_term: str = "leave_one_out"
    particles: int = 50
    """Codes a point and step: the paper's M."""

    noise: float = 10.0
    """sigma of p(x | z); the paper prints 0.1."""

    steps: int = 4_000
    seed: int = 0
    temperature: float = HOT
    normalised: bool = True
    """Stein directions over their mean kernel value."""

    mass_rate: float = 0.3
    """Times the direction that moves masses; 0 leaves them as they come."""

    mass_codes: int = 50
    """Codes a point and step that are weighed to move masses."""

    factor: float = 1.0
    """Times the rule's bandwidth, which is as wide as the modes are apart."""

    @property
    def folder(self) -> str:
        """Name of the run folder."""
        return f"sigma-{self.noise:g}-{slug(self.row)}-{self.seed}"

    def config(self, run_dir: Path) -> Config:
        """Adam 2e-3 with a cosine, 64 points a step, half of the steps annealed."""
        stein = self.method == "stein_vae"
        method = MethodConfig(
            name=self.method,  # type: ignore[arg-type]
            normalise_direction=self.normalised and stein,
            mass_rate=self.mass_rate if stein else 0.0,
            mass_codes=self.mass_codes,
            bandwidth_factor=self.factor if stein else 1.0,
            self_term=self.self_term,  # type: ignore[arg-type]
            code_particles=self.particles,
            importance_samples=1,
            theta_particles=1,
            fixed_theta=True,
            temperature=self.temperature,
            annealing_steps=self.steps // 2 if self.temperature > 1 else 0,
        )
        folder = run_dir / self.folder
        return encoder_config(folder, seed=self.seed, steps=self.steps, method=method, images=TEST)

    def setting(self) -> dict[str, Any]:
        """What decides the numbers, flat."""
        setting: dict[str, Any] = {
            "sigma": self.noise,
            "encoder": {"vae": "gaussian", "planar_flow": "planar"}.get(self.method, self.encoder),
            "code_particles": self.particles,
            "steps": self.steps,
            "temperature": self.temperature,
        }
        if self.method == "stein_vae":
            setting["self_term"] = self.self_term
            if self.normalised:
                setting["normalise_direction"] = True
            if self.mass_rate:
                setting |= {"mass_rate": self.mass_rate, "mass_codes": self.mass_codes}
            if self.factor != 1:
                setting["bandwidth_factor"] = self.factor
        if setting["encoder"] == "concat":
            setting["output_scale"] = WIDE
        return setting


def points(model: GaussianMixture) -> Dataset[Vectors]:
    """10,000 points to train on and 10 to test, the same for all runs."""
    return drawn("section 5.1", model, train=TRAINING, validation=VALIDATION, test=TEST)


def build(cell: MixtureCell, model: GaussianMixture) -> Networks:
    """Networks of a cell: 2 hidden layers of 100, the output layer started wide."""
    kind = cell.setting()["encoder"]
    depth = LAYERS if kind == "planar" else BLOCKS
    draws = step_generator(cell.seed, 0, "encoder")
    features, codes = model.theta.shape
    encoder = make_encoder(kind, features, HIDDEN, codes, draws, depth)
    if isinstance(encoder, ConcatEncoder):
        encoder.scale = WIDE
    elif isinstance(encoder, GaussianEncoder):
        widen(encoder, WIDE)
    return Networks(model, model.ensemble(), encoder)


@torch.no_grad()
def widen(encoder: GaussianEncoder, factor: float) -> None:
    """Multiply the initial weights that put the means out; start log sigma at the prior's 0."""
    encoder.head.last.weight[: encoder.codes].mul_(factor)
    encoder.head.last.bias[encoder.codes :].zero_()
