"""Recognition networks z = f(x, xi), xi ~ N(0, I): Pu et al. 2017, section 2.2.

Only drawing codes is asked of an encoder. Where f(x, .) is injective by construction the codes have
a density, log q(f(x, xi) | x) = log N(xi; 0, I) - log |det df/dxi|, and `injective` says so.

Shapes: B images of X pixels, S codes an image, d code dimensions, H hidden units.
Everything that depends on x alone is computed once per image, not once per code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from steinvae.recognition.base import StochasticEncoder, gaussian_rate, standard_normal
from steinvae.recognition.concat import ConcatEncoder
from steinvae.recognition.flow import FlowEncoder
from steinvae.recognition.gaussian import LOG_SIGMA_START, GaussianEncoder
from steinvae.recognition.planar import PlanarEncoder
from steinvae.recognition.residual import GAIN, NoiseResidual, ResidualEncoder
from steinvae.recognition.triangular import TriangularEncoder

__all__ = [
    "ENCODERS",
    "GAIN",
    "LOG_SIGMA_START",
    "ConcatEncoder",
    "FlowEncoder",
    "GaussianEncoder",
    "NoiseResidual",
    "PlanarEncoder",
    "ResidualEncoder",
    "StochasticEncoder",
    "TriangularEncoder",
    "gaussian_rate",
    "make_encoder",
    "standard_normal",
]


ENCODERS: dict[str, type[StochasticEncoder]] = {
    "gaussian": GaussianEncoder,
    "flow": FlowEncoder,
    "planar": PlanarEncoder,
    "residual": ResidualEncoder,
    "concat": ConcatEncoder,
    "triangular": TriangularEncoder,
}


def make_encoder(
    kind: str,
    pixels: int,
    hidden: Sequence[int],
    codes: int,
    generator: torch.Generator,
    depth: int = 1,
    noise_hidden: int | None = None,
    *,
    encoders: Mapping[str, type[StochasticEncoder]] = ENCODERS,
) -> StochasticEncoder:
    """The encoder called `kind`; `depth` counts the blocks of flow and the layers of planar.

    `noise_hidden` are the units of the noise networks of flow and residual. `encoders` are the
    kinds that there are, those of images by default. Errors: ValueError for any other.
    """
    if kind not in encoders:
        raise ValueError(f"model.encoder must be one of {sorted(encoders)}, got {kind!r}")
    options: dict[str, int | None] = {"depth": depth} if kind in ("flow", "planar") else {}
    if kind in ("flow", "residual"):
        options["noise_hidden"] = noise_hidden
    return encoders[kind](pixels, hidden, codes, generator, **options)  # type: ignore[call-arg]
