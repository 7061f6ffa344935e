"""Annealed importance sampling with HMC: bounds of log p(x) that do not use the encoder at all.

From the prior to the posterior through f_t(z) = N(z; 0, I) p(x | z)^(b_t), 0 = b_0 < ... < b_T = 1:

    log w = sum_t (b_t - b_{t-1}) log p(x | z_{t-1}),   z_t by HMC that leaves f_t invariant.

Forward, z_0 from the prior: E w = p(x), so E log (1/C) sum_c w_c <= log p(x), a lower bound.
Reverse, from an exact posterior code down: E 1/w = 1/p(x), so -E log (1/C) sum_c 1/w_c >= log p(x).

Both need kernels that are fixed before the chains run. Step sizes that follow a chain's own past
would break E w = p(x), so they are adapted in a pilot of other chains, then frozen.

Shapes: B images, C chains an image, d code dimensions, T temperatures. Units: nats.
Source: Neal 2001 (AIS); Wu, Burda, Salakhutdinov & Grosse 2017 (HMC, the schedule, 0.65);
Grosse, Ghahramani & Adams 2015 (the reverse chain).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.density.annealing import Annealing, ImageStreams, find_steps, sigmoid_schedule
from steinvae.density.hmc import Chains, LogLikelihood, posterior_likelihood, start, transition
from steinvae.density.likelihood import effective_samples, log_mean_exp
from steinvae.device import at_once
from steinvae.networks import Networks
from steinvae.sparse_rows import some_rows

CHAIN_LOGITS = 2**20
"""Logits of the chains that move together: 4 MB in float32."""


class Annealed(NamedTuple):
    """What annealed chains found, an image each row."""

    log_weights: Tensor
    """log w (B, C) float64."""

    acceptance: Tensor
    """Mean acceptance probability of an image's transitions, (B,)."""

    @property
    def lower(self) -> Tensor:
        """log mean w: the bound of forward chains, (B,)."""
        return log_mean_exp(self.log_weights, -1)

    @property
    def upper(self) -> Tensor:
        """-log mean 1/w: the bound of reverse chains, (B,)."""
        return -log_mean_exp(-self.log_weights, -1)

    @property
    def effective(self) -> Tensor:
        """Effective number of the C chains of forward weights, (B,)."""
        return effective_samples(self.log_weights)


@torch.no_grad()
def ais(
    networks: Networks, pixels: Float[Tensor, "B X"], settings: Annealing, *, seed: int
) -> Annealed:
    """Forward chains from the prior: `lower` is a lower bound of log p(x) in expectation.

    Holds for every encoder, none is used. The randomness of image b depends on (seed, b) alone.
    """
    parts = []
    for images in _chunks(networks, pixels, settings):
        here = some_rows(pixels, slice(images.start, images.stop))
        evaluate = posterior_likelihood(networks, here, settings.theta)
        steps = find_steps(evaluate, networks, images, settings, seed=seed)
        noise = ImageStreams(seed, images, settings.chains, networks, "ais")
        chains = start(evaluate, noise.draw().momentum)
        parts.append(_run(evaluate, chains, noise, steps, settings, reverse=False))
    return _join(parts)


@torch.no_grad()
def reverse_ais(
    networks: Networks,
    pixels: Float[Tensor, "B X"],
    codes: Float[Tensor, "B d"],
    settings: Annealing,
    *,
    seed: int,
) -> Annealed:
    """Chains from exact posterior codes to the prior: `upper` bounds log p(x) in expectation.

    Only where z_b is a draw of p(z | x_b), that is, where (x_b, z_b) were simulated together. All
    chains of an image start at its one code; each alone has E 1/w = 1/p(x), so their mean has too.
    """
    parts = []
    for images in _chunks(networks, pixels, settings):
        rows = slice(images.start, images.stop)
        evaluate = posterior_likelihood(networks, some_rows(pixels, rows), settings.theta)
        steps = find_steps(evaluate, networks, images, settings, seed=seed)
        noise = ImageStreams(seed, images, settings.chains, networks, "reverse_ais")
        exact = codes[rows, None].expand(-1, settings.chains, -1)
        chains = start(evaluate, exact)
        parts.append(_run(evaluate, chains, noise, steps, settings, reverse=True))
    return _join(parts)


def _run(
    evaluate: LogLikelihood,
    chains: Chains,
    noise: ImageStreams,
    steps: Float[Tensor, "inner B"],
    settings: Annealing,
    *,
    reverse: bool,
) -> Annealed:
    """The weights of chains along the schedule, or back along it.

    The reverse run is the forward run mirrored: HMC is its own reversal. The forward run ends with
    the weight at z_{T-1}, after the transition at b_{T-1}; the reverse run starts there.
    """
    schedule = sigmoid_schedule(settings.temperatures)
    increments, between = schedule.diff().tolist(), schedule[1:-1].tolist()
    order = range(len(between))
    if reverse:
        increments, order = increments[::-1], order[::-1]
    log_weights = increments[0] * chains.log_likelihood
    accepted = torch.zeros_like(log_weights)
    for number, increment in zip(order, increments[1:], strict=True):
        chains, acceptance = transition(
            evaluate,
            chains,
            noise.draw(),
            between[number],
            steps[number, :, None],
            leapfrogs=settings.leapfrogs,
        )
        log_weights = log_weights + increment * chains.log_likelihood
        accepted += acceptance
    return Annealed(log_weights, accepted.mean(1) / max(1, len(between)))


def _chunks(networks: Networks, pixels: Tensor, settings: Annealing) -> Sequence[range]:
    """Ranges of images whose chains' logits fill CHAIN_LOGITS."""
    logits = networks.theta.particles * settings.chains * pixels.shape[1]
    size = max(1, at_once(CHAIN_LOGITS, networks.device) // logits)
    return [range(first, min(first + size, len(pixels))) for first in range(0, len(pixels), size)]


def _join(parts: Sequence[Annealed]) -> Annealed:
    return Annealed(*(torch.cat(part) for part in zip(*parts, strict=True)))
