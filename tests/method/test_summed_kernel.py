"""The codes' direction by a sum of kernels, and in the units of distance of an encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stein_kernels import median_bandwidth
from steinvae.config import MethodConfig
from steinvae.gradients import Batch
from steinvae.objectives import stein_vae
from steinvae.stein import code_direction, code_scores, summed_direction


def summed(codes, score, h_joint, h_single):
    joint = code_direction(codes, score, bandwidth=h_joint, leave_one_out=True)
    return summed_direction(
        codes, score, joint, bandwidth=h_single, joint_bandwidth=h_joint, leave_one_out=True
    )


def test_direction_is_the_formula():
    codes, score = torch.randn(2, 4, 3).double(), torch.randn(2, 4, 3).double()
    got = summed(codes, score, 1.5, 0.7)
    expected = torch.zeros_like(codes)
    for b in range(2):
        apart = codes[b][:, None] - codes[b][None]
        k = torch.exp(-apart.square().sum(-1) / 1.5)
        mean = (k.sum() - 4) / 12
        for j in range(4):
            for i in {0, 1, 2, 3} - {j}:
                step = codes[b, j] - codes[b, i]
                joint = k[i, j] * (score[b, i] + 2 / 1.5 * step) / mean
                single = torch.exp(-step.square() / 0.7) * (score[b, i] + 2 / 0.7 * step)
                expected[b, j] += (joint + single) / 3
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_small_kernel_values_are_not_lost_beside_the_diagonal():
    """k is 1e-6 and less between codes; the mean over pairs is as exact as they are."""
    codes, score = torch.randn(4, 10, 50), torch.randn(4, 10, 50)
    got = summed(codes, score, 5.0, 0.7)
    exact = summed(codes.double(), score.double(), 5.0, 0.7)
    torch.testing.assert_close(got.double(), exact, rtol=1e-3, atol=1e-4)
    assert summed(100 * codes, score, 5.0, 0.7).isfinite().all()  # where every k is 0


def test_one_code_has_no_pairs():
    with pytest.raises(ValueError, match=r"method\.code_particles .*at least 2 .*kernel sum"):
        MethodConfig(kernel="sum", self_term="include", code_particles=1)


def correlated(sets: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard normal draws, and the factor that makes them draws of N(0, C)."""
    factor = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, -0.5, 0.3]]).double()
    return torch.randn(sets, count, 3).double(), factor


def assert_settles_at_the_target(direction_of):
    """Codes drawn from the target N(0, C): the mean direction is zero within five standard errors
    of 4,000 sets. It is not where one dimension alone is too narrow, nor where the marginals are
    right and the correlations are gone."""
    noise, factor = correlated(4_000, 10)
    inverse = torch.linalg.inv(factor @ factor.T)
    spread = (factor @ factor.T).diagonal().sqrt()
    narrow = torch.tensor([1.0, 0.6, 1.0]).double()
    drawn = noise @ factor.T
    for codes, settled in ((drawn, True), (drawn * narrow, False), (noise * spread, False)):
        direction = direction_of(codes, -codes @ inverse)
        along = torch.einsum("bsi,bsj->bij", direction, codes) / 10
        surprise = along.mean(0) / (along.std(0) / len(along) ** 0.5)
        assert bool((surprise.abs() < 5).all()) == settled


def test_the_fixed_point_is_a_target_whose_dimensions_depend():
    """With bandwidths that do not depend on the codes."""
    assert_settles_at_the_target(lambda codes, score: summed(codes, score, 3.0, 1.0))


def test_in_many_dimensions_a_narrow_marginal_is_seen_above_the_noise():
    """One of 100 dimensions at 0.7 of its spread: mean over sd of what widens it, over 400 sets of
    20 codes, is several times that of the joint kernel alone."""
    codes = torch.randn(400, 20, 100)
    codes[..., 0] *= 0.7
    h = median_bandwidth(codes).mean().item()
    joint = code_direction(codes, -codes, bandwidth=h, leave_one_out=True)
    ratios = []
    for direction in (joint, summed(codes, -codes, h, 1.0)):
        outward = (direction[..., 0] * codes[..., 0]).mean(1)
        ratios.append((outward.mean() / outward.std()).item())
    assert ratios[1] > 3 * abs(ratios[0])


def test_an_encoders_scale_is_the_metric_of_its_kernel(make_networks, pixels, monkeypatch):
    """phi(y) = mean_i k(|(x_i - y) / s|) [ g_i + (2/h) (y - x_i) / s^2 ], by its loop."""
    networks = make_networks()
    noise = torch.randn(1, 5, 2).double()
    method = MethodConfig(theta_particles=1, code_particles=5, bandwidth=0.8)
    batch = Batch(pixels[:1], noise)
    s = torch.tensor([[[0.4, 2.0]]]).double()
    plain = stein_vae(networks, batch, method, 100)
    monkeypatch.setattr(networks.encoder, "kernel_scale", lambda pixels: s)
    scaled = stein_vae(networks, batch, method, 100)
    codes = networks.encoder(pixels[:1], noise)
    free = codes.detach().requires_grad_()
    joint = networks.model.log_likelihood(networks.theta.leaves(), free[None], pixels[:1]).sum()
    score = torch.autograd.grad(joint, free)[0] - free.detach()
    x = free.detach()[0]
    phi = torch.zeros_like(x)
    for j in range(5):
        for i in {0, 1, 2, 3, 4} - {j}:
            apart = (x[j] - x[i]) / s[0, 0]
            kernel = torch.exp(-apart.square().sum() / 0.8)
            phi[j] += kernel * (score[0, i] + 2 / 0.8 * apart / s[0, 0]) / 4
    expected = torch.autograd.grad(codes, networks.eta(), grad_outputs=-phi[None] / 5)
    torch.testing.assert_close(scaled.eta, list(expected), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(scaled.theta, plain.theta, rtol=0, atol=0)
    assert (scaled.eta[0] - plain.eta[0]).abs().max() > 1e-3


def test_the_setting_acts_and_is_refused_where_codes_are_weighted(make_networks, pixels):
    networks, noise = make_networks(), torch.randn(1, 6, 2).double()
    batch = Batch(pixels[:1], noise, compare=True)
    directions = []
    joint = MethodConfig(theta_particles=1, code_particles=6)
    for kernel in ("joint", "sum"):
        method = replace(joint, kernel=kernel)
        found = stein_vae(networks, batch, method, 100)
        directions.append(found.stats["direction"])
        assert ("direction_cosine_field" in found.stats) == (kernel == "joint")
    assert directions[0] != directions[1]
    with pytest.raises(ValueError, match=r"method\.kernel"):
        MethodConfig(name="stein_viwae", weights="z", kernel="sum")


def test_an_update_has_the_bandwidth_of_the_method_in_both_kernels(make_networks, pixels):
    networks, noise = make_networks(), torch.randn(1, 6, 2).double()
    codes = networks.encoder(pixels[:1], noise)
    score = code_scores(networks.model, networks.theta, codes.detach(), pixels[:1])
    phi = summed(codes.detach(), score, 0.8, 0.8)
    expected = torch.autograd.grad(codes, networks.eta(), grad_outputs=-phi / 6)
    method = MethodConfig(theta_particles=1, code_particles=6, kernel="sum", bandwidth=0.8)
    found = stein_vae(networks, Batch(pixels[:1], noise), method, 100)
    torch.testing.assert_close(found.eta, list(expected), rtol=1e-8, atol=1e-10)
