"""The code of the guide and of the README runs as it is printed, and gives what is said of it."""

from __future__ import annotations

import re

import pytest
import torch
from torch.func import vmap

from bench.guide import (
    BLOCKS,
    DISCREPANCY,
    NETWORKS,
    PAGE,
    POSTERIOR,
    pairs,
    run_page,
    settled,
    width,
)

BY_HAND = BLOCKS + 1

pytest.importorskip("sklearn", reason="the guide's data come with scikit-learn")


@pytest.fixture(scope="module")
def guide() -> dict:
    return run_page(POSTERIOR, DISCREPANCY, NETWORKS, BLOCKS)


def test_posterior_of_the_logistic_regression(guide):
    """Within 15 % of what long chains have."""
    chains = torch.tensor([0.545, 0.247, 0.270, 0.205])
    ratio = guide["theta"].detach().std(0) / chains
    assert ((ratio > 0.85) & (ratio < 1.15)).all(), ratio
    assert 0 < guide["discrepancy"] < 0.5


def test_by_hand_it_is_the_same_posterior(guide):
    names = run_page(BY_HAND, names=dict(guide))
    chains = torch.tensor([0.545, 0.247, 0.270, 0.205])
    ratio = names["theta"].std(0) / chains
    assert ((ratio > 0.85) & (ratio < 1.15)).all(), ratio


def test_networks_have_learned(guide):
    others = slice(300, None)
    with torch.no_grad():
        found = vmap(guide["predict"], in_dims=(0, None))(guide["rows"], guide["inputs"][others])
    apart = guide["outputs"][others] - found.mean(0)
    assert apart.square().mean().sqrt() < 0.8  # 1 is the mean of all


@pytest.mark.parametrize(
    ("wide", "variance", "correlation"), [(10, 0.62, 0.91), (2, 0.93, 0.80), (1, 0.44, 0.27)]
)
def test_kernels_of_blocks_keep_the_width(guide, wide, variance, correlation):
    """Pairs of N(0, 1) correlated by 0.8, in ten dimensions."""
    x = settled(lambda x, score: guide["block_direction"](x, score, wide), pairs(10), 100)
    found = width(x)
    assert found[0] == pytest.approx(variance, abs=0.03)
    assert found[1] == pytest.approx(correlation, abs=0.05)


@pytest.mark.parametrize("particles", [2, 21, 100])
def test_readme_says_in_torch_what_the_op_computes(particles):
    readme = PAGE.parents[1] / "README.md"
    use, meaning = re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(use, str(readme), "exec"), names)
    assert names["x"].var(0).mean().item() == pytest.approx(1, abs=0.1)
    names |= {key: torch.randn(particles, 3, dtype=torch.float64) for key in ("x", "grad")}
    exec(compile(meaning, str(readme), "exec"), names)
    expected = names["svgd_direction"](names["x"], names["grad"])
    torch.testing.assert_close(names["phi"], expected, rtol=1e-10, atol=1e-12)
