"""The exact posterior of section 5.1: against a grid, and against Bayes by autograd."""

from __future__ import annotations

import pytest
import torch

from steinvae.models.gaussian_mixture import section_5_1


@pytest.mark.parametrize("noise", [0.1, 10.0])
def test_posterior_is_the_normalised_joint_density(noise):
    """The score and differences of log density are those of log p(x, z), by autograd."""
    model = section_5_1(noise)
    x = model.draw(4, torch.Generator().manual_seed(1))
    posterior = model.posterior(x)
    codes = posterior.draw(5, torch.Generator().manual_seed(2)).requires_grad_()
    joint = model.log_likelihood({"theta": model.theta[None]}, codes[None], x)[0]
    joint = joint - 0.5 * codes.square().sum(-1)
    (score,) = torch.autograd.grad(joint.sum(), codes)
    scale = score.abs().max().item()
    torch.testing.assert_close(posterior.score(codes), score, rtol=0, atol=1e-10 * max(1, scale))
    gap = joint - posterior.log_density(codes)  # log p(x) up to a constant, the same for all codes
    torch.testing.assert_close(gap, gap[:, :1].expand_as(gap), rtol=1e-10, atol=1e-10)


def test_masses_and_means_agree_with_a_grid():
    """The trapezoidal rule is exact to rounding for Gaussians on a step of a third of their sd."""
    model = section_5_1(10.0)
    x = model.draw(3, torch.Generator().manual_seed(1))
    posterior = model.posterior(x)
    axis = torch.arange(-18, 18, 0.3, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)[None].expand(3, -1, -1)
    joint = model.log_likelihood({"theta": model.theta[None]}, grid[None], x)[0]
    weights = (joint - 0.5 * grid.square().sum(-1)).softmax(-1)
    mean = (weights[..., None] * grid).sum(1)
    expected = (posterior.log_weights.exp()[..., None] * posterior.means).sum(1)
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-10)
    upper = (weights * (grid.sum(-1) > 0)).sum(1)
    torch.testing.assert_close(upper, posterior.log_weights[:, 0].exp(), rtol=0, atol=1e-4)


def test_mode_masses_are_the_grid_integrals_of_each_component():
    """p_i = integral of pi_i N(z; mu_i, I) N(x; theta z, sigma^2 I), normalised; to 1e-10."""
    model = section_5_1(10.0)
    x = model.draw(6, torch.Generator().manual_seed(2))
    axis = torch.arange(-18, 18, 0.3, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    unit = torch.eye(2, dtype=torch.float64)
    prior = torch.distributions.MultivariateNormal(model.means, unit).log_prob(grid[:, None])
    seen = torch.distributions.Normal(grid @ model.theta.T, model.noise).log_prob(x[:, None])
    integrals = (seen.sum(-1)[..., None] + prior).exp().sum(1)  # (B, K)
    expected = integrals / integrals.sum(-1, keepdim=True)
    found = model.posterior(x).log_weights.exp()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
