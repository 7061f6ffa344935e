"""How far draws are from a posterior that is known exactly, and how to resample them.

Shapes: B points, n draws and m exact draws a point, K components, d code dimensions.
"""

from __future__ import annotations

from math import cos, log, pi, sin

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.models.gaussian_mixture import MixturePosterior

SCALES = tuple(0.02 * 100 ** (step / 3) for step in range(4))
"""Kernel bandwidths over the squared median distance of the exact draws: 0.02 to 2."""

DIRECTIONS = 32


def mmd2(draws: Float[Tensor, "B n d"], exact: Float[Tensor, "B m d"]) -> Float[Tensor, " B"]:
    """Unbiased squared maximum mean discrepancy, the sum over four kernels exp(-r^2 / h).

    h = c med^2 with c in SCALES and med the median distance of the exact draws. Sum, not mean: at
    most 8. Source: Gretton et al. 2012, eq. 3.
    """
    first, second = (_squares(each, each) for each in (draws, exact))
    across = _squares(draws, exact)
    median = torch.stack([torch.pdist(each).square().median() for each in exact])
    total = draws.new_zeros(len(draws))
    for scale in SCALES:
        h = scale * median[:, None, None]
        total = total + _off_diagonal_mean((-first / h).exp())
        total = total + _off_diagonal_mean((-second / h).exp())
        total = total - 2 * (-across / h).exp().mean((1, 2))
    return total


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


def whitened_sd(posterior: MixturePosterior, draws: Float[Tensor, "B n d"]) -> Float[Tensor, " B"]:
    """Standard deviation within modes in units of the exact one; 1 is right.

    Draws are weighted by their responsibilities and centred at their own weighted mean, so modes
    may overlap: under the posterior a component's weighted draws are its own law.
    """
    weights = posterior.responsibilities(draws) / draws.shape[1]  # (B, n, K)
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

    A proposal with a density for every encoder, injective or not. b is the median distance to the
    neighbour at rank c^(1/2): local, so that modes stay apart.
    """
    points, number, dimension = centres.shape
    squares = _squares(centres, centres)
    rank = max(2, round(number**0.5))
    width = squares.kthvalue(rank, dim=-1).values.median(-1).values.sqrt()  # (B,)
    chosen = torch.randint(number, (points, count), generator=generator)
    noise = torch.randn(points, count, dimension, dtype=centres.dtype, generator=generator)
    drawn = centres.gather(1, chosen[..., None].expand(-1, -1, dimension))
    drawn = drawn + width[:, None, None] * noise
    scale = dimension * (width.log() + 0.5 * log(2 * pi)) + log(number)
    parts = [
        (-0.5 * _squares(part, centres) / width[:, None, None].square()).logsumexp(-1)
        for part in drawn.split(1000, dim=1)
    ]
    return drawn, torch.cat(parts, 1) - scale[:, None]


def _squares(first: Tensor, second: Tensor) -> Tensor:
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").square()


def _off_diagonal_mean(gram: Tensor) -> Tensor:
    count = gram.shape[-1]
    diagonal = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (gram.sum((1, 2)) - diagonal) / (count * (count - 1))
