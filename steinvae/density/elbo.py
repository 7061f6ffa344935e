"""ELBO and S-ELBO by the density of the encoder: Pu et al. 2017, eq. 16 and section 5.

With z_s = f(x, xi_s) and log q(z_s) = log N(xi_s; 0, I) - log |det df/dxi|,

    log w_s = log p(x | z_s) + log N(z_s; 0, I) - log q(z_s)
    ELBO   = E (1/n) sum_s log w_s        a lower bound of log p(x), loose by KL(q, posterior)
    S-ELBO = E log (1/n) sum_s w_s        a tighter one (Burda, Grosse & Salakhutdinov 2016)

if f(x, .) is injective. Where it folds, the formula counts one pre-image of several: E w_s is then
the integral of p(x, z) times the number of pre-images of z, and neither number bounds anything.

det df/dxi of an injective f(x, .) has one sign for all xi, so samples of both signs convict f. One
sign does not acquit it: a map can fold without a change of sign, as z -> z^2 of the plane does.

Shapes: M decoders, B images of X pixels, n samples an image, d code dimensions. Units: nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.density.likelihood import (
    LOGITS_AT_ONCE,
    Treatment,
    effective_samples,
    image_noise,
    log_likelihood,
    log_mean_exp,
    noise_dimension,
    over_decoders,
)
from steinvae.device import at_once
from steinvae.networks import Networks
from steinvae.recognition import StochasticEncoder, standard_normal
from steinvae.sparse_rows import some_rows

SIGN_TOLERANCE = 0.01
"""Share of determinants with the rarer sign above which S-ELBO is flagged."""

_SIGNS_CHECKED = 64
"""Samples an image whose sign is looked at where f is injective by construction."""

_ENTRIES_AT_ONCE = 2**21
"""Entries of the Jacobians that exist at a time: 8 MB in float32."""

_THETA: tuple[Treatment, ...] = ("mixture", "average")


@dataclass(frozen=True, kw_only=True)
class EncoderBounds:
    """ELBO and S-ELBO of a set of images, by both treatments of the decoders."""

    elbo: Mapping[Treatment, Tensor] = field(repr=False)
    """Mean of log w over the samples, each (B,) float64."""

    s_elbo: Mapping[Treatment, Tensor] = field(repr=False)
    """Log mean of w over the samples, each (B,) float64."""

    effective: Tensor = field(repr=False)
    """Effective number of the samples under the mixture's weights, (B,)."""

    samples: int
    """n."""

    minority: float
    """Share of determinants with the rarer sign of their image, mean over images; 0: all alike."""

    determinants: int
    """Determinants looked at for `minority`."""

    injective: bool
    """Whether f(x, .) is injective by construction."""

    @property
    def flagged(self) -> bool:
        """Whether more than 1 % of the determinants have the rarer sign: f folds, no bound."""
        return self.minority > SIGN_TOLERANCE


@torch.no_grad()
def encoder_bounds(
    networks: Networks, pixels: Float[Tensor, "B X"], *, samples: int = 5000, seed: int
) -> EncoderBounds:
    """ELBO and S-ELBO from one set of samples; the noise of image b depends on (seed, b) alone.

    Both bound log p(x) from below in expectation if `injective`; see the module for where not.

    Errors: ValueError for samples < 1, and where dim xi != d: codes then have no such density.
    """
    if samples < 1:
        raise ValueError(f"encoder_bounds: samples must be at least 1, got {samples}")
    chunk = _images_at_once(networks, pixels.shape[1], samples)
    rows = [
        _chunk(networks, some_rows(pixels, slice(first, first + chunk)), samples, seed, first)
        for first in range(0, len(pixels), chunk)
    ]
    log_weights = [weights for weights, _ in rows]
    signs = [each for _, found in rows for each in found]
    minority = [minority_of_signs(each) for each in signs]
    by_theta: dict[Treatment, Tensor] = {
        theta: torch.cat([over_decoders(each, theta) for each in log_weights]) for theta in _THETA
    }
    return EncoderBounds(
        elbo={theta: each.mean(-1) for theta, each in by_theta.items()},
        s_elbo={theta: log_mean_exp(each, -1) for theta, each in by_theta.items()},
        effective=effective_samples(by_theta["mixture"]),
        samples=samples,
        minority=sum(minority) / len(minority),
        determinants=sum(int((~each.isnan()).sum()) for each in signs),
        injective=networks.encoder.injective,
    )


