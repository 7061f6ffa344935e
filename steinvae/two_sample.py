"""How far draws are from a posterior that is known exactly, and how to resample them.

Shapes: B points, n draws and m exact draws a point, K components, d code dimensions.
"""

from __future__ import annotations

from math import cos, inf, log, pi, sin

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.models.gaussian_mixture import MixturePosterior
from steinvae.weights import local_width

SCALES = tuple(0.02 * 100 ** (step / 3) for step in range(4))
"""Kernel bandwidths over the squared median distance of the exact draws: 0.02 to 2."""

DIRECTIONS = 32

FAR = 4.0
"""Standard deviations from every mode beyond which a draw belongs to none."""


def mmd2(draws: Float[Tensor, "B n d"], exact: Float[Tensor, "B m d"]) -> Float[Tensor, " B"]:
    """Unbiased squared maximum mean discrepancy, the sum over four kernels exp(-r^2 / h).

    h = c med^2 with c in SCALES and med the median distance of the exact draws. Sum, not mean: at
    most 8. Point by point, so that the pairs stay in a cache. Source: Gretton et al. 2012, eq. 3.
    """
    return torch.stack([_mmd2(*each) for each in zip(draws, exact, strict=True)])


def sliced_w2(draws: Float[Tensor, "B n 2"], exact: Float[Tensor, "B n 2"]) -> Float[Tensor, " B"]:
    """Root mean over 32 evenly spaced directions of the plane of squared 1-D Wasserstein-2.

    Units: code units. In one dimension equal numbers of draws are coupled by their order.
    """
    angles = [pi * step / DIRECTIONS for step in range(DIRECTIONS)]
    directions = draws.new_tensor([[cos(a) for a in angles], [sin(a) for a in angles]])
    apart = (draws @ directions).sort(1).values - (exact @ directions).sort(1).values
    return apart.square().mean((1, 2)).sqrt()


def mass_error(posterior: MixturePosterior, draws: Float[Tensor, "B n d"]) -> Float[Tensor, " B"]:
    """Half the summed |mean responsibility - p_i| over components: |error| of a mode's mass."""
    found = posterior.responsibilities(draws).mean(1)
    return 0.5 * (found - posterior.log_weights.exp()).abs().sum(-1)


def strays(posterior: MixturePosterior, draws: Float[Tensor, "B n d"]) -> Float[Tensor, " B"]:
    """Share of draws farther than `FAR` standard deviations from every mode.

    Exact draws of the plane have exp(-FAR^2 / 2), three in ten thousand.
    """
    return (_to_nearest_mode(posterior, draws) > FAR).to(draws.dtype).mean(-1)


def whitened_sd(
    posterior: MixturePosterior, draws: Float[Tensor, "B n d"], reach: float = inf
) -> Float[Tensor, " B"]:
    """Standard deviation within modes in units of the exact one; 1 is right.

    Draws are weighted by their responsibilities and centred at their own weighted mean, so modes
    may overlap: under the posterior a component's weighted draws are its own law. Those farther
    than `reach` standard deviations from every mode are left out; 0 where none is left.
    """
    kept = _to_nearest_mode(posterior, draws) <= reach
    weights = posterior.responsibilities(draws) * kept[..., None]  # (B, n, K)
    weights = weights / kept.sum(-1).clamp_min(1)[:, None, None]
    white = posterior.whiten(draws)
    mass = weights.sum(1)
    first = (weights.mT @ white).square().sum(-1) / mass.clamp_min(torch.finfo(mass.dtype).tiny)
    within = (weights.sum(-1) * white.square().sum(-1)).sum(1) - first.sum(-1)
    return (within / draws.shape[-1]).clamp_min(0).sqrt()


def resample(
    draws: Float[Tensor, "B N d"],
    log_weights: Float[Tensor, "B N"],
    count: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "B n d"], Float[Tensor, " B"]]:
    """Sampling importance resampling (Rubin 1988): `count` of the draws, and effective draws / N.

    Multinomial, so that the result has the noise of independent draws, as the floor has.
    """
    weights = log_weights.softmax(-1)
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
    effective = 1 / (weights.square().sum(-1) * weights.shape[-1])
    return draws.gather(1, chosen[..., None].expand(-1, -1, draws.shape[-1])), effective


def kernel_proposal(
    centres: Float[Tensor, "B c d"], count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "B N d"], Float[Tensor, "B N"]]:
    """Draws of the mixture (1/c) sum_i N(z; z_i, b^2 I) around codes, and its exact log density.

    A proposal with a density for every encoder, injective or not; b is the centres' `local_width`.
    """
    points, number, dimension = centres.shape
    width = local_width(centres)
    chosen = torch.randint(number, (points, count), generator=generator)
    noise = torch.randn(points, count, dimension, dtype=centres.dtype, generator=generator)
    drawn = centres.gather(1, chosen[..., None].expand(-1, -1, dimension))
    drawn = drawn + width[:, None, None] * noise
    scale = dimension * (width.log() + 0.5 * log(2 * pi)) + log(number)
    unit = 2**0.5 * width[:, None, None]
    log_sums = [
        torch.cat([_squares(part, c).neg_().logsumexp(-1) for part in z.split(500)])
        for z, c in zip(drawn / unit, centres / unit, strict=True)
    ]
    return drawn, torch.stack(log_sums) - scale[:, None]


def _to_nearest_mode(
    posterior: MixturePosterior, draws: Float[Tensor, "B n d"]
) -> Float[Tensor, "B n"]:
    """Distance to the nearest component's mean, in its standard deviations."""
    white, means = posterior.whiten(draws), posterior.whiten(posterior.means)
    return torch.stack([(white - mean[:, None]).norm(dim=-1) for mean in means.unbind(1)]).amin(0)


def _squares(first: Tensor, second: Tensor) -> Tensor:
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").square()


def _mmd2(draws: Float[Tensor, "n d"], exact: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    inner, outer = torch.pdist(draws).square(), torch.pdist(exact).square()  # pairs once, no i = i
    across, median = _squares(draws, exact), outer.median()
    total = draws.new_zeros(())
    for scale in SCALES:
        own, true, mixed = ((r / (-scale * median)).exp_().mean() for r in (inner, outer, across))
        total = total + own + true - 2 * mixed
    return total
