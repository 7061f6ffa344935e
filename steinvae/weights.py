"""Importance weights of Stein VIWAE and the densities log q(z | x) they need; all in log space.

A weight is omega = p(x | z, theta) p(z) / q(z | x). It enters normalised within a group of k codes,
so a factor that all codes of an image share is of no account. Pu et al. 2017, section 3.

Shapes: M decoders, B images, S = groups * k codes an image (code i of group j is j k + i), d code
dimensions. Units: nats.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stein_kernels import median_bandwidth, stein_divergence, svgd_direction
from steinvae.recognition import StochasticEncoder, standard_normal
from steinvae.sparse_rows import some_rows

NUMBERS_AT_ONCE = 2**24
"""Entries of the largest temporary of an estimator: 64 MB in float32."""


@torch.no_grad()
def log_prior_over_q(
    encoder: StochasticEncoder,
    codes: Float[Tensor, "B S d"],
    pixels: Float[Tensor, "B X"],
    noise: Float[Tensor, "#B S e"],
    *,
    estimator: str,
    bandwidth: str | float,
) -> Float[Tensor, "B S"]:
    """log p(z) - log q(z | x) of codes z = f(x, xi), a constant for autograd.

    estimator: `jac` is exact and needs an injective encoder; `gauss` and `kde` estimate q from the
    codes themselves, whatever the encoder is.
    """
    if estimator not in ("jac", "gauss", "kde"):
        raise ValueError(f"method.log_q must be jac, gauss or kde here, got {estimator!r}")
    parts = []
    one = codes[0].numel()
    for rows in _slices(len(codes), max(1, NUMBERS_AT_ONCE // max(1, one))):
        own, own_noise = codes[rows], noise if len(noise) == 1 else noise[rows]
        if estimator == "jac":
            log_q = jacobian_log_density(encoder, some_rows(pixels, rows), own_noise)
        else:
            fitted = estimator == "gauss"
            log_q = fitted_log_density(own) if fitted else kernel_log_density(own, bandwidth)
        parts.append(standard_normal(own) - log_q)
    return torch.cat(parts)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


@torch.no_grad()
def jacobian_log_density(
    encoder: StochasticEncoder, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S e"]
) -> Float[Tensor, "B S"]:
    """log N(xi) - log |det df/dxi|, in chunks of images and samples: Jacobians stay small.

    An encoder whose determinant is a product makes no Jacobian, only its codes.
    """
    widest = max((parameter.shape[0] for parameter in encoder.parameters()), default=1)
    columns = 1 if encoder.orientation_known else max(widest, encoder.codes)
    at_once = max(1, NUMBERS_AT_ONCE // (encoder.codes * columns))
    found = []
    for rows in _slices(len(pixels), at_once):
        here, own = some_rows(pixels, rows), noise if len(noise) == 1 else noise[rows]
        chunks = own.split(max(1, at_once // len(here)), dim=1)
        parts = [encoder.codes_and_log_density(here, part)[1] for part in chunks]
        found.append(torch.cat(parts, dim=1))
    return torch.cat(found)


def fitted_log_density(codes: Float[Tensor, "B S d"]) -> Float[Tensor, "B S"]:
    """log of the Gaussian with an image's codes' moments, at those codes.

    Up to S = 2 d the covariance is diagonal. Beyond, it is (1 - a) C + a diag C with a = (d + 1)/S,
    about the share of C that is sampling noise. Not finite where the codes are not.
    """
    samples, dimension = codes.shape[1:]
    centred = codes - codes.mean(1, keepdim=True)
    variance = centred.square().sum(1) / (samples - 1)
    variance = variance + (1e-6 * variance.mean(-1, keepdim=True)).clamp_min(1e-12)
    if samples <= 2 * dimension:
        log_det = variance.log().sum(-1)
        square = (centred.square() / variance[:, None]).sum(-1)
    else:
        noise = (dimension + 1) / samples
        covariance = (1 - noise) * (centred.mT @ centred) / (samples - 1)
        covariance = covariance + (noise * variance).diag_embed()
        factor = torch.linalg.cholesky_ex(covariance).L  # no check: NaN in, NaN out, no sync
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        white = torch.linalg.solve_triangular(factor, centred.mT, upper=False)
        square = white.square().sum(1)
    return -0.5 * (square + log_det[:, None] + dimension * log(2 * pi))


def kernel_log_density(
    codes: Float[Tensor, "B S d"], bandwidth: str | float
) -> Float[Tensor, "B S"]:
    """Leave-one-out kernel density estimate at an image's own codes, with the Stein kernel.

    log q(z_j) = log sum_{i != j} exp(-|z_i - z_j|^2 / h) - log(S - 1) - d/2 log(pi h).
    Too high by tens of nats in 50 dimensions, about equally so for all codes of an image: for
    weights that are normalised among those, never for a bound.
    """
    samples, dimension = codes.shape[1:]
    parts = []
    for part in codes.split(max(1, NUMBERS_AT_ONCE // samples**2)):
        if isinstance(bandwidth, str):
            h = median_bandwidth(part, rule=bandwidth)
        else:
            h = part.new_full(part.shape[:1], bandwidth)
        exponent = -torch.cdist(part, part).square() / h[:, None, None]
        exponent.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
        scale = log(samples - 1) + 0.5 * dimension * (pi * h).log()
        parts.append(exponent.logsumexp(1) - scale[:, None])
    return torch.cat(parts)


def local_width(codes: Float[Tensor, "B S d"]) -> Float[Tensor, " B"]:
    """Median distance of an image's codes to their neighbour at rank S^(1/2), themselves counted.

    Local, so that modes stay apart, where a median over all pairs is the distance of two modes.
    """
    distances = torch.cdist(codes, codes, compute_mode="donot_use_mm_for_euclid_dist")
    rank = max(2, round(codes.shape[1] ** 0.5))
    return distances.kthvalue(rank, dim=-1).values.median(-1).values


def local_log_density(codes: Float[Tensor, "B S d"]) -> Float[Tensor, "B S"]:
    """log of (1/S) sum_i N(z; z_i, b^2 I) at an image's own codes, b twice their `local_width`.

    The own term is in. It bounds the weights p/q of lone codes; and where b is as wide as a mode,
    its codes see each other all: the sum over them of 1 over their number is 1 however few the mode
    drew. A narrower b makes few codes look like less mass than they are.
    """
    samples, dimension = codes.shape[1:]
    width = 2 * local_width(codes)[:, None, None]
    distances = torch.cdist(codes, codes, compute_mode="donot_use_mm_for_euclid_dist")
    exponent = -0.5 * (distances / width).square()
    scale = log(samples) + dimension * (width[..., 0].log() + 0.5 * log(2 * pi))
    return exponent.logsumexp(-1) - scale


class Tracked(NamedTuple):
    """Particles of a chain and their log density, one Stein move on."""

    particles: Tensor
    """(..., M, d)."""

    log_q: Tensor
    """(..., M) nats."""


@torch.no_grad()
def tracked_step(
    particles: Float[Tensor, "*B M d"],
    score: Float[Tensor, "*B M d"],
    log_q: Float[Tensor, "*B M"],
    *,
    step_size: float,
    bandwidth: str | float = "liu_wang",
    leave_one_out: bool = False,
) -> Tracked:
    """One Stein move z' = z + epsilon phi(z), and log q' = log q - epsilon div phi to first order.

    For a chain of persistent particles that starts from a known density. Amortised training has
    none: its codes are drawn afresh at every step. Good to about 1 nat up to ten dimensions; at 50
    errors reach ten nats.

    Source: the change of variables of Pu et al. 2017, theorem 1.
    """
    h = median_bandwidth(particles, rule=bandwidth) if isinstance(bandwidth, str) else bandwidth
    arguments = {"bandwidth": h, "leave_one_out": leave_one_out}
    direction = svgd_direction(particles, score, **arguments)
    divergence = stein_divergence(particles, score, **arguments)
    return Tracked(particles + step_size * direction, log_q - step_size * divergence)


def group_weights(log_weights: Float[Tensor, "*B S"], group: int) -> Float[Tensor, "*B S"]:
    """Normalised weights within each group of `group` codes: every group sums to 1."""
    return log_weights.unflatten(-1, (-1, group)).softmax(-1).flatten(-2)


def effective_samples(weights: Float[Tensor, "*B S"], group: int) -> Float[Tensor, ""]:
    """Mean over groups of 1 / sum w^2, from 1 (one code has it all) to `group`."""
    return weights.unflatten(-1, (-1, group)).square().sum(-1).reciprocal().mean()


class PrintedWeights(NamedTuple):
    """Weights of eqs. 12 and 13 as printed: the k members of a tuple, the same in every tuple."""

    codes: Tensor
    """(B, k), each row summing to 1: omega_in / omega~_n."""

    theta: Tensor
    """(k,), summing to 1: omega_i / omega~, the sum over the minibatch of omega_in, normalised."""


def printed_weights(
    log_weights: Float[Tensor, "M B n"],
    tuples: int,
    group: int,
    over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> PrintedWeights:
    """omega_in ~ mean over tuples of p(x_n, z^i_n, theta^i) / q; omega_i sums omega_in over n.

    A likelihood summed over images rather than multiplied; the largest term of a minibatch decides.
    p(theta)/q(theta) is taken as 1: nobody knows q(theta) in 2e5 dimensions. `over_ranks` sums the
    logarithms (k,) of a part of the minibatch's images over the processes that have the others.

    Shapes: log_weights (tuples * group, B, n), decoder (j, i) at j * group + i.
    """
    by_member = log_weights.unflatten(0, (tuples, group)).transpose(0, 1)
    per_image = by_member.logsumexp(dim=(1, 3))  # (k, B)
    of_theta = per_image.logsumexp(1)
    if over_ranks is not None:
        of_theta = over_ranks(of_theta)
    return PrintedWeights(per_image.softmax(0).T, of_theta.softmax(0))
