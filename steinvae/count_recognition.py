"""Recognition networks on counts of words: those of `recognition` behind log(1 + n).

Shapes: B documents over V words, H features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steinvae.count_trunk import CountTrunk
from steinvae.recognition import (
    FlowEncoder,
    GaussianEncoder,
    PlanarEncoder,
    ResidualEncoder,
    StochasticEncoder,
    TriangularEncoder,
    make_encoder,
)


class _OnCounts(GaussianEncoder):
    @staticmethod
    def make_trunk(widths: Sequence[int], generator: torch.Generator) -> CountTrunk:
        """Counts (B, V) -> (B, H)."""
        return CountTrunk(widths, generator)


class CountGaussianEncoder(_OnCounts):
    """z = mu(x) + sigma(x) xi: the encoder of NVDM (Miao, Yu & Blunsom 2016)."""


class CountResidualEncoder(_OnCounts, ResidualEncoder):
    """`ResidualEncoder` on counts."""


class CountFlowEncoder(_OnCounts, FlowEncoder):
    """`FlowEncoder` on counts."""


class CountPlanarEncoder(_OnCounts, PlanarEncoder):
    """`PlanarEncoder` on counts."""


class CountTriangularEncoder(_OnCounts, TriangularEncoder):
    """`TriangularEncoder` on counts."""


COUNT_ENCODERS: dict[str, type[GaussianEncoder]] = {
    "gaussian": CountGaussianEncoder,
    "residual": CountResidualEncoder,
    "flow": CountFlowEncoder,
    "planar": CountPlanarEncoder,
    "triangular": CountTriangularEncoder,
}


def make_count_encoder(
    kind: str,
    words: int,
    hidden: Sequence[int],
    codes: int,
    generator: torch.Generator,
    depth: int = 1,
) -> StochasticEncoder:
    """As `recognition.make_encoder`; concat has no features to put the logarithm before."""
    return make_encoder(kind, words, hidden, codes, generator, depth, encoders=COUNT_ENCODERS)
