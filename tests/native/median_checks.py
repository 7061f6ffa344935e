"""What the launches of the exact median must get right, over either backend's kernels.

A test class inherits ``MedianChecks`` and gives it a fixture ``kernels``, the launches.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stein_kernels import reference
from stein_kernels.gpu import median
from stein_kernels.gpu.median import HIGH, LOW, STATUS, Plan
from stein_kernels.testing import assert_relative_error, gaussian_problem, generator

ROUNDED = 3e-7  # of a sum over features in another order, and of the result
FEW = Plan(sample=0, rows=1, depth=0, rounds=3)
SAMPLED = Plan(sample=256, rows=1, depth=64, rounds=4)
SHARED = Plan(sample=256, rows=4, depth=64, rounds=4)
TINY = Plan(sample=256, rows=1, depth=1, rounds=4)
PLANS = {"few": FEW, "sampled": SAMPLED, "shared": SHARED, "tiny": TINY}
WIDE = {torch.float32: 0, torch.float64: 3}  # more rounds, for 63 bits
ABOVE = median.bits_above_all(torch.float32)


def run(kernels, x: Tensor, plan: Plan, bracket: tuple[int, int] | None = None) -> Tensor:
    """The midpoint median of (B, M, d) under a plan, without the rules for degenerate sets."""
    cloud = median.pack(x)
    cloud[..., x.shape[1] :] = math.nan
    return _search(kernels, cloud, x.shape[1], False, plan, bracket)


def run_stored(kernels, squared: Tensor, plan: Plan, bracket: tuple[int, int] | None = None):
    return _search(kernels, squared, squared.shape[1], True, plan, bracket)


def _search(kernels, points, count, stored, plan, bracket):
    ends = None
    if bracket is not None:
        b = points.shape[0]
        ends = torch.full((b,), bracket[0]), torch.full((b,), bracket[1])
    plan = plan._replace(rounds=plan.rounds + WIDE[points.dtype])
    return median.search(kernels, points, count, stored, plan, ends)


def midpoint(squared: Tensor) -> Tensor:
    """From all squared distances (B, P): what a search has to return, bit for bit."""
    ordered = squared.sort(1).values.double().sqrt()
    pairs = squared.shape[1]
    return ((ordered[:, (pairs - 1) // 2] + ordered[:, pairs // 2]) / 2).to(squared.dtype)


def symmetric(m: int, values: Tensor) -> Tensor:
    """Matrices (B, M, M) that hold values (B, M(M-1)/2) above the diagonal, NaN elsewhere."""
    matrix = values.new_full((values.shape[0], m, m), math.nan)
    i, j = torch.triu_indices(m, m, 1)
    matrix[:, i, j] = values
    return matrix


def bits(value: float) -> int:
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))


def exact(x: Tensor) -> Tensor:
    return reference.median_distance(x.double())


class MedianChecks:
    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
    @pytest.mark.parametrize("m", [2, 3, 4, 5, 63, 65, 128, 130])
    def test_of_points(self, kernels, m, plan):
        x = gaussian_problem(2, m, 3, seed=m).x
        assert_relative_error(run(kernels, x, plan), exact(x), ROUNDED)

    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("m", [2, 3, 4, 17, 66, 129])
    def test_of_stored_distances_bit_for_bit(self, kernels, m, dtype, plan):
        pairs = m * (m - 1) // 2
        values = torch.rand(2, pairs, generator=generator(m), dtype=dtype)
        values[1] = values[1] ** 40  # over many powers of two
        actual = run_stored(kernels, symmetric(m, values), plan)
        assert torch.equal(actual, midpoint(values))

    @pytest.mark.parametrize("d", [1, 2, 8, 9, 17, 130])
    @pytest.mark.parametrize("shift", [0.0, 1e4])
    def test_features(self, kernels, d, shift):
        x = gaussian_problem(1, 70, d, shift=shift).x
        assert_relative_error(median.median_distance(kernels, x), exact(x), ROUNDED)

    @pytest.mark.parametrize("m", [1, 2, 7, 63, 64, 65, 129])
    def test_sizes_of_the_whole_flow(self, kernels, m):
        x = gaussian_problem(3, m, 2, seed=m).x
        assert_relative_error(median.median_distance(kernels, x), exact(x), ROUNDED)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_dtypes(self, kernels, dtype):
        x = gaussian_problem(2, 66, 5, dtype=dtype).x
        actual = median.median_distance(kernels, x)
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_relative_error(actual, exact(x), 1e-14 if dtype == torch.float64 else ROUNDED)

    @pytest.mark.parametrize("scale", [1e-18, 1e-15, 1e15, 1e18])
    def test_units_of_length(self, kernels, scale):
        x = gaussian_problem(1, 33, 4).x * scale
        assert_relative_error(median.median_distance(kernels, x), exact(x), 1e-6)

    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
    @pytest.mark.parametrize("levels", [2, 3, 10])
    def test_ties(self, kernels, levels, plan):
        """Few distinct distances, exact in float32: whole bins of one value."""
        x = torch.randint(levels, (2, 90, 3), generator=generator(levels)).float()
        i, j = torch.triu_indices(90, 90, 1)
        expected = midpoint((x[:, i] - x[:, j]).square().sum(-1))
        assert torch.equal(run(kernels, x, plan), expected)

    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
    def test_ranks_on_either_side_of_a_gap(self, kernels, plan):
        """Even counts, half of them one value: the midpoint lies far from every distance."""
        values = torch.ones(3, 120 * 119 // 2)
        values[0, ::2] = 1e-30
        values[1, ::2] = 1.0 + 2**-23
        values[2, ::2] = math.inf
        assert torch.equal(run_stored(kernels, symmetric(120, values), plan), midpoint(values))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_values_that_differ_in_the_last_bit(self, kernels, dtype):
        """Every round is needed: the bins of the rounds before hold all values together."""
        eps = torch.finfo(dtype).eps
        values = 1 + eps * torch.randint(64, (1, 3003), generator=generator()).to(dtype)
        matrix, expected = symmetric(78, values), midpoint(values)
        for plan in (FEW, TINY):
            assert torch.equal(run_stored(kernels, matrix, plan), expected)
        short = FEW._replace(rounds=2)
        assert not torch.equal(run_stored(kernels, matrix, short), expected)

    def test_heavy_tails(self, kernels):
        draw = torch.randn(2, 80, 2, generator=generator(), dtype=torch.float64)
        x = (draw[:, :, :1] / draw[:, :, 1:]).pow(5).float()
        for plan in (FEW, SAMPLED):
            assert_relative_error(run(kernels, x, plan), exact(x), 1e-6)

    @pytest.mark.parametrize("rows", [1, 4])
    @pytest.mark.parametrize("depth", [0, 1, 64])
    def test_any_bracket_gives_the_same(self, kernels, rows, depth):
        """Brackets that miss on either side, are empty, split the ranks, or hold everything."""
        values = torch.rand(1, 1770, generator=generator(3)) * 4
        matrix, expected = symmetric(60, values), midpoint(values)
        first, second = (bits(float(v)) for v in values.sort(1).values[0, [884, 885]])
        plan = Plan(0, rows, depth, 4)
        ends = [0, 1, bits(0.5), first, first + 1, second, second + 1, bits(3.0), ABOVE - 1]
        for k, low in enumerate(ends):
            for high in (*ends[k : k + 4 : 2], ABOVE):
                actual = run_stored(kernels, matrix, plan, (low, high))
                assert torch.equal(actual, expected), (low, high)

    def test_a_bracket_above_zeros(self, kernels):
        """Most pairs coincide: the search has to come down to the bits of 0."""
        values = torch.rand(1, 435, generator=generator())
        values[0, ::2] = 0
        values[0, 1] = 0
        for low in (1, bits(0.5), ABOVE - 1):
            assert run_stored(kernels, symmetric(30, values), FEW, (low, ABOVE)) == 0

    def test_more_inside_than_any_list_takes(self, kernels):
        """A bracket around everything with room in its bins: 11175 pairs in tiles at once."""
        x = gaussian_problem(1, 150, 2).x
        i, j = torch.triu_indices(150, 150, 1)
        values = (x[:, i] - x[:, j]).square().sum(-1)
        plan = Plan(0, 1, 512, 4)
        actual = run_stored(kernels, symmetric(150, values), plan, (0, ABOVE))
        assert torch.equal(actual, midpoint(values))
        low, high = bits(float(midpoint(values).square() / 4)), bits(3e38)
        assert_relative_error(run(kernels, x, plan, (low, high)), midpoint(values), ROUNDED)

    def test_sets_of_a_batch_are_apart(self, kernels):
        """Scales of every size, one set with ties, in a batch and alone: the same bits."""
        x = gaussian_problem(5, 66, 3).x
        x *= torch.tensor([1e-3, 1.0, 1e5, 1.0, 1e-9])[:, None, None]
        x[3] = x[3].round()
        together = median.median_distance(kernels, x)
        alone = torch.cat([median.median_distance(kernels, rows[None]) for rows in x])
        assert torch.equal(together, alone)
        assert_relative_error(together / exact(x), torch.ones(5), ROUNDED)

    @pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's
    @pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
    def test_a_coordinate_that_is_not_finite_spoils_its_own_set(self, kernels, bad):
        x = gaussian_problem(3, 40, 3).x
        spoiled = x.clone()
        spoiled[1, 7, 2] = bad
        actual = median.median_distance(kernels, spoiled)
        assert actual[1].isnan()
        assert torch.equal(actual[[0, 2]], median.median_distance(kernels, x)[[0, 2]])
        assert median.median_distance(kernels, spoiled[1:2, 7:8]).isnan()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_degenerate_sets(self, kernels, dtype):
        sets = torch.zeros(6, 5, 2, dtype=dtype)
        sets[1, 4] = torch.tensor([3.0, 4.0])  # 6 of 10 pairs coincide
        sets[2] += 0.1  # all equal
        sets[3] = torch.arange(10).reshape(5, 2)
        sets[4, 3:] = torch.tensor([3.0, 4.0])  # 4 of 10 coincide: an ordinary set
        sets[5, 4] = 1e-15
        actual = median.median_distance(kernels, sets)
        expected = exact(sets)
        assert (actual[:3] == torch.tensor([1.0, expected[1], 1.0]).to(dtype)).all()
        torch.testing.assert_close(actual.double(), expected, rtol=ROUNDED, atol=0)

    def test_strides_of_any_kind(self, kernels):
        x = gaussian_problem(2, 40, 6).x
        strided = x.repeat_interleave(2, 2).mT.contiguous().mT[..., ::2]
        assert not strided.is_contiguous()
        expected = median.median_distance(kernels, x)
        assert torch.equal(median.median_distance(kernels, strided), expected)

    def test_stored_distances_with_their_fallback(self, kernels):
        x = torch.zeros(2, 9, 2)
        x[1] = gaussian_problem(9, 2).x
        squared = (x[:, :, None] - x[:, None]).square().sum(-1)
        fallback = torch.tensor([7.0, 8.0])
        actual = median.median_of_distances(kernels, squared, fallback)
        assert actual[0] == 7
        assert_relative_error(actual[1], exact(x[1]), ROUNDED)
        assert median.median_of_distances(kernels, squared)[0] == 0
        alone = median.median_of_distances(kernels, squared[:, :1, :1], fallback)
        assert torch.equal(alone, fallback)
        assert median.median_distance(kernels, x[:0]).shape == (0,)

    def test_counts_beyond_32_bits(self, kernels):
        """The counts of 1e6 particles, 5e11 pairs, as a pass would leave them."""
        count, low, width = 10**6, bits(2.0), 4
        pairs = count * (count - 1) // 2
        state = torch.zeros(2, median.FIELDS, dtype=torch.int64)
        state[:, LOW], state[:, HIGH] = low, low + width * median.BINS
        histogram = torch.zeros(2, 32, median.BINS, dtype=torch.int64)
        histogram[0, :, 10:13] = 2**30  # 2^35 a bin
        state[0, median.BELOW] = pairs // 2 - 2**35 - 2**34
        histogram[1, :, 10] = pairs // 64  # half of the pairs: the second rank is in bin 20
        histogram[1, :, 20] = pairs // 64
        state[1, median.BELOW] = pairs // 2 - histogram[1, :, 10].sum()
        kernels.median_refine(state, histogram, torch.empty(2, 32, median.BINS, 64), count)
        assert state[0, [LOW, HIGH]].tolist() == [low + 11 * width, low + 12 * width]
        assert state[1, [LOW, STATUS]].tolist() == [low + 11 * width, median.SEPARATED]
        assert not histogram.any()
        assert not state[:, median.BELOW].any()
