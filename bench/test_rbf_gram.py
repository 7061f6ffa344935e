"""The Gram matrix at a given bandwidth."""

from __future__ import annotations

from bench.methods import GRAM

METHODS = GRAM


def test_rbf_gram(measure, shape, threads, method, block):
    measure("rbf_gram", method, shape, threads, block, op="rbf_gram")
