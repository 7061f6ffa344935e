"""What the Stein direction is worth: against the exact field where the encoder's density is known.

The direction phi estimates the field k * (g - grad log q) from S codes, g the score of the
posterior and q the encoder's density: by Stein's identity the repulsion of the codes stands in for
grad log q. For an injective encoder grad log q is known, and the gap splits in two:

    g - grad log q        the steepest descent of KL(q | p), no kernel and no noise
    k * (g - grad log q)  what infinitely many codes would give: the kernel's part of the gap
    phi                   what S codes give: the noise

Shapes: B images, S codes an image, R reference codes an image, d code dimensions.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stein_kernels import median_bandwidth, rbf_gram
from steinvae.chunks import chunks, numbers_of_a_code
from steinvae.config import MethodConfig
from steinvae.gradients import Batch
from steinvae.networks import Networks
from steinvae.recognition import StochasticEncoder
from steinvae.sparse_rows import some_rows
from steinvae.stein import code_scores

IMAGES = 4
"""Images of a minibatch that are looked at."""

REFERENCE = 256
"""R, reference codes an image: their noise is the same at every step."""

SIGNS = 64
"""Of those, the ones whose determinant is looked at."""


class ScoredCodes(NamedTuple):
    """Codes with what their density says."""

    codes: Tensor
    """(B, S, d)."""

    score: Tensor
    """(B, S, d): grad_z log q(z | x)."""

    log_q: Tensor
    """(B, S) nats: log q(z | x)."""


def exact_score(
    encoder: StochasticEncoder, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
) -> ScoredCodes:
    """Codes f(x, xi), and log q(z | x) with its gradient at them; for an encoder with a density.

    With l(xi) = log q(f(x, xi) | x) the chain rule is J^T grad_z log q = grad_xi l, J = df/dxi.
    """
    numbers = len(pixels) * numbers_of_a_code(encoder, jacobian=True)
    parts = [
        _exact_score(encoder, pixels, noise[:, some]) for some in chunks(noise.shape[1], numbers)
    ]
    return ScoredCodes(*(torch.cat(each, 1) for each in zip(*parts, strict=True)))


def _exact_score(encoder: StochasticEncoder, pixels: Tensor, noise: Tensor) -> ScoredCodes:
    with torch.enable_grad():
        free = noise.expand(len(pixels), -1, -1).detach().requires_grad_()
        codes, log_q = encoder.codes_and_log_density(pixels, free)
        (to_noise,) = torch.autograd.grad(log_q.sum(), free)
    with torch.no_grad():
        if encoder.linear:
            transposed = encoder.jacobian(pixels, free[:, :1].detach())[:, 0].mT
            score = torch.linalg.solve_ex(transposed, to_noise.mT).result.mT
        else:
            transposed = encoder.jacobian(pixels, free.detach()).mT
            score = torch.linalg.solve_ex(transposed, to_noise[..., None]).result.squeeze(-1)
    return ScoredCodes(codes.detach(), score, log_q.detach())


@torch.no_grad()
def folded_fraction(
    encoder: StochasticEncoder, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "#B S d"]
) -> Float[Tensor, ""]:
    """Share of samples whose det df/dxi has the sign that is rarer for their image; mean of images.

    0 for an injective f(x, .), about 1/2 for one that folds everywhere. Above 0.01 a density
    by the Jacobian (the paper's S-ELBO) is not to be believed.
    """
    positive = (torch.linalg.det(encoder.jacobian(pixels, noise)) > 0).to(noise.dtype).mean(-1)
    return torch.minimum(positive, 1 - positive).mean()


def reference_noise(like: Tensor, count: int = REFERENCE) -> Float[Tensor, "1 R d"]:
    """The same standard normal draws at every step, of the dtype and device of `like`."""
    return _reference_noise(count, like.shape[-1], like.dtype, like.device)


@functools.lru_cache(maxsize=8)
def _reference_noise(
    count: int, dimension: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "1 R d"]:
    """Kept: a captured update cannot copy from the host."""
    draws = torch.randn(1, count, dimension, generator=torch.Generator().manual_seed(count))
    return draws.to(device, dtype)


def direction_stats(
    networks: Networks,
    pixels: Float[Tensor, "B X"],
    noise: Float[Tensor, "B S d"],
    score: Float[Tensor, "B S d"],
    direction: Float[Tensor, "B S d"],
    *,
    bandwidth: str | float,
    factor: float = 1.0,
    shown: Float[Tensor, "B X"] | None = None,
) -> dict[str, Tensor]:
    """Cosine and signal-to-noise of the direction that was used; scalars over all images and codes.

    direction_cosine_field, direction_snr_field: of phi against k * (g - grad log q); the latter is
    |field| / |phi - field|. field_cosine_score: of that field against g - grad log q, the kernel's
    part alone. direction_cosine_score, direction_snr_score: of phi against g - grad log q, c and
    c / sqrt(1 - c^2), as the kernel's scale is free. field_cosine_halves: between the fields of two
    halves of the reference codes; where it is far below 1 the field itself is not known well.

    `factor` is that of the direction's bandwidth rule (`code_bandwidth`). The encoder sees `shown`
    where that is not `pixels`, which decoders explain.

    Shapes: score = g and direction = phi at the codes of `noise`.
    """
    shown = pixels if shown is None else shown
    codes, own, _ = exact_score(networks.encoder, shown, noise)
    h = bandwidth
    if isinstance(bandwidth, str):
        h = factor * median_bandwidth(codes, rule=bandwidth)
    reference, of_reference, _ = exact_score(networks.encoder, shown, reference_noise(noise))
    posterior = code_scores(networks.model, networks.theta, reference, pixels)
    pull, known = score - own, posterior - of_reference
    halves = [
        rbf_gram(part, codes, bandwidth=h).mT @ known_part / part.shape[1]
        for part, known_part in zip(reference.chunk(2, 1), known.chunk(2, 1), strict=True)
    ]
    field = (halves[0] + halves[1]) / 2
    to_score = cosine(direction, pull)
    return {
        "direction_cosine_field": cosine(direction, field),
        "direction_snr_field": field.norm() / (direction - field).norm(),
        "field_cosine_score": cosine(field, pull),
        "field_cosine_halves": cosine(*halves),
        "direction_cosine_score": to_score,
        "direction_snr_score": to_score / (1 - to_score.square()).clamp_min(0).sqrt(),
    }


def cosine(first: Tensor, second: Tensor) -> Float[Tensor, ""]:
    """Of two fields, over all their numbers."""
    return (first * second).sum() / (first.norm() * second.norm())


def fold_stats(networks: Networks, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """`folded` where the encoder may fold and has a determinant; noise (B or 1, S, e)."""
    encoder = networks.encoder
    if encoder.injective or noise.shape[-1] != encoder.codes:
        return {}
    some = some_rows(pixels, slice(IMAGES))
    return {"folded": folded_fraction(encoder, some, reference_noise(noise)[:, :SIGNS])}


def field_stats(
    networks: Networks, batch: Batch, score: Tensor, direction: Tensor, method: MethodConfig
) -> dict[str, Tensor]:
    """`direction_stats` of the first few images, where the encoder has a density.

    Their posterior has no label in it: labelled images are left out, and where guesses may act
    nothing is compared. Nor is it where a few images alone have other codes (batch normalisation).

    Shapes: score and direction (B, S, d).
    """
    encoder, whole = networks.encoder, getattr(networks.encoder, "whole_minibatch", False)
    labelled = 0 if batch.labels is None else len(batch.labels)
    count = min(IMAGES, len(score) - labelled)
    known = encoder.injective and batch.noise.shape[1] >= 2 and not whole
    if not known or count < 1 or method.guess_above is not None:
        return {}
    part = batch.images(slice(count))
    return direction_stats(
        networks,
        part.pixels,
        part.noise.expand(count, -1, -1),
        score[:count],
        direction[:count],
        bandwidth=method.bandwidth,
        factor=method.bandwidth_factor,
        shown=part.shown,
    )
