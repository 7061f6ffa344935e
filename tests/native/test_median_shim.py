"""The exact median's CUDA C++ kernels on the emulated device, and the plans of its flow."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stein_kernels.gpu import median
from stein_kernels.testing import assert_relative_error, gaussian_problem, generator
from tests.native import cuda_shim
from tests.native.median_checks import MedianChecks, exact, midpoint, symmetric


@pytest.fixture(scope="module")
def kernels() -> Any:
    return cuda_shim.library()


class TestEmulated(MedianChecks):
    pass


@pytest.mark.parametrize("shape", [(1, 400, 3), (2, 500, 12)])
def test_sampled_sets(kernels, shape):
    """Enough pairs that the flow itself samples; one pass must do, or the plan is a poor one."""
    x = gaussian_problem(*shape).x
    chosen = median.plan(shape[0], shape[1], x.dtype)
    assert chosen.sample
    assert_relative_error(median.median_distance(kernels, x), exact(x), 2e-6)
    i, j = torch.triu_indices(shape[1], shape[1], 1)
    values = (x[:, i] - x[:, j]).square().sum(-1)
    matrix, once = symmetric(shape[1], values), chosen._replace(rounds=1)
    assert torch.equal(median.search(kernels, matrix, shape[1], True, once), midpoint(values))


def test_groups_of_stored_sets_begin_anywhere(kernels, monkeypatch):
    """An odd number of distances to a set: the second begins 100 bytes after a multiple of 16."""
    monkeypatch.setattr(median, "KEPT", 4 * median.BINS)
    assert median.plan(3, 25, torch.float32).sets == 1
    x = gaussian_problem(3, 25, 4).x
    i, j = torch.triu_indices(25, 25, 1)
    values = (x[:, i] - x[:, j]).square().sum(-1)
    found = median.median_of_distances(kernels, symmetric(25, values))
    assert torch.equal(found, midpoint(values))


def test_sampled_pairs_are_pairs_of_two(kernels):
    """Each squared distance names its pair: none of a particle with itself, all about as often."""
    m, size = 7, 2**14
    names = torch.arange(49.0).reshape(1, m, m)
    sample = torch.empty(1, size)
    kernels.median_sample(names, sample, m, True)
    counts = torch.bincount(sample[0].long(), minlength=49).reshape(m, m)
    assert not counts.tril().any()
    mean = size / 21
    drawn = counts[counts > 0]
    assert drawn.numel() == 21
    assert ((drawn - mean).abs() < 5 * mean**0.5).all()


@pytest.mark.parametrize(
    ("batch", "count", "megabytes"),
    [(1, 10**6, 130), (64, 5000, 250), (1, 10**5, 250), (8, 20000, 250), (4096, 400, 250)],
)
def test_workspace_is_bounded(batch, count, megabytes):
    """Bins, values and what sorting the samples takes, of the sets that are searched at once."""
    chosen = median.plan(batch, count, torch.float32)
    assert 0 < chosen.sets <= batch
    bins = chosen.rows * median.BINS
    of_set = 4 * bins * chosen.depth + 8 * bins + 28 * chosen.sample
    assert chosen.sets * of_set < megabytes * 2**20


def test_a_block_takes_many_tiles(kernels):
    """Eight blocks for the 28 tiles of 64 x 64 of each set, which float64 takes."""
    pairs = torch.rand(60, 400 * 399 // 2, generator=generator(), dtype=torch.float64)
    few = median.Plan(sample=0, rows=1, depth=0, rounds=6)
    actual = median.search(kernels, symmetric(400, pairs), 400, True, few)
    assert torch.equal(actual, midpoint(pairs))


def test_more_sets_than_are_searched_at_once(kernels, monkeypatch):
    x = gaussian_problem(5, 40, 3).x
    expected = median.median_distance(kernels, x)
    monkeypatch.setattr(median, "KEPT", 2 * 4 * median.BINS)
    assert median.plan(5, 40, x.dtype).sets == 2
    assert torch.equal(median.median_distance(kernels, x), expected)


@pytest.mark.parametrize(
    ("count", "dtype", "rounds"),
    [
        (100, torch.float32, 3),
        (100, torch.float64, 6),
        (1000, torch.float32, 4),
        (1000, torch.float64, 7),
    ],
)
def test_rounds(count, dtype, rounds):
    """31 or 63 bits by 11, and one for a sample that misled."""
    assert median.plan(1, count, dtype).rounds == rounds
