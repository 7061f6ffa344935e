"""Active units: how many code dimensions an encoder uses (Burda et al. 2016, section 5.1)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.density.findings import Assumption
from steinvae.density.likelihood import image_noise, noise_dimension
from steinvae.networks import Networks
from steinvae.sparse_rows import some_rows

ACTIVE = 0.01
"""Variance over images of a unit's posterior mean from which on it counts as active."""

SAMPLES = 64
"""Codes an image."""


@torch.no_grad()
def unit_activity(
    networks: Networks, pixels: Float[Tensor, "B X"], *, samples: int = SAMPLES, seed: int
) -> Float[Tensor, " d"]:
    """A_u = Var over images of E[z_u | x], from `samples` codes an image; float64.

    The mean of n codes varies by Var(z_u | x) / n even where E[z_u | x] does not vary at all: for
    n = 64 and an idle unit that is 0.016, above the threshold. That share is subtracted, so that A
    is unbiased, and may come out below 0.

    Errors: ValueError for fewer than two images or samples.
    """
    if len(pixels) < 2 or samples < 2:
        raise ValueError(
            f"unit_activity: needs 2 images and 2 samples, got {len(pixels)} and {samples}"
        )
    shape = (samples, noise_dimension(networks.encoder))
    means, variances = [], []
    for first in range(0, len(pixels), 256):
        part = some_rows(pixels, slice(first, first + 256))
        images = range(first, first + len(part))
        noise = image_noise(seed, images, shape, networks.device, "units").to(networks.theta.flat)
        codes = networks.encoder(part, noise).double()
        means.append(codes.mean(1))
        variances.append(codes.var(1))
    return torch.cat(means).var(0) - torch.cat(variances).mean(0) / samples


def active_units(activity: Float[Tensor, " d"]) -> int:
    """Units with A_u > 0.01."""
    return int((activity > ACTIVE).sum())


def enough_images(images: int) -> Assumption:
    """Whether an idle unit with codes from N(0, 1) would be counted once in 30,000 times or less.

    Its A_u has mean 0 and standard deviation sqrt(2 / (B - 1)) / 64: a quarter of the threshold at
    B = 80.
    """
    deviation = (2 / (images - 1)) ** 0.5 / SAMPLES
    return Assumption(
        f"so many images tell a variance of {ACTIVE} from 0",
        "yes" if 4 * deviation <= ACTIVE else "not shown",
        f"{images}: an idle unit's is 0 ± {deviation:.4f}",
    )
