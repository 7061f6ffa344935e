"""The direction at a given bandwidth."""

from __future__ import annotations

from bench.methods import DIRECTION

METHODS = DIRECTION


def test_svgd_direction(measure, shape, threads, method, block):
    # A baseline's error does not depend on its threads, and a shifted call may take seconds.
    shifted = method.name == "ours" or threads == 1
    measure("svgd_direction", method, shape, threads, block, op="svgd_direction", shifted=shifted)
