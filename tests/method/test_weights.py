"""Importance weights and the densities behind them, against exact ones."""

from __future__ import annotations

from math import log, pi

import pytest
import torch
from torch import Tensor

from steinvae.recognition import make_encoder, standard_normal
from steinvae.weights import (
    effective_samples,
    fitted_log_density,
    group_weights,
    jacobian_log_density,
    kernel_log_density,
    log_prior_over_q,
    printed_weights,
    tracked_step,
)

H = 1.3


def test_fitted_density_with_few_codes_is_a_diagonal_gaussian():
    codes = torch.randn(3, 8, 5).double() * torch.tensor([1.0, 0.1, 5.0, 1.0, 2.0]).double() + 7
    exact = torch.distributions.Normal(codes.mean(1, keepdim=True), codes.std(1, keepdim=True))
    torch.testing.assert_close(
        fitted_log_density(codes), exact.log_prob(codes).sum(-1), rtol=1e-4, atol=1e-4
    )


def test_fitted_density_with_many_codes_knows_their_correlation():
    factor = torch.tensor([[1.0, 0.0], [0.9, 0.2]]).double()
    codes = torch.randn(2, 20_000, 2).double() @ factor.T
    exact = torch.distributions.MultivariateNormal(torch.zeros(2).double(), scale_tril=factor)
    assert (fitted_log_density(codes) - exact.log_prob(codes)).abs().mean() < 0.02
    few = codes[:, :4]  # at most 2 d: diagonal
    diagonal = torch.distributions.Normal(few.mean(1, keepdim=True), few.std(1, keepdim=True))
    expected = diagonal.log_prob(few).sum(-1)
    torch.testing.assert_close(fitted_log_density(few), expected, rtol=1e-4, atol=1e-4)


def test_fitted_density_of_collapsed_or_broken_codes_raises_nothing():
    assert fitted_log_density(torch.zeros(1, 12, 3)).isfinite().all()
    assert fitted_log_density(torch.full((1, 12, 3), float("nan"))).isnan().all()


def test_kernel_density_is_the_leave_one_out_sum():
    codes, h = torch.randn(2, 6, 3).double(), 0.8
    for b in range(2):
        for j in range(6):
            others = [i for i in range(6) if i != j]
            square = torch.stack([(codes[b, i] - codes[b, j]).square().sum() for i in others])
            kernel = (-square / h).exp() / (pi * h) ** 1.5  # a density: it integrates to 1
            expected = kernel.mean().log()
            torch.testing.assert_close(kernel_log_density(codes, h)[b, j], expected)


def test_kernel_density_follows_a_rule_image_by_image():
    codes = torch.randn(2, 30, 3).double()
    scaled = torch.cat([codes[:1], 10 * codes[:1]])
    first, second = kernel_log_density(scaled, "liu_wang")
    torch.testing.assert_close(second, first - 3 * log(10))


def test_jacobian_density_is_the_encoder_s_in_any_chunks(monkeypatch):
    encoder = make_encoder("flow", 6, (12, 9), 3, torch.Generator().manual_seed(0), 2).double()
    pixels, noise = torch.rand(4, 6).double(), torch.randn(4, 7, 3).double()
    whole = encoder.codes_and_log_density(pixels, noise)[1]
    torch.testing.assert_close(jacobian_log_density(encoder, pixels, noise), whole)
    monkeypatch.setattr("steinvae.weights.NUMBERS_AT_ONCE", 1)
    torch.testing.assert_close(jacobian_log_density(encoder, pixels, noise), whole)


