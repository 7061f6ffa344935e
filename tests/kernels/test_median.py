"""The bandwidth rules of the specification, against numpy and the conventions of other packages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stein_kernels import _composite, reference
from stein_kernels.testing import gaussian_problem


def distances(x):
    """The M(M-1)/2 distances of i < j."""
    x = np.asarray(x, dtype=np.float64)
    i, j = np.triu_indices(len(x), 1)
    return np.sqrt(np.square(x[i] - x[j]).sum(-1))


@pytest.mark.parametrize("m", [2, 3, 4, 5, 16, 17, 40])
def test_median_is_the_midpoint_median_over_distinct_pairs(m):
    x = gaussian_problem(3, m, 5, dtype=torch.float64, seed=m).x
    expected = [np.median(distances(rows)) for rows in x]
    np.testing.assert_allclose(reference.median_distance(x), expected, rtol=1e-14)


def test_rules():
    x = gaussian_problem(20, 4, dtype=torch.float64).x
    med = np.median(distances(x))
    rules = {"liu_wang": med**2 / math.log(21), "median": med, "median_squared": med**2}
    assert set(rules) == set(reference.RULES)
    for rule, expected in rules.items():
        assert reference.median_bandwidth(x, rule=rule).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], 1.0),
        ([[3.0, 4.0]], 1.0),
        ([[3.0, 4.0]] * 5, 1.0),
        ([[0.0, 0.0]] * 4 + [[3.0, 4.0]], math.sqrt(4 * 25 / 10)),  # 6 of 10 pairs coincide
        ([[0.0, 0.0]] * 2 + [[3.0, 4.0]], 5.0),  # 1 of 3 coincides: an ordinary set
        ([[0.0, 0.0]] * 3 + [[3.0, 4.0]], 2.5),  # 3 of 6: the midpoint of 0 and 5
    ],
)
def test_degenerate_sets_have_a_positive_bandwidth(rows, expected):
    x = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)
    assert reference.median_distance(x).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("m", [1, 2, 9])
def test_a_coordinate_that_is_not_finite_gives_nan(bad, m):
    x = gaussian_problem(2, m, 3, dtype=torch.float64).x
    x[1, 0, 2] = bad
    median = reference.median_distance(x)
    assert median[0].isfinite()
    assert median[1].isnan()


# --- the same set under the rules of other packages: the factor for a user who changes over


@pytest.fixture
def cloud():
    return gaussian_problem(100, 32, dtype=torch.float64, seed=3).x.numpy()


def all_pairs(x):
    return np.sqrt(np.square(x[:, None] - x[None]).sum(-1))


def ours(x):
    return reference.median_bandwidth(torch.from_numpy(x)).item()


def test_original_svgd_counts_the_zeros_of_the_diagonal(cloud):
    """Liu & Wang's code: med over all M^2 squared distances, h = sqrt(med / 2 / log(M+1)), and
    k = exp(-r^2 / 2 h^2), so its bandwidth here is 2 h^2. Smaller, by less than 2 % at M = 100."""
    h = math.sqrt(0.5 * np.median(all_pairs(cloud) ** 2) / math.log(101))
    assert 0.98 < 2 * h**2 / ours(cloud) < 1.0


def test_original_svgd_differs_most_for_two_particles():
    """All four pairs count: two zeros, so the median of squares is half the squared distance."""
    x = np.array([[0.0, 0.0], [3.0, 4.0]])
    original = np.median(all_pairs(x) ** 2) / math.log(3)
    assert original / ours(x) == pytest.approx(0.5)


def test_blackjax_has_log_m(cloud):
    """blackjax.vi.svgd: distances over i < j, midpoint, divided by log M instead of log(M + 1)."""
    theirs = np.median(distances(cloud)) ** 2 / math.log(100)
    assert theirs / ours(cloud) == pytest.approx(math.log(101) / math.log(100), rel=1e-13)


def test_numpyro_has_log_m_and_the_diagonal(cloud):
    theirs = np.median(all_pairs(cloud)) ** 2 / math.log(100)
    assert 0.98 < theirs / ours(cloud) * math.log(100) / math.log(101) < 1.0


def test_lower_median_of_squares_is_below_the_midpoint():
    """torch.median takes the lower middle: with 6 distances 1..6 on a line it is 9, not 3.5^2."""
    x = torch.tensor([[0.0], [1.0], [4.0], [6.0]]).double()  # distances 1 2 3 4 5 6
    lower = torch.pdist(x).square().median()
    assert lower.item() == 9.0
    assert reference.median_bandwidth(x, rule="median_squared").item() == 3.5**2


def test_gamma_and_sigma_of_other_libraries(cloud):
    """scikit-learn: exp(-gamma r^2), gamma = 1/h. Falkon: exp(-r^2 / 2 s^2), s^2 = h/2."""
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    h = ours(cloud)
    gram = reference.rbf_gram(torch.from_numpy(cloud)).numpy()
    np.testing.assert_allclose(gram, pairwise.rbf_kernel(cloud, gamma=1 / h), rtol=1e-12)
    sigma = math.sqrt(h / 2)
    np.testing.assert_allclose(gram, np.exp(-(all_pairs(cloud) ** 2) / (2 * sigma**2)), rtol=1e-12)


@pytest.mark.parametrize("chunk", [2**22, 50], ids=["held", "counted"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("m", [2, 3, 4, 12, 33])
@pytest.mark.parametrize("values", ["all", "few", "one"])
def test_torch_kernels_hold_the_pairs_or_count_their_bits(monkeypatch, chunk, dtype, m, values):
    """Ties, sets of one value, and one with a coordinate that is not finite, in one batch."""
    monkeypatch.setattr(_composite, "CHUNK", chunk)
    x = gaussian_problem(4, m, 3, dtype=dtype, seed=m).x
    x[1] *= 1e-9
    x[2, 1:] = {"all": x[2, 1:], "few": x[2, 1:].round(), "one": x[2, :1]}[values]
    x[3, 0, 0] = math.nan
    assert _composite.median_distance(x[:0]).shape == (0,)
    exact = reference.median_distance(x.double()).to(dtype)
    tolerance = 1e-14 if dtype == torch.float64 else 2e-7
    torch.testing.assert_close(
        _composite.median_distance(x), exact, rtol=tolerance, atol=0, equal_nan=True
    )
