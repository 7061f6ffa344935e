"""Importance sampling from a Gaussian that is fitted to the encoder: `iw_g`, the reported number.

The proposal's density is known, so it bounds log p(x) from below in expectation for every encoder,
injective or not, without the density of the encoder. In hundreds of codes a fit takes thousands of
them and a wider proposal costs up to 0.03 nats a code; there an encoder that has a density is its
own proposal (`s_elbo`).

Shapes: M decoders, B images of X pixels, n samples an image, d code dimensions. Units: nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log, pi
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.density.likelihood import (
    LOGITS_AT_ONCE,
    image_noise,
    log_likelihood,
    log_mean_exp,
    noise_dimension,
    over_decoders,
)
from steinvae.device import at_once
from steinvae.networks import Networks
from steinvae.recognition import standard_normal
from steinvae.sparse_rows import some_rows

Proposal = Literal["fitted", "diagonal", "encoder"]

FEWEST = 64
"""Encoder samples that fit a proposal, at least; a diagonal one takes no more."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A negative log-likelihood over a set of images."""

    estimator: str
    """Name with the number of importance samples, for example iw_g(1000)."""

    value: float
    """Mean over images of -log p(x), nats an image; the decoders count as one mixture."""

    standard_error: float
    """Standard error of `value` over images, nats."""

    images: int

    single: float
    """The same for one decoder alone, averaged over the decoders; equals `value` where M = 1."""

    per_image: Tensor = field(repr=False, compare=False)
    """(images,) float64, nats: for differences between models on the same images."""


def gaussian_log_density(
    noise: Float[Tensor, "B n d"], scale_tril: Float[Tensor, "B d d"]
) -> Float[Tensor, "B n"]:
    """log N(m + L e; m, L L^T) for noise e (B, n, d) and L (B, d, d): (B, n)."""
    log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    dimension = noise.shape[-1]
    return -0.5 * (noise.square().sum(-1) + dimension * log(2 * pi)) - log_det[:, None]


def fit_gaussian(
    codes: Float[Tensor, "B n d"], inflation: float
) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B d d"]]:
    """Mean (B, d) and Cholesky factor (B, d, d), times `inflation`, of codes (B, n, d); float64.

    A millionth of the mean variance is added to the diagonal, so that a collapsed encoder still has
    a proper proposal.
    """
    codes = codes.double()
    mean = codes.mean(1)
    centred = codes - mean[:, None]
    covariance = centred.transpose(1, 2) @ centred / (codes.shape[1] - 1)
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    floor = (1e-6 * variance).clamp_min(1e-12)
    identity = torch.eye(codes.shape[-1], dtype=codes.dtype, device=codes.device)
    return mean, inflation * torch.linalg.cholesky(covariance + floor[:, None, None] * identity)


@torch.no_grad()
def iw_g(
    networks: Networks,
    pixels: Float[Tensor, "B X"],
    *,
    samples: int,
    seed: int,
    fit_samples: int = 8,
    inflation: float = 1.2,
    proposal: Proposal = "fitted",
) -> Float[Tensor, "2 B"]:
    """Importance-weighted log p(x) of every image, Gaussian proposal: of the mixture, and single.

    log p(x) >= E log (1/n) sum_s pbar(x | z_s) N(z_s; 0, I) / N(z_s; m, inflation^2 C), with m and
    C from max(64, fit_samples d) encoder samples and z_s fresh draws of the proposal; pbar is the
    mixture (1/M) sum_m p(x | z, theta_m). The noise of image b depends on
    (seed, b) alone.

    Shapes: pixels (B, X) -> (2, B) float64: the mixture, and the mean over decoders of each alone.
    Errors: torch.linalg.LinAlgError where the encoder's codes are not finite.
    Source: Burda et al. 2016 for the bound; the paper's eq. 16 needs an encoder density instead.
    """
    chunks = importance_weights(
        networks,
        pixels,
        samples=samples,
        seed=seed,
        fit_samples=fit_samples,
        inflation=inflation,
        proposal=proposal,
    )
    estimates = [
        torch.stack(
            [log_mean_exp(over_decoders(each, "mixture"), -1), log_mean_exp(each, -1).mean(0)]
        )
        for each in chunks
    ]
    return torch.cat(estimates, dim=1)


