"""Triton's launches of the exact median in the interpreter, through the flow."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stein_kernels.gpu.median import plan
from stein_kernels.triton import median as triton_median
from tests.native.median_checks import MedianChecks


class TestInterpreted(MedianChecks):
    @pytest.fixture
    def kernels(self) -> Any:
        return triton_median


@pytest.mark.parametrize("batch", [1, 4, 5, 64, 4096])
@pytest.mark.parametrize("count", [2, 100, 363, 5000, 20000, 100000, 10**6, 10**7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_plan_has_its_specialisation(batch, count, dtype):
    chosen = plan(batch, count, dtype)
    listed = triton_median.SHAPES["fp64" if dtype == torch.float64 else "fp32"]
    assert (chosen.rows, chosen.depth) in listed
