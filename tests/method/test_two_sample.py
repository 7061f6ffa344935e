"""Distances between draws, on cases whose answers are known."""

from __future__ import annotations

from math import exp, log, pi, sqrt

import pytest
import torch

from steinvae.models.gaussian_mixture import section_5_1
from steinvae.two_sample import (
    FAR,
    SCALES,
    kernel_proposal,
    mass_error,
    mmd2,
    resample,
    sliced_w2,
    strays,
    whitened_sd,
)

POINTS = 8


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, seed: int) -> torch.Tensor:
    return torch.randn(POINTS, count, 2, dtype=torch.float64, generator=seeded(seed))


def test_mmd_is_the_printed_double_sum():
    """Gretton et al. 2012, eq. 3, by loops over pairs."""
    draws, exact = normal(5, 0)[:1], 1 + normal(4, 1)[:1]
    (x,), (y,) = draws.tolist(), exact.tolist()
    median = torch.pdist(exact[0]).square().median().item()

    def kernel(a: list[float], b: list[float]) -> float:
        square = sum((i - j) ** 2 for i, j in zip(a, b, strict=True))
        return sum(exp(-square / (scale * median)) for scale in SCALES)

    def mean(first: list, second: list, own: bool) -> float:
        terms = [
            kernel(a, b)
            for i, a in enumerate(first)
            for j, b in enumerate(second)
            if not (own and i == j)
        ]
        return sum(terms) / len(terms)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert mmd2(draws, exact).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_mmd_of_equal_and_shifted_gaussians_is_the_closed_form(shift):
    """E exp(-r^2 / h) = exp(-s^2 / (h + 4)) / (1 + 4 / h) for two unit Gaussians of the plane s
    apart. Unbiased: the mean of 8 estimates is within four of its own standard errors.
    """
    median = 4 * log(2)  # of r^2, which is exponential with mean 4
    found = mmd2(normal(500, 2) + torch.tensor([shift, 0.0]), normal(500, 3))
    expected = sum(
        2 * (1 - exp(-(shift**2) / (c * median + 4))) / (1 + 4 / (c * median)) for c in SCALES
    )
    error = found.std().item() / sqrt(POINTS)
    assert error < 0.04
    assert found.mean().item() == pytest.approx(expected, abs=4 * error)


def test_sliced_distance_of_a_shift_is_its_length_over_root_two():
    """Each direction sees |s cos a|, and the mean of cos^2 over even directions is 1/2."""
    draws = normal(50, 4)
    assert sliced_w2(draws, draws[:, torch.randperm(50)]).abs().max() == 0
    apart = sliced_w2(draws + torch.tensor([3.0, -4.0]), draws)
    torch.testing.assert_close(apart, torch.full_like(apart, 5 / sqrt(2)), rtol=1e-12, atol=0)


def posterior(noise: float = 10.0):
    model = section_5_1(noise)
    return model.posterior(model.draw(POINTS, seeded(5)))


def test_mass_error_of_a_known_split():
    """All draws at one mode's mean: its mass counts as 1, up to what the other has there."""
    target = posterior()
    at_first = target.means[:, :1].expand(-1, 6, -1)
    missing = target.log_weights[:, 1].exp()
    overlap = target.responsibilities(at_first)[:, 0, 1].max()
    assert (mass_error(target, at_first) - missing).abs().max() <= overlap + 1e-12
    half = target.means.repeat_interleave(3, dim=1)  # three draws at each mean
    known = (0.5 - target.log_weights[:, 0].exp()).abs()
    assert (mass_error(target, half) - known).abs().max() <= overlap + 1e-12


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_whitened_sd_sees_how_wide_a_mode_is(factor):
    """One blob (sigma = 0.1) scaled about its mean; 4,000 draws have an error near 1 %."""
    target = posterior(0.1)
    exact = target.draw(4_000, seeded(6))
    centre = exact.mean(1, keepdim=True)
    found = whitened_sd(target, centre + factor * (exact - centre)).mean().item()
    assert found == pytest.approx(factor, rel=0.06)


def test_draws_between_the_modes_are_strays_and_widen_none_of_them():
    """A twentieth of exact draws put half way between the modes, 7 standard deviations from both.

    They are counted, they widen the modes to sqrt(0.95 + 0.05 * 49 / 2) by one dimension, and
    without them the width is right."""
    target = posterior()
    draws = target.draw(4_000, seeded(12))
    between = draws.clone()
    between[:, ::20] = target.means.mean(1, keepdim=True)
    assert strays(target, draws).max() < 2e-3  # exp(-8) = 3e-4 in expectation
    torch.testing.assert_close(
        strays(target, between), torch.full((POINTS,), 0.05).double(), atol=2e-3, rtol=0
    )
    apart = (target.whiten(target.means)[:, 0] - target.whiten(target.means)[:, 1]).norm(dim=-1)
    wide = (0.95 + 0.05 * (apart.mean() / 2) ** 2 / 2).sqrt().item()
    assert whitened_sd(target, between).mean().item() == pytest.approx(wide, rel=0.06)
    assert whitened_sd(target, between, FAR).mean().item() == pytest.approx(1, rel=0.02)
    assert whitened_sd(target, between[:, ::20], FAR).eq(0).all()  # none is left


def test_resampling_by_exact_weights_gives_the_posterior():
    """From a proposal that is uniform over a square: masses come out within their noise, 0.01."""
    target = posterior()
    square = 40 * torch.rand(POINTS, 20_000, 2, dtype=torch.float64, generator=seeded(7)) - 20
    chosen, effective = resample(square, target.log_density(square), 4_000, seeded(8))
    assert mass_error(target, chosen).max() < 0.05
    assert whitened_sd(target, chosen).mean().item() == pytest.approx(1, abs=0.05)
    assert ((effective > 0) & (effective < 0.2)).all()
    _, all_of_them = resample(square, torch.zeros(square.shape[:2]), 10, seeded(8))
    torch.testing.assert_close(all_of_them, torch.ones(POINTS))


def test_kernel_proposal_has_the_density_it_says():
    """Its density integrates to one over a grid that its draws do not leave, and is theirs."""
    centres = posterior().draw(40, seeded(9))[:1]
    drawn, log_density = kernel_proposal(centres, 3_000, seeded(10))
    squares = torch.cdist(centres, centres).square()
    width = squares.kthvalue(6, dim=-1).values.median().sqrt()
    kernels = -0.5 * torch.cdist(drawn, centres).square() / width**2
    expected = kernels.exp().mean(-1).log() - log(2 * pi * width**2)
    torch.testing.assert_close(log_density, expected, rtol=0, atol=1e-9)
    spread = centres.var(1, correction=0).sum() + 2 * width**2
    assert drawn.var(1).sum().item() == pytest.approx(spread.item(), rel=0.1)
