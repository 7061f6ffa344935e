"""What every estimator needs: log p(z), log p(x | z, theta) in chunks, and noise by image.

Shapes: M decoders, B images of X pixels, n codes an image, d code dimensions. Units: nats.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.data import step_generator
from steinvae.device import at_once
from steinvae.networks import Networks
from steinvae.recognition import StochasticEncoder

LOGITS_AT_ONCE = 2**22
"""Logits evaluated together: 16 MB in float32, which fits a CPU's cache hierarchy and any GPU."""

Treatment = Literal["mixture", "average"]
"""How M decoders count: log (1/M) sum_m p(x | z, theta_m), or (1/M) sum_m log p(x | z, theta_m)."""


def log_mean_exp(values: Tensor, dim: int) -> Tensor:
    """log mean exp along `dim`, computed in float64 and without leaving log space."""
    values = values.double()
    return values.logsumexp(dim) - log(values.shape[dim])


def effective_samples(log_weights: Float[Tensor, "*B n"]) -> Float[Tensor, "*B"]:
    """(sum w)^2 / sum w^2 of log weights (..., n): between 1 and n, float64."""
    log_weights = log_weights.double()
    return (2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp()


def log_likelihood(
    networks: Networks, codes: Float[Tensor, "B n d"], pixels: Float[Tensor, "B X"]
) -> Float[Tensor, "M B n"]:
    """log p(x_b | z_bs, theta_m), in chunks of codes of about LOGITS_AT_ONCE logits."""
    leaves = prepared(networks)
    logits = at_once(LOGITS_AT_ONCE, networks.device)
    chunk = max(1, logits // (networks.theta.particles * pixels.numel()))
    parts = [
        networks.model.log_likelihood(leaves, part[None], pixels)
        for part in codes.split(chunk, dim=1)
    ]
    return torch.cat(parts, dim=2)


def prepared(networks: Networks) -> dict[str, Tensor]:
    """The decoders' parameters, with what a model with `prepare` derives from them alone."""
    leaves = networks.theta.leaves()
    prepare = getattr(networks.model, "prepare", None)
    return leaves if prepare is None else prepare(leaves)


def over_decoders(each: Float[Tensor, "M B n"], theta: Treatment) -> Float[Tensor, "B n"]:
    """The M values of log p(x | z, theta_m) as one, by either treatment of theta; float64.

    `average` is never above `mixture` (Jensen), so a lower bound under it is one of the mixture.
    """
    return log_mean_exp(each, 0) if theta == "mixture" else each.double().mean(0)


def image_noise(
    seed: int,
    images: Iterable[int],
    shape: tuple[int, ...],
    device: torch.device | str,
    stream: str = "evaluation",
) -> Tensor:
    """Standard normal (B, *shape); image b's depends on (seed, b, stream) alone, not on chunks."""
    generators = [step_generator(seed, image, stream) for image in images]
    draws = [torch.randn(shape, generator=generator) for generator in generators]
    return torch.stack(draws).to(device)


def noise_dimension(encoder: StochasticEncoder) -> int:
    """dim xi: the encoder's `noise_dimension` where it has one, else d."""
    return getattr(encoder, "noise_dimension", encoder.codes)
