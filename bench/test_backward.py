"""Forward and backward through the direction, against its forward alone."""

from __future__ import annotations

from bench.methods import BACKWARD

METHODS = BACKWARD


def test_backward(measure, shape, threads, method, block):
    measure("backward", method, shape, threads, block)
