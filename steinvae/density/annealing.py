"""Settings of annealed chains, and what is fixed before they run: schedule, noise, step sizes.

Shapes: B images, C chains an image, d code dimensions, T temperatures, T - 1 inner ones.
Source: Wu, Burda, Salakhutdinov & Grosse 2017, section 3 (the schedule, acceptance 0.65).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.data import step_generator
from steinvae.density.hmc import Draws, LogLikelihood, start, transition
from steinvae.density.likelihood import Treatment
from steinvae.networks import Networks

_FIRST_STEP, _GAIN = 0.3, 0.1
"""Step size at the first temperature, and how fast log step follows the acceptance: it settles in
about 15 temperatures, and wavers by 8 % around its aim."""


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """Settings of the annealed chains."""

    temperatures: int = 500
    """T; the work is T * leapfrogs * (chains + pilot_chains) gradients an image."""

    chains: int = 16
    """C chains an image whose weights are averaged."""

    pilot_chains: int = 4
    """Further chains an image that find the step sizes."""

    leapfrogs: int = 5
    """Leapfrog steps of a transition."""

    acceptance: float = 0.65
    """Acceptance probability the pilot aims at."""

    theta: Treatment = "mixture"
    """How several decoders count."""

    def __post_init__(self) -> None:
        for name in ("temperatures", "chains", "pilot_chains", "leapfrogs"):
            if getattr(self, name) < 1:
                raise ValueError(f"Annealing: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.acceptance < 1:
            raise ValueError(f"Annealing: acceptance must lie in (0, 1), got {self.acceptance}")
        if self.theta not in ("mixture", "average"):
            raise ValueError(f"Annealing: theta must be mixture or average, got {self.theta!r}")


def sigmoid_schedule(temperatures: int, steepness: float = 4.0) -> Float[Tensor, " T1"]:
    """b_t = (s(r_t) - s(r_0)) / (s(r_T) - s(r_0)), s the logistic function, r_t even in +-4.

    Dense at both ends (`steepness` is the 4); (T + 1,) float64 from 0 to 1.
    Source: Wu et al. 2017, section 3.
    """
    ramp = torch.linspace(-steepness, steepness, temperatures + 1, dtype=torch.float64).sigmoid()
    return (ramp - ramp[0]) / (ramp[-1] - ramp[0])


class ImageStreams:
    """Random draws by image: image b's depend on (seed, b, stream) alone, not on its company."""

    def __init__(
        self, seed: int, images: range, chains: int, networks: Networks, stream: str
    ) -> None:
        self._generators = [step_generator(seed, image, stream) for image in images]
        self._shape = (chains, networks.encoder.codes)
        self._like = networks.theta.flat

    def draw(self) -> Draws:
        """The draws of the next transition."""
        chains, dimension = self._shape
        momentum = [torch.randn(chains, dimension, generator=each) for each in self._generators]
        uniform = [torch.rand(chains, 2, generator=each) for each in self._generators]
        return Draws(torch.stack(momentum).to(self._like), torch.stack(uniform).to(self._like))


def find_steps(
    evaluate: LogLikelihood,
    networks: Networks,
    images: range,
    settings: Annealing,
    *,
    seed: int,
) -> Float[Tensor, "inner B"]:
    """Step sizes for b_1 .. b_{T-1} and every image, adapted along a pilot run of forward chains.

    Every pilot chain moves its own log step by 0.1 (acceptance probability - aim) at each
    temperature; the geometric mean over an image's chains is handed on.
    """
    noise = ImageStreams(seed, images, settings.pilot_chains, networks, "ais_pilot")
    chains = start(evaluate, noise.draw().momentum)
    log_step = torch.full_like(chains.codes[..., 0], log(_FIRST_STEP))
    found = []
    for inverse_temperature in sigmoid_schedule(settings.temperatures)[1:-1].tolist():
        chains, acceptance = transition(
            evaluate,
            chains,
            noise.draw(),
            inverse_temperature,
            log_step.exp(),
            leapfrogs=settings.leapfrogs,
        )
        log_step = log_step + _GAIN * (acceptance - settings.acceptance).to(log_step)
        found.append(log_step.mean(1).exp())
    return torch.stack(found) if found else log_step.new_empty(0, len(images))
