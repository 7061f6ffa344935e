"""Triton's launches of the exact median in the interpreter, through the flow."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stein_kernels.gpu.median import Plan, plan, search
from stein_kernels.testing import generator
from stein_kernels.triton import median as triton_median
from tests.native.median_checks import MedianChecks, midpoint, symmetric


class TestInterpreted(MedianChecks):
    @pytest.fixture
    def kernels(self) -> Any:
        return triton_median


@pytest.mark.parametrize("programs", [1, 2, 4, 7])
def test_a_program_takes_many_tiles(monkeypatch, programs):
    """The 15 tiles of 64 x 64 among a few programs."""
    monkeypatch.setattr(triton_median, "PROGRAMS", programs)
    pairs = torch.rand(1, 300 * 299 // 2, generator=generator())
    few = Plan(sample=0, rows=1, depth=0, rounds=3)
    actual = search(triton_median, symmetric(300, pairs), 300, True, few)
    assert torch.equal(actual, midpoint(pairs))


@pytest.mark.parametrize("batch", [1, 4, 5, 64, 4096])
@pytest.mark.parametrize("count", [2, 100, 363, 5000, 20000, 100000, 10**6, 10**7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_plan_has_its_specialisation(batch, count, dtype):
    chosen = plan(batch, count, dtype)
    listed = triton_median.SHAPES["fp64" if dtype == torch.float64 else "fp32"]
    assert (chosen.rows, chosen.depth) in listed
