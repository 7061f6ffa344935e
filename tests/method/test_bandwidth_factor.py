"""A factor on the rule of the codes' bandwidth: direction, discrepancy and monitor share h."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stein_kernels import median_bandwidth
from steinvae.config import MethodConfig
from steinvae.gradients import Batch
from steinvae.objectives import stein_viwae
from steinvae.stein import code_bandwidth, code_direction


def test_direction_is_the_formula_with_the_scaled_bandwidth():
    codes, score = torch.randn(2, 5, 3).double(), torch.randn(2, 5, 3).double()
    got = code_direction(
        codes, score, bandwidth=code_bandwidth(codes, "liu_wang", 4.0), leave_one_out=True
    )
    expected = torch.zeros_like(codes)
    for b in range(2):
        h = 4 * torch.pdist(codes[b]).quantile(0.5) ** 2 / torch.tensor(6.0).double().log()
        for j in range(5):
            for i in {0, 1, 2, 3, 4} - {j}:
                apart = codes[b, j] - codes[b, i]
                kernel = torch.exp(-apart.square().sum() / h)
                expected[b, j] += kernel * (score[b, i] + 2 / h * apart) / 4
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_factor_one_hands_the_rule_on_and_a_number_is_h():
    codes = torch.randn(2, 5, 3)
    assert code_bandwidth(codes, "median") == "median"
    assert code_bandwidth(codes, 0.5) == 0.5


@pytest.mark.parametrize("weights", ["theta", "both"])
@pytest.mark.parametrize("groups", [1, 3])
def test_update_and_monitor_use_one_bandwidth(make_networks, pixels, weights, groups):
    """For one image a factor on the rule is a number for h: gradients and statistics agree."""
    ruled = MethodConfig(
        name="stein_viwae",
        theta_particles=1,
        code_particles=groups,
        importance_samples=4,
        weights=weights,
        bandwidth_factor=3.0,
    )
    networks = make_networks()
    noise = torch.randn(1, 4 * groups, 2).double()
    batch = Batch(pixels[:1], noise, monitor=True, compare=True)
    with torch.no_grad():
        h = 3 * median_bandwidth(networks.encoder(pixels[:1], noise)).item()
    numbered = replace(ruled, bandwidth=h, bandwidth_factor=1.0)
    got, expected, narrow = (
        stein_viwae(networks, batch, method, 100)
        for method in (ruled, numbered, replace(ruled, bandwidth_factor=1.0))
    )
    torch.testing.assert_close(got.eta, expected.eta, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(got.theta, expected.theta, rtol=0, atol=0)
    assert "direction_cosine_field" in got.stats
    for name in ("direction", "stein_discrepancy", "field_cosine_score"):
        torch.testing.assert_close(got.stats[name], expected.stats[name], rtol=1e-8, atol=1e-10)
        assert abs(got.stats[name] - narrow.stats[name]) > 1e-6, name


def test_the_fixed_point_is_the_target_for_a_flatter_kernel():
    """Codes redrawn from N(0, I), the target: the mean leave-one-out direction is zero.

    Within five standard errors of 4,000 sets, with the mean of their bandwidths as h of all (an h
    that depends on the codes adds a bias of order 1/S); not zero where the codes are too narrow.
    """
    exact = torch.randn(4000, 10, 4).double()
    for spread, settled in ((1.0, True), (0.7, False)):
        codes = spread * exact
        h = code_bandwidth(codes, "liu_wang", 4.0)
        assert isinstance(h, torch.Tensor)
        h = h.mean().item()
        direction = code_direction(codes, -codes, bandwidth=h, leave_one_out=True)
        outward = (direction * exact).sum(-1).mean(1)  # along the code: does the spread grow?
        error = outward.std() / len(outward) ** 0.5
        assert (outward.mean().abs() < 5 * error) == settled
