"""Known laws of Stein samplers: the population field, and the variance with and without self-term.

For a Gaussian target N(0, I_d) and codes redrawn at every step, s^2 is the sampler's variance.
"""

from __future__ import annotations

from math import log

import pytest
import torch
from scipy.stats import chi2

from stein_kernels import svgd_direction
from steinvae.stein import code_direction


@pytest.mark.parametrize(("dimension", "variance"), [(1, 0.25), (3, 0.5), (3, 2.0)])
def test_direction_of_gaussian_samples_is_the_population_field(dimension, variance):
    """Phi(y) = Z(y) c y (1 - s^2) / (1 + c s^2) for q = N(0, s^2 I), p = N(0, I), c = 2/h.

    Z(y) = (1 + c s^2)^(-d/2) exp(-c |y|^2 / (2 (1 + c s^2))). The tolerance is five standard errors
    of the 20,000-sample average, at every component.
    """
    h, count = 1.5, 20_000
    c, spread = 2 / h, 1 + 2 / h * variance
    x = variance**0.5 * torch.randn(count, dimension, dtype=torch.float64)
    y = torch.randn(8, dimension, dtype=torch.float64)
    got = svgd_direction(x, -x, query=y, bandwidth=h)
    weight = spread ** (-dimension / 2) * torch.exp(-c * y.square().sum(-1) / (2 * spread))
    expected = weight[:, None] * c * y * (1 - variance) / spread
    apart = y - x[:, None]
    terms = torch.exp(-apart.square().sum(-1) / h)[..., None] * (-x[:, None] + c * apart)
    error = terms.std(0) / count**0.5
    assert ((got - expected).abs() < 5 * error).all()
    assert (expected.abs() > 5 * error).any()  # the field is there to be seen


def v_law(dimension: int, particles: int) -> float:
    """Stationary variance with the self-term, a = E|x - x'|^2 / h under the rule liu_wang."""
    a = log(particles + 1) * dimension / chi2.median(dimension)
    stretch = (1 + 2 * a / dimension) ** (dimension / 2 + 1)
    return 1 / (1 + dimension * stretch / (a * (particles - 1)))


def stationary_variance(dimension: int, particles: int, leave_one_out: bool) -> float:
    """Variance of z = A xi after 800 steps of amortised learning on 4 sets, Adam 1e-2 to 0."""
    generator = torch.Generator().manual_seed(1)
    matrix = (0.7 * torch.eye(dimension)).requires_grad_()
    adam = torch.optim.Adam([matrix], lr=1e-2)
    steps = 800
    for step in range(steps):
        codes = torch.randn(4, particles, dimension, generator=generator) @ matrix.T
        drawn = codes.detach()
        direction = code_direction(drawn, -drawn, bandwidth="liu_wang", leave_one_out=leave_one_out)
        (matrix.grad,) = torch.autograd.grad(codes, matrix, -direction / (4 * particles))
        adam.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        adam.step()
    return float(matrix.detach().square().sum() / dimension)


@pytest.mark.parametrize(("dimension", "particles"), [(10, 100), (50, 100)])
def test_self_term_collapses_the_variance_by_the_law(dimension, particles):
    """0.44 at d = 10 and 0.10 at d = 50: eq. 5 as printed does not sample the posterior."""
    law = v_law(dimension, particles)
    assert stationary_variance(dimension, particles, False) == pytest.approx(law, rel=0.05)
    assert law < 0.5


@pytest.mark.parametrize(("dimension", "particles"), [(10, 100), (50, 100)])
def test_leaving_one_out_keeps_the_variance(dimension, particles):
    assert 0.97 <= stationary_variance(dimension, particles, True) <= 1.03


def test_decoders_take_turns_in_mean_images(make_networks):
    networks, codes = make_networks(theta_particles=3), torch.randn(7, 2).double()
    leaves = {name: leaf.detach() for name, leaf in networks.theta.leaves().items()}
    means = networks.model.mean_images(leaves, codes)
    for i, code in enumerate(codes):
        one = {name: leaf[i % 3 : i % 3 + 1] for name, leaf in leaves.items()}
        expected = networks.model.logits(one, code[None, None])[0, 0].sigmoid()
        torch.testing.assert_close(means[i], expected)
