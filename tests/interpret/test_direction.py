"""The launch ``direction`` against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch

from stein_kernels.triton.direction import direction
from tests.interpret import formulas

# Features of every padding; targets and sources at and across tiles of 2 to 64.
DIRECT = [(1, 70, 33), (2, 32, 97), (3, 5, 64), (5, 33, 40), (8, 1, 1), (9, 17, 65), (16, 9, 130)]
SPLIT = [(3, 65, 33, "ieee"), (17, 31, 70, "ieee"), (40, 64, 32, "ieee"), (100, 65, 17, "ieee")]
PRODUCTS = [(32, 64, 40, "tf32x3"), (50, 65, 64, "tf32"), (128, 30, 33, "tf32x3")]


def problem(features, targets, sources, dtype, same, spare=0):
    generator = torch.Generator().manual_seed(features * 1000 + targets + sources)
    batch, n = 2, sources if same else targets
    source = formulas.side(generator, (batch, features, sources), dtype, v=3)
    target = source if same else formulas.side(generator, (batch, features, n), dtype, v=3)
    h = formulas.bandwidth(batch, features, dtype)
    exact = target.x, source.x, source.drive, source.weight, h
    padded = [formulas.packed(value, dtype, spare) for value in exact[:-1]]
    return exact, (*padded, h.to(dtype)), n


def launch(inputs, *rest):
    direction(*inputs, *rest)


def check(features, targets, sources, dtype, same, direct, precision, splits=1, spare=0):
    exact, padded, n = problem(features, targets, sources, dtype, same, spare)
    field, mass = formulas.direction(*exact, same, direct)
    out = padded[0].new_full((splits, *padded[0].shape), math.nan)
    total = padded[0].new_full((splits, 2, padded[0].shape[-1]), math.nan)
    launch(padded, out, total, n, sources, same, direct, precision)
    formulas.assert_close(formulas.splits_of(out, n), field, dtype)
    formulas.assert_close(formulas.splits_of(total, n), mass, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("same", [False, True], ids=["query", "same"])
@pytest.mark.parametrize(("features", "targets", "sources"), DIRECT)
def test_direct(features, targets, sources, same, dtype):
    if same and sources == 1:
        pytest.skip("a particle without company: nothing to compare the error with")
    check(features, targets, sources, dtype, same, direct=True, precision="ieee")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("same", [False, True], ids=["query", "same"])
@pytest.mark.parametrize(("features", "targets", "sources", "precision"), [*SPLIT, *PRODUCTS])
def test_split(features, targets, sources, precision, same, dtype):
    if dtype == torch.float64 and precision != "ieee":
        pytest.skip("float64 takes no tensor core")
    check(features, targets, sources, dtype, same, direct=False, precision=precision)


@pytest.mark.parametrize(("features", "direct"), [(3, True), (20, False)])
@pytest.mark.parametrize("splits", [2, 5])
def test_splits_share_the_sources(features, direct, splits):
    """Five splits of three or fewer tiles: some have none, and write zeros."""
    check(features, 40, 90, torch.float32, True, direct, "ieee", splits)


@pytest.mark.parametrize(("features", "direct"), [(4, True), (17, False)])
def test_leading_dimension_may_exceed_the_counts(features, direct):
    check(features, 33, 40, torch.float32, False, direct, "ieee", splits=2, spare=1)


def test_precision_has_no_influence_on_the_direct_form():
    _, padded, n = problem(5, 33, 40, torch.float32, same=False)
    results = []
    for precision in ("ieee", "tf32"):
        out = padded[0].new_zeros(1, *padded[0].shape)
        mass = padded[0].new_zeros(1, 2, 128)
        launch(padded, out, mass, n, 40, False, True, precision)
        results.append(out)
    assert torch.equal(*results)


def test_a_lone_particle_has_no_pairs():
    _, padded, n = problem(3, 1, 1, torch.float32, same=True)
    out, mass = padded[0].new_full((1, 2, 3, 128), math.nan), padded[0].new_full((1, 2, 128), 1.0)
    launch(padded, out, mass, n, 1, True, True, "ieee")
    assert not out[..., :1].any()
    assert not mass[..., :1].any()
