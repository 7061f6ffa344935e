"""Bidirectional Monte Carlo: how far annealed importance sampling can be off, on simulated data.

Images drawn from the model come with an exact posterior code, the one they were drawn from. Forward
chains bound their log p(x) from below, reverse chains from that code bound it from above; the gap
bounds the error of both in expectation. Of test images it says so only as far as the model's
own images resemble them: no exact posterior code is known there.

Shapes: B images of X pixels, d code dimensions. Units: nats.
Source: Grosse, Ghahramani & Adams 2015; Wu, Burda, Salakhutdinov & Grosse 2017, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.data import step_generator
from steinvae.density.annealed import ais, reverse_ais
from steinvae.density.annealing import Annealing
from steinvae.networks import Networks


@runtime_checkable
class Simulator(Protocol):
    """A likelihood that can be drawn from."""

    def draw_images(
        self, theta: dict[str, Tensor], codes: Tensor, generator: torch.Generator
    ) -> Tensor:
        """x_i ~ p(x | z_i, theta) of the one decoder in theta: codes (n, d) -> (n, X)."""
        ...


@dataclass(frozen=True)
class Sandwich:
    """log p(x) of simulated images between a lower and an upper bound."""

    lower: Tensor = field(repr=False)
    """Forward chains, (B,): E lower <= log p(x)."""

    upper: Tensor = field(repr=False)
    """Reverse chains, (B,): E upper >= log p(x)."""

    acceptance: float
    """Mean acceptance probability of both directions."""

    @property
    def gap(self) -> float:
        """Mean of upper - lower over images; at least 0 in expectation."""
        return (self.upper - self.lower).mean().item()

    @property
    def standard_error(self) -> float:
        """Of `gap`, over images; NaN for a single image."""
        images = len(self.lower)
        return (self.upper - self.lower).std().item() / images**0.5 if images > 1 else float("nan")

    @property
    def consistent(self) -> bool:
        """Whether the bounds are in order: the gap is not below 0 by 3 standard errors and 1e-3.

        A gap below 0 convicts the sampler; one above 0 does not acquit it, since an error may move
        both bounds together (`docs/evaluation.md`). The 1e-3 nats are float32.
        """
        return not self.gap < -3 * self.standard_error - 1e-3


@torch.no_grad()
def simulate(
    networks: Networks, images: int, *, seed: int
) -> tuple[Float[Tensor, "B X"], Float[Tensor, "B d"]]:
    """Images of the model and the codes behind them: z ~ N(0, I), m uniform, x ~ p(x | z, theta_m).

    z_b is then an exact draw of p(z | x_b) under the mixture of the decoders. Image b depends on
    (seed, b) alone.

    Errors: TypeError where the model cannot be drawn from; ValueError for fewer than one image.
    """
    if images < 1:
        raise ValueError(f"simulate: images must be at least 1, got {images}")
    model, theta = networks.model, networks.theta
    if not isinstance(model, Simulator):
        raise TypeError(f"simulate: {type(model).__name__} has no draw_images, so no exact codes")
    leaves = theta.leaves()
    pixels, codes = [], []
    for image in range(images):
        generator = step_generator(seed, image, "simulated")
        code = torch.randn(1, networks.encoder.codes, generator=generator).to(theta.flat)
        decoder = int(torch.randint(theta.particles, (), generator=generator))
        one = {name: leaf[decoder : decoder + 1] for name, leaf in leaves.items()}
        pixels.append(model.draw_images(one, code, generator))
        codes.append(code)
    return torch.cat(pixels), torch.cat(codes)


def bdmc(networks: Networks, images: int, settings: Annealing, *, seed: int) -> Sandwich:
    """Simulate `images`, and bound log p(x) of each from below and above by the same settings.

    Errors: ValueError for the average treatment of several decoders: exp(mean_m log p(x | z, m)) is
    no normalised density of x, so nothing can be drawn from it with an exact code.
    """
    if settings.theta == "average" and networks.theta.particles > 1:
        raise ValueError("bdmc: exact codes exist for theta mixture only, or for one decoder")
    pixels, codes = simulate(networks, images, seed=seed)
    forward = ais(networks, pixels, settings, seed=seed)
    backward = reverse_ais(networks, pixels, codes, settings, seed=seed)
    acceptance = (forward.acceptance.mean() + backward.acceptance.mean()).item() / 2
    return Sandwich(forward.lower, backward.upper, acceptance)
