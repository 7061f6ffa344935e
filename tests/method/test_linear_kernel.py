"""The codes' direction by a linear kernel: moments of the other codes, whatever the dimension."""

from __future__ import annotations

import pytest
import torch

from stein_kernels import median_bandwidth
from steinvae.config import MethodConfig
from steinvae.gradients import within_variance
from steinvae.stein import code_direction, linear_direction
from tests.method.test_summed_kernel import assert_settles_at_the_target


def test_direction_is_the_formula():
    codes, score = torch.randn(2, 7, 3).double(), torch.randn(2, 7, 3).double()
    variance = torch.tensor([0.5, 1.0, 3.0]).double()
    expected = torch.zeros_like(codes)
    for b in range(2):
        for j in range(7):
            others = [i for i in range(7) if i != j]
            z, g = codes[b, others], score[b, others]
            apart = (codes[b, j] - z.mean(0)) / variance
            covariance = (g - g.mean(0)).mT @ (z - z.mean(0)) / 5
            expected[b, j] = g.mean(0) + (covariance + torch.eye(3).double()) @ apart
    got = linear_direction(codes, score, variance)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_it_is_the_stein_direction_of_its_kernel():
    """Sums over i != j of k(z_i, z_j) g_i + grad_i k(z_i, z_j), m and the divisors the others'."""
    codes, score = torch.randn(1, 6, 2).double(), torch.randn(1, 6, 2).double()
    got = linear_direction(codes, score, torch.ones(2).double())
    for j in range(6):
        others = [i for i in range(6) if i != j]
        z, g = codes[0, others].requires_grad_(), score[0, others]
        middle, own = z.detach().mean(0), codes[0, j]
        k = 1 + 5 / 4 * (z - middle) @ (own - middle)  # n / (n - 1): the sample covariance
        (repulsion,) = torch.autograd.grad(k.sum(), z)
        total = (k[:, None] * g).mean(0) + 4 / 5 * repulsion.mean(0)
        torch.testing.assert_close(got[0, j], total.detach(), rtol=1e-10, atol=1e-10)


def test_the_fixed_point_is_a_target_whose_dimensions_depend():
    assert_settles_at_the_target(
        lambda codes, score: linear_direction(codes, score, within_variance(codes))
    )


def test_codes_that_are_narrow_somewhere_are_seen_in_many_dimensions():
    """Narrow along (1, ..., 1) alone of 100 dimensions, which no marginal shows: mean over sd, over
    400 sets of 50, of what widens them there, beside that of a kernel of distances."""
    codes = torch.randn(400, 50, 100)
    along = torch.full((100,), 0.1)
    codes = codes - 0.8 * (codes @ along)[..., None] * along
    joint = code_direction(
        codes, -codes, bandwidth=median_bandwidth(codes).mean().item(), leave_one_out=True
    )
    ratios = []
    for direction in (joint, linear_direction(codes, -codes, within_variance(codes))):
        widens = ((direction @ along) * (codes @ along)).mean(1)
        ratios.append((widens.mean() / widens.std()).item())
    assert ratios[1] > 2
    assert ratios[1] > 2 * abs(ratios[0])


def test_it_moves_with_its_codes():
    """The same for codes somewhere else, in another order, or measured in other units."""
    codes, score = torch.randn(3, 8, 4).double(), torch.randn(3, 8, 4).double()
    variance = within_variance(codes)
    expected = linear_direction(codes, score, variance)
    torch.testing.assert_close(linear_direction(codes + 7, score, variance), expected)
    order = torch.randperm(8)
    permuted = linear_direction(codes[:, order], score[:, order], variance)
    torch.testing.assert_close(permuted, expected[:, order])
    units = torch.tensor([0.1, 1.0, 3.0, 50.0]).double()
    scaled = codes * units
    rescaled = linear_direction(scaled, score / units, within_variance(scaled))
    torch.testing.assert_close(rescaled, expected / units)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"method\.self_term must be leave_one_out .* linear"):
        MethodConfig(kernel="linear", self_term="include")
    with pytest.raises(ValueError, match=r"method\.code_particles must be at least 4"):
        MethodConfig(kernel="linear", code_particles=3)
    MethodConfig(name="stein_viwae", kernel="linear", code_particles=1, importance_samples=4)
    with pytest.raises(ValueError, match=r"method\.kernel must be joint"):
        MethodConfig(name="stein_viwae", kernel="linear", weights="z")