def log_density(
    encoder: StochasticEncoder, pixels: Float[Tensor, "B X"], noise: Float[Tensor, "B n e"]
) -> tuple[Float[Tensor, "B n d"], Float[Tensor, "B n"], Float[Tensor, "B n"]]:
    """Codes, log q of each by one pre-image, and the sign of det df/dxi of each.

    An injective encoder's own density is used where it has one, at less cost than its Jacobian; the
    signs are then those of the first 64 samples, the others NaN. (In hundreds of codes a Jacobian
    costs more than all else, so it is not made where its sign is known.)

    Errors: ValueError where dim xi != d.
    """
    if noise.shape[-1] != encoder.codes:
        raise ValueError(
            f"{type(encoder).__name__} maps {noise.shape[-1]} noise dimensions to {encoder.codes} "
            "codes: no density by a Jacobian; use iw_g or annealed importance sampling"
        )
    if not encoder.injective:
        sign, log_det = torch.linalg.slogdet(encoder.jacobian(pixels, noise))
        return encoder(pixels, noise), standard_normal(noise) - log_det, sign
    codes, log_q = encoder.codes_and_log_density(pixels, noise)
    signs = torch.full_like(log_q, torch.nan)
    first = noise[:, :_SIGNS_CHECKED]
    signs[:, :_SIGNS_CHECKED] = (
        1.0
        if encoder.orientation_known
        else torch.linalg.slogdet(encoder.jacobian(pixels, first)).sign
    )
    return codes, log_q, signs


def minority_of_signs(signs: Float[Tensor, " n"]) -> float:
    """Share of the signs of one image that are not its commoner one; NaN is not counted."""
    known = signs[~signs.isnan()]
    commoner = max(int((known > 0).sum()), int((known < 0).sum()))
    return 1 - commoner / len(known)


def _images_at_once(networks: Networks, pixels: int, samples: int) -> int:
    """As many as keep logits, and Jacobians where they are made, within what a chunk may hold."""
    logits = at_once(LOGITS_AT_ONCE, networks.device)
    images = logits // (networks.theta.particles * samples * pixels)
    if not networks.encoder.orientation_known:
        entries = at_once(_ENTRIES_AT_ONCE, networks.device)
        images = min(images, entries // (samples * networks.encoder.codes**2))
    return max(1, images)


def _chunk(
    networks: Networks, pixels: Float[Tensor, "B X"], samples: int, seed: int, first: int
) -> tuple[Float[Tensor, "M B n"], Float[Tensor, "B n"]]:
    """log w by decoder, and the signs of the determinants, NaN where not looked at."""
    encoder = networks.encoder
    images = range(first, first + len(pixels))
    shape = (samples, noise_dimension(encoder))
    noise = image_noise(seed, images, shape, networks.device, "elbo").to(networks.theta.flat)
    entries = at_once(_ENTRIES_AT_ONCE, networks.device)
    size = max(_SIGNS_CHECKED, entries // (len(pixels) * encoder.codes**2))
    parts = [log_density(encoder, pixels, part) for part in noise.split(size, dim=1)]
    codes, log_q, signs = (torch.cat(item, dim=1) for item in zip(*parts, strict=True))
    log_ratio = (standard_normal(codes) - log_q).double()
    return log_likelihood(networks, codes, pixels).double() + log_ratio, signs
