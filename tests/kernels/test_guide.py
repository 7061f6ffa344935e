"""The code of the guide runs as it is printed, and gives what is said of it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch.func import vmap

pytest.importorskip("sklearn", reason="the guide's data come with scikit-learn")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "svgd.md"


@pytest.fixture(scope="module")
def guide() -> dict:
    """What the page's code leaves behind."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    names: dict = {"__name__": "guide"}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_posterior_of_the_logistic_regression(guide):
    """Within a tenth of what long chains have, the first parameter's skew aside."""
    chains = torch.tensor([0.545, 0.247, 0.270, 0.205])
    ratio = guide["theta"].detach().std(0) / chains
    assert ((ratio > 0.85) & (ratio < 1.15)).all(), ratio
    assert 0 < guide["discrepancy"] < 0.5


def test_networks_have_learned(guide):
    others = slice(300, None)
    with torch.no_grad():
        found = vmap(guide["predict"], in_dims=(0, None))(guide["rows"], guide["inputs"][others])
    apart = guide["outputs"][others] - found.mean(0)
    assert apart.square().mean().sqrt() < 0.8  # 1 is the mean of all


@pytest.mark.parametrize(
    ("width", "variance", "correlation"), [(10, 0.62, 0.91), (2, 0.93, 0.80), (1, 0.43, 0.23)]
)
def test_kernels_of_blocks_keep_the_width(guide, width, variance, correlation):
    """Pairs of N(0, 1) correlated by 0.8, in ten dimensions."""
    pair = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    precision = torch.block_diag(*[torch.linalg.inv(pair)] * 5)
    x = 2 * torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    square, steps = torch.zeros_like(x), 3000
    for step in range(steps):
        phi = guide["block_direction"](x, -x @ precision, width)
        square = 0.95 * square + 0.05 * phi.square()
        rate = 0.05 * (1 + math.cos(math.pi * step / steps))
        x = x + rate * phi / (square.sqrt() + 1e-8)
    found = torch.cov(x.T, correction=0)
    assert found.diagonal().mean().item() == pytest.approx(variance, abs=0.03)
    between = found[0::2, 1::2].diagonal().mean() / found.diagonal().mean()
    assert between.item() == pytest.approx(correlation, abs=0.05)
