"""The launch ``divergence`` against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch

from stein_kernels.triton.divergence import divergence
from tests.interpret import formulas

SIZES = [
    (1, 65, 33, "ieee"),
    (16, 31, 130, "tf32"),
    (40, 64, 32, "ieee"),
    (50, 65, 64, "tf32x3"),
    (128, 5, 65, "tf32"),
]


def launch(pointers, *rest):
    divergence(*pointers, *rest)


def check(features, targets, sources, dtype, same, precision="ieee", splits=1, spare=0):
    generator = torch.Generator().manual_seed(features * 1000 + targets + sources)
    n = sources if same else targets
    source = formulas.side(generator, (2, features, sources), dtype, v=2)
    target = source if same else formulas.side(generator, (2, features, n), dtype, v=2)
    h = formulas.bandwidth(2, features, dtype)
    exact = target.x, source.x, source.drive, source.scalar, source.weight
    padded = [formulas.packed(value, dtype, spare) for value in exact]
    out = padded[0].new_full((splits, 2, padded[0].shape[-1]), math.nan)
    launch([*padded, h.to(dtype), out], n, sources, same, precision)
    expected = formulas.divergence(*exact, h, same)
    formulas.assert_close(formulas.splits_of(out, n), expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("same", [False, True], ids=["query", "same"])
@pytest.mark.parametrize(("features", "targets", "sources", "precision"), SIZES)
def test_divergence(features, targets, sources, precision, same, dtype):
    check(features, targets, sources, dtype, same, precision)


@pytest.mark.parametrize("splits", [2, 5])
def test_splits_share_the_sources(splits):
    check(20, 40, 130, torch.float32, True, splits=splits, spare=1)
