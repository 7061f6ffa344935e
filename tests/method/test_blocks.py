"""Stein kernels on blocks of codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stein_kernels import kernel_stein_discrepancy, rbf_gram, svgd_direction
from steinvae.blocks import cut_blocks, runs
from steinvae.config import MethodConfig
from steinvae.gradients import Batch
from steinvae.objectives import stein_vae
from steinvae.stein import code_bandwidth, code_direction, code_scores, normalised_direction

BLOCKS = (3, 3, 1, 4)


def some_codes(weighted: bool = False):
    codes, score = torch.randn(2, 5, 6, 11, dtype=torch.float64)
    weights = torch.rand(5, 2, 3, dtype=torch.float64).softmax(-1).flatten(1) if weighted else None
    return codes, score, weights


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bandwidth", ["liu_wang", 0.7])
def test_one_block_is_no_block(weighted, bandwidth):
    codes, score, weights = some_codes(weighted)
    options = {"bandwidth": bandwidth, "leave_one_out": True, "weights": weights, "group": 3}
    plain = code_direction(codes, score, **options)
    assert torch.equal(code_direction(codes, score, blocks=(11,), **options), plain)
    if not weighted:
        own = svgd_direction(codes, score, bandwidth=bandwidth, leave_one_out=True)
        assert torch.equal(plain, own)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bandwidth", ["liu_wang", 0.7, "tensor"])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_every_block_has_the_direction_of_its_own_codes_alone(weighted, bandwidth, factor):
    codes, score, weights = some_codes(weighted)
    if bandwidth != "liu_wang" and factor != 1:
        pytest.skip("a factor goes with a rule")
    h = torch.rand(5, dtype=torch.float64) + 0.5 if bandwidth == "tensor" else bandwidth
    options = {"leave_one_out": True, "weights": weights, "group": 3}
    found = code_direction(codes, score, bandwidth=h, factor=factor, blocks=BLOCKS, **options)
    parts = zip(codes.split(BLOCKS, -1), score.split(BLOCKS, -1), strict=True)
    alone = [
        code_direction(c.contiguous(), g, bandwidth=code_bandwidth(c, h, factor), **options)
        for c, g in parts
    ]
    assert torch.allclose(found, torch.cat(alone, -1), rtol=1e-12)


@pytest.mark.parametrize("bandwidth", ["liu_wang", "tensor"])
def test_every_block_is_normalised_by_its_own_kernel(bandwidth):
    codes, direction, _ = some_codes()
    h = torch.rand(5, dtype=torch.float64) + 0.5 if bandwidth == "tensor" else bandwidth
    found = normalised_direction(direction, codes, h, blocks=BLOCKS)
    parts = zip(direction.split(BLOCKS, -1), codes.split(BLOCKS, -1), strict=True)
    alone = [phi / rbf_gram(z.contiguous(), bandwidth=h).mean(-1, keepdim=True) for phi, z in parts]
    assert torch.allclose(found, torch.cat(alone, -1), rtol=1e-12)


def test_codes_of_another_block_do_not_enter():
    codes, score, _ = some_codes()
    options = {"bandwidth": "liu_wang", "leave_one_out": True, "blocks": BLOCKS}
    before = code_direction(codes, score, **options)
    codes, score = codes.clone(), score.clone()
    codes[..., 3:6] += torch.randn(5, 6, 3, dtype=torch.float64)
    score[..., 3:6] *= 2
    after = code_direction(codes, score, **options)
    assert torch.equal(after[..., :3], before[..., :3])
    assert torch.equal(after[..., 6:], before[..., 6:])
    assert not torch.equal(after[..., 3:6], before[..., 3:6])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 50))
@settings(deadline=None)
def test_cut_blocks_keep_their_dimensions(blocks, largest):
    pieces = cut_blocks(blocks, largest)
    assert sum(pieces) == sum(blocks)
    if largest == 0:
        assert pieces == tuple(blocks)
    else:
        assert max(pieces) <= largest
    edges = set(torch.tensor([0, *pieces]).cumsum(0).tolist())
    assert edges >= set(torch.tensor([0, *blocks]).cumsum(0).tolist())  # never across a block
    values = torch.arange(2.0 * 3 * sum(pieces)).view(2, 3, -1)
    there = [run.unfold(run.fold(values)) for run in runs(pieces)]
    assert torch.equal(torch.cat(there, -1), values)


def test_kernels_of_blocks_do_not_see_how_blocks_depend_on_each_other():
    """Codes with N(0, 1) marginals, correlated across blocks, against N(0, I).

    One kernel pulls on the correlation; a kernel a block finds nothing to do, as only marginals
    enter it. Hence encoders that condition one block on another are not for Stein directions.
    """
    sets, correlation = 4000, 0.8
    first, free = torch.randn(2, sets, 20, 1, dtype=torch.float64)
    second = correlation * first + (1 - correlation**2) ** 0.5 * free
    codes = torch.cat([first, second], -1)
    # how the correlation would change along the direction, in standard errors over sets
    pull = {}
    for blocks in ((2,), (1, 1)):
        direction = code_direction(
            codes, -codes, bandwidth="liu_wang", leave_one_out=True, blocks=blocks
        )
        rate = (direction * codes.flip(-1)).sum(-1) - correlation * (direction * codes).sum(-1)
        each = rate.mean(1)
        pull[blocks] = float(each.mean() / (each.std() / sets**0.5))
    assert pull[2,] < -20
    assert abs(pull[1, 1]) < 4


def test_smaller_blocks_have_less_noise():
    """Signal to noise, over documents, of the pull on codes that are a fifth too wide, S = 20."""
    ratio = {}
    for size in (10, 200):
        codes = 1.2 * torch.randn(100, 20, 200)
        direction = code_direction(
            codes, -codes, bandwidth="liu_wang", leave_one_out=True, blocks=(size,) * (200 // size)
        )
        pull = (direction * codes).mean(1)
        ratio[size] = float(-pull.mean() / pull.std())
    assert ratio[10] > 5 * ratio[200]


@pytest.mark.parametrize(("self_term", "statistic"), [("leave_one_out", "u"), ("include", "v")])
@pytest.mark.parametrize("largest", [0, 2])
def test_logged_discrepancy_is_the_sum_of_the_blocks(
    make_networks, pixels, largest, self_term, statistic
):
    """Of 5 codes in pieces of 2, 2 and 1, or in one; U where codes leave theirs out."""
    networks, noise = make_networks(codes=5), torch.randn(4, 6, 5).double()
    settings = {"code_particles": 6, "kernel_block": largest, "self_term": self_term}
    method = MethodConfig(theta_particles=1, bandwidth=0.7, **settings)  # type: ignore[arg-type]
    found = stein_vae(networks, Batch(pixels, noise, monitor=True), method, 100)
    codes = networks.encoder(pixels, noise).detach()
    score = code_scores(networks.model, networks.theta, codes, pixels)
    sizes = (2, 2, 1) if largest else (5,)
    expected = sum(
        kernel_stein_discrepancy(z, g, bandwidth=0.7, statistic=statistic).mean()
        for z, g in zip(codes.split(sizes, -1), score.split(sizes, -1), strict=True)
    )
    torch.testing.assert_close(found.stats["stein_discrepancy"], expected)
