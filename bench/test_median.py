"""The direction with its exact median bandwidth, against compiled direction and torch.median."""

from __future__ import annotations

from bench.methods import WITH_MEDIAN

METHODS = WITH_MEDIAN


def test_direction_with_median(measure, shape, threads, method, block):
    measure("svgd_direction_with_median", method, shape, threads, block, op="svgd_direction")
