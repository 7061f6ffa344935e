"""The exact median in float32: the float64 median of the same coordinates, rounded."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import stein_kernels as sk
from stein_kernels import reference
from stein_kernels.testing import gaussian_problem, generator

FUSED = pytest.mark.parametrize("kernels", ["compiled", "composite", "cuda"], indirect=True)
COMPILED = pytest.mark.parametrize("kernels", ["compiled"], indirect=True)
ROUNDED = 3e-7  # relative: 2.5 units in the last place, of the sum of squares, its root, the result


def median(x):
    return sk.median_bandwidth(x, rule="median")


def midpoint(distances):
    ordered = distances.sort(-1).values
    pairs = ordered.shape[-1]
    return (ordered[..., (pairs - 1) // 2] + ordered[..., pairs // 2]) / 2


@FUSED
@pytest.mark.parametrize("shift", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("shape", [(64, 100, 50), (1024, 20, 32), (1, 1500, 50), (1, 20, 50000)])
def test_equals_the_float64_median(kernels, shape, shift):
    if kernels == "composite":
        shape = (min(shape[0], 32), min(shape[1], 200), min(shape[2], 5000))
    x = gaussian_problem(*shape, shift=shift).x
    exact = torch.stack([midpoint(torch.pdist(rows.double())) for rows in x])
    torch.testing.assert_close(median(x).double(), exact, rtol=ROUNDED, atol=0)


@COMPILED
@pytest.mark.parametrize("shape", [(10000, 16), (20000, 3)])
def test_rank_at_sizes_whose_distances_do_not_fit(kernels, shape):
    """Half the pairs lie below the median, counted in float64, 100 rows of the matrix at a time."""
    x = gaussian_problem(*shape).x
    m, wide = shape[0], x.double()
    claimed = median(x).item()
    limits = (claimed * (1 - ROUNDED)) ** 2, (claimed * (1 + ROUNDED)) ** 2
    counts = [-m, -m]  # the diagonal lies below
    squares = wide.square().sum(-1)
    rows = torch.empty(100, m, dtype=torch.float64)
    for start in range(0, m, 100):
        part = slice(start, start + 100)
        torch.matmul(wide[part], wide.T, out=rows)
        rows.mul_(-2).add_(squares).add_(squares[part, None])
        for k, limit in enumerate(limits):
            counts[k] += int((rows <= limit).count_nonzero())
    below, at_most = counts
    assert below <= m * (m - 1) // 2 <= at_most


@FUSED
@pytest.mark.parametrize("m", [2, 3, 4, 5, 6, 15, 16, 17, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("d", [1, 2, 7])
def test_odd_and_even_counts(kernels, m, d):
    x = gaussian_problem(3, m, d, seed=m).x
    exact = reference.median_distance(x.double())
    torch.testing.assert_close(median(x).double(), exact, rtol=ROUNDED, atol=0)


@FUSED
@pytest.mark.parametrize("levels", [2, 3, 10])
def test_ties(kernels, levels):
    """Whole numbers: distances repeat, and every one of them is exact in float32."""
    x = torch.randint(levels, (5, 60, 2), generator=generator(levels)).float()
    torch.testing.assert_close(
        median(x).double(), reference.median_distance(x.double()), rtol=ROUNDED, atol=0
    )


def tied(points: int, d: int, m: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """m particles at so many points of d coordinates, none of which float32 can square exactly."""
    g = generator(seed)
    return torch.randn(points, d, generator=g)[torch.randint(points, (m,), generator=g)].to(dtype)


TIES = {
    "two points, half each": lambda dtype: (
        torch.tensor([-1.0, 1.0]).repeat(2000)[:, None].to(dtype)
    ),
    **{
        f"{points} points of {d}, seed {seed}": partial(tied, points, d, 4000, seed)
        for points, d in ((2, 1), (2, 5), (3, 2), (3, 10), (9, 2), (25, 2))
        for seed in range(3)
    },
}


@COMPILED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TIES)
def test_ties_that_do_not_fit(kernels, name, dtype):
    """8 million pairs of a few distances: a single one has more pairs than are ever collected."""
    x = TIES[name](dtype)
    cells, held = x.double().unique(dim=0, return_counts=True)
    ordered_pairs = (held[:, None] * held - torch.diag(held)).flatten()
    values, order = (
        torch.cdist(cells, cells, compute_mode="donot_use_mm_for_euclid_dist").flatten().sort()
    )
    upper = ordered_pairs[order].cumsum(0)
    pairs = len(x) * (len(x) - 1) // 2
    ranks = 2 * torch.tensor([(pairs - 1) // 2, pairs // 2])
    low, high = values[torch.searchsorted(upper, ranks, right=True)]
    exact = (low + high) / 2
    exact = exact if exact > 0 else reference.median_distance(x.double())
    torch.testing.assert_close(median(x).double(), exact, rtol=ROUNDED, atol=0)


@FUSED
@pytest.mark.parametrize("scale", [1e-18, 1e-10, 1e10, 1e18])
def test_scales(kernels, scale):
    """1e18: squares stay below 3e38. 1e-18: squares are 1e-36, still normal numbers."""
    x = gaussian_problem(2, 33, 4).x * scale
    exact = reference.median_distance(x.double())
    torch.testing.assert_close(median(x).double(), exact, rtol=1e-6, atol=0)


@FUSED
def test_one_far_particle_does_not_move_the_median(kernels):
    """The range of distances is 1e12 times the median: a bracket by halving has to cope."""
    x = gaussian_problem(1, 50, 3).x
    x[0, 7] = 1e12
    exact = reference.median_distance(x.double())
    # centring on the mean of 2e10 costs the distances of the others their digits in float32
    relative = abs(median(x).item() / exact.item() - 1)
    assert relative <= 1e-6


@FUSED
def test_equal_particles_of_many_features(kernels):
    """All but two coincide: the root mean square of 400 features, which are summed in runs."""
    x = gaussian_problem(1, 400).x.repeat(9, 1)
    x[8] += gaussian_problem(1, 400, seed=1).x[0]
    torch.testing.assert_close(
        median(x).double(), reference.median_distance(x.double()), rtol=1e-6, atol=0
    )


@FUSED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_sets(kernels, dtype):
    sets = torch.zeros(4, 5, 2, dtype=dtype)
    sets[1, 4] = torch.tensor([3.0, 4.0])  # 6 of 10 pairs coincide
    sets[2] += 1e4  # all equal, far from the origin
    sets[3] = torch.arange(10).reshape(5, 2)
    exact = reference.median_distance(sets.double())
    assert exact[2] == 1
    torch.testing.assert_close(median(sets).double(), exact, rtol=ROUNDED, atol=0)


def test_median_takes_no_gradient(kernels):
    x = gaussian_problem(9, 2).x.requires_grad_()
    assert not sk.median_bandwidth(x).requires_grad


@FUSED
def test_the_op_itself_is_a_constant_for_autograd(kernels):
    x = gaussian_problem(2, 9, 2).x.requires_grad_()
    assert not torch.ops.stein_kernels.median_distance(x).requires_grad