def test_estimators_agree_on_a_gaussian_encoder():
    """jac exactly; gauss within sampling noise; kde after the shift that weights do not see."""
    encoder = make_encoder("gaussian", 6, (12,), 2, torch.Generator().manual_seed(0)).double()
    pixels, noise = torch.rand(2, 6).double(), torch.randn(2, 2000, 2).double()
    codes = encoder(pixels, noise).detach()
    exact = standard_normal(codes) - encoder.codes_and_log_density(pixels, noise)[1]

    def ratio(estimator: str) -> Tensor:
        return log_prior_over_q(
            encoder, codes, pixels, noise, estimator=estimator, bandwidth="liu_wang"
        )

    torch.testing.assert_close(ratio("jac"), exact.detach())
    assert (ratio("gauss") - exact).abs().mean() < 0.1
    shifted = ratio("kde") - exact
    assert (shifted - shifted.mean(1, keepdim=True)).abs().mean() < 0.3


def test_track_is_no_estimator_of_drawn_codes():
    encoder = make_encoder("gaussian", 6, (12,), 2, torch.Generator())
    with pytest.raises(ValueError, match=r"method\.log_q must be jac, gauss or kde here"):
        log_prior_over_q(
            *(encoder, torch.zeros(1, 2, 2), torch.zeros(1, 6), torch.zeros(1, 2, 2)),
            estimator="track",
            bandwidth=1.0,
        )


@pytest.mark.parametrize("step_size", [1e-3, 1e-4])
def test_tracked_density_is_the_change_of_variables_to_first_order(step_size):
    """Against log |det| of the map that moves any point by the field of the particles."""
    particles, log_q = torch.randn(6, 3).double(), torch.randn(6).double()
    score = -particles.sinh()
    moved, tracked = tracked_step(particles, score, log_q, step_size=step_size, bandwidth=H)

    def field(y: Tensor) -> Tensor:
        apart = y - particles
        kernel = torch.exp(-apart.square().sum(-1, keepdim=True) / H)
        return y + step_size * (kernel * (score + 2 / H * apart)).mean(0)

    for j in range(6):
        jacobian = torch.autograd.functional.jacobian(field, particles[j])
        exact = log_q[j] - torch.linalg.slogdet(jacobian).logabsdet  # type: ignore[arg-type]
        assert (tracked[j] - exact).abs() < 20 * step_size**2
        torch.testing.assert_close(moved[j], field(particles[j]))


def test_tracked_chain_keeps_a_density_of_about_a_nat():
    """From N(0, 4 I) towards N(0, I) in two dimensions; it stays near Gaussian on the way."""
    particles = 2 * torch.randn(400, 2).double()
    start = log_q = standard_normal(particles / 2) - 2 * log(2)
    for _ in range(40):
        particles, log_q = tracked_step(
            particles, -particles, log_q, step_size=0.5, bandwidth="median_squared"
        )
    assert particles.var() < 2  # it moved
    deviation = particles.std(0)
    exact = standard_normal(particles / deviation) - deviation.log().sum()
    error = (log_q - exact).abs().mean()
    assert error < 0.6
    assert error < (start - exact).abs().mean() / 2


def test_group_weights_stay_in_log_space():
    log_weights = torch.tensor([[-1e4, -1e4 + log(3), 5e3, 5e3]])
    expected = torch.tensor([[0.25, 0.75, 0.5, 0.5]])
    torch.testing.assert_close(group_weights(log_weights, 2), expected)


def test_effective_samples_counts():
    even, single = torch.full((3, 4), 0.25), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert effective_samples(even, 4).item() == pytest.approx(4)
    assert effective_samples(single, 4).item() == pytest.approx(1)
    both = torch.tensor([[1.0, 0.0, 0.5, 0.5]])
    assert effective_samples(both, 2).item() == pytest.approx(1.5)


def test_printed_weights_are_sums_over_tuples_and_images():
    tuples, group, images, codes = 2, 3, 4, 5
    log_weights = torch.randn(tuples * group, images, codes).double()
    omega = log_weights.exp()
    per_image = torch.stack(
        [
            torch.stack([omega[i, b].sum() + omega[group + i, b].sum() for i in range(group)])
            for b in range(images)
        ]
    )
    printed = printed_weights(log_weights, tuples, group)
    torch.testing.assert_close(printed.codes, per_image / per_image.sum(1, keepdim=True))
    torch.testing.assert_close(printed.theta, per_image.sum(0) / per_image.sum())