@torch.no_grad()
def importance_weights(
    networks: Networks,
    pixels: Float[Tensor, "B X"],
    *,
    samples: int,
    seed: int,
    fit_samples: int = 8,
    inflation: float = 1.2,
    proposal: Proposal = "fitted",
) -> Iterator[Float[Tensor, "M b n"]]:
    """The log weights behind `iw_g`, decoder by decoder, a chunk of b images at a time; float64.

    `proposal` encoder: z_s and log q(z_s | x) are the encoder's own, the weights those of S-ELBO;
    nothing is fitted or inflated. Errors: TypeError where it has no density. diagonal: C is the
    diagonal of the samples' covariance.
    """
    fitted = max(FEWEST, fit_samples * networks.encoder.codes)
    if proposal == "diagonal":
        fitted = FEWEST
    logits_an_image = networks.theta.particles * samples * pixels.shape[1]
    chunk = max(1, at_once(LOGITS_AT_ONCE, networks.device) // logits_an_image)
    for first in range(0, len(pixels), chunk):
        part = some_rows(pixels, slice(first, first + chunk))
        images = range(first, first + len(part))
        if proposal == "encoder":
            yield _encoder_weights(networks, part, images, samples, seed)
        else:
            noise = _noise(networks, images, fitted, samples, seed)
            weights = _diagonal_weights if proposal == "diagonal" else _fitted_weights
            yield weights(networks, part, noise, inflation)


def _noise(
    networks: Networks, images: range, fitted: int, samples: int, seed: int
) -> Sequence[Tensor]:
    """Noise of the encoder (b, fitted, dim xi), and of the proposal (b, samples, d)."""
    codes, wide = networks.encoder.codes, noise_dimension(networks.encoder)
    if wide == codes:
        both = image_noise(seed, images, (fitted + samples, codes), networks.device)
        return both.split([fitted, samples], 1)
    return [
        image_noise(seed, images, (fitted, wide), networks.device, "evaluation_fit"),
        image_noise(seed, images, (samples, codes), networks.device),
    ]


def _fitted_weights(
    networks: Networks, pixels: Tensor, noise: Sequence[Tensor], inflation: float
) -> Float[Tensor, "M b n"]:
    fit_noise, proposal_noise = noise[0], noise[1].double()
    mean, scale_tril = fit_gaussian(networks.encoder(pixels, fit_noise), inflation)
    codes = mean[:, None] + proposal_noise @ scale_tril.transpose(1, 2)
    log_ratio = standard_normal(codes) - gaussian_log_density(proposal_noise, scale_tril)
    codes = codes.to(networks.theta.flat.dtype)
    return log_likelihood(networks, codes, pixels).double() + log_ratio


def _diagonal_weights(
    networks: Networks, pixels: Tensor, noise: Sequence[Tensor], inflation: float
) -> Float[Tensor, "M b n"]:
    """As `_fitted_weights`, dimension by dimension: nothing of size d x d."""
    drawn, proposal_noise = networks.encoder(pixels, noise[0]).double(), noise[1].double()
    variance = drawn.var(1, keepdim=True)
    floor = (1e-6 * variance.mean(-1, keepdim=True)).clamp_min(1e-12)
    scale = inflation * (variance + floor).sqrt()
    codes = drawn.mean(1, keepdim=True) + scale * proposal_noise
    log_ratio = standard_normal(codes) - (standard_normal(proposal_noise) - scale.log().sum(-1))
    codes = codes.to(networks.theta.flat.dtype)
    return log_likelihood(networks, codes, pixels).double() + log_ratio


def _encoder_weights(
    networks: Networks, pixels: Tensor, images: range, samples: int, seed: int
) -> Float[Tensor, "M b n"]:
    shape = (samples, networks.encoder.codes)
    noise = image_noise(seed, images, shape, networks.device).to(networks.theta.flat)
    codes, log_q = networks.encoder.codes_and_log_density(pixels, noise)
    log_ratio = standard_normal(codes.double()) - log_q.double()
    return log_likelihood(networks, codes, pixels).double() + log_ratio


def negative_log_likelihood(
    networks: Networks,
    pixels: Tensor,
    *,
    samples: int,
    seed: int,
    fit_samples: int = 8,
    inflation: float = 1.2,
    proposal: Proposal = "fitted",
) -> Estimate:
    """The bound over a set of images as one number with its standard error over images.

    `iw_g`, `iw_d` where its proposal is diagonal, or S-ELBO with the encoder as proposal. NaN where
    no Gaussian can be fitted to the codes, as those of networks that have diverged.
    """
    images = len(pixels)
    try:
        mixture, single = -iw_g(
            networks,
            pixels,
            samples=samples,
            seed=seed,
            fit_samples=fit_samples,
            inflation=inflation,
            proposal=proposal,
        )
    except torch.linalg.LinAlgError:  # type: ignore[reportPrivateImportUsage]
        mixture = single = torch.full((images,), float("nan"), dtype=torch.float64)
    spread = mixture.std().item() if images > 1 else float("nan")
    return Estimate(
        estimator=f"{ESTIMATORS[proposal]}({samples})",
        value=mixture.mean().item(),
        standard_error=spread / images**0.5,
        images=images,
        single=single.mean().item(),
        per_image=mixture,
    )


ESTIMATORS: dict[Proposal, str] = {"fitted": "iw_g", "diagonal": "iw_d", "encoder": "s_elbo"}
"""Names of the bound by its proposal."""


def evenly_spaced(count: int, wanted: int) -> Tensor:
    """`wanted` indices (0: all) spread over range(count): fair for a test set sorted by class."""
    if wanted == 0 or wanted >= count:
        return torch.arange(count)
    return torch.arange(wanted) * count // wanted
