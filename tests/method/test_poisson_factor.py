"""Poisson factor analysis: densities of codes by quadrature, scores by their closed form."""

from __future__ import annotations

from math import lgamma, log

import pytest
import torch
from scipy.stats import dirichlet

from steinvae.models import GenerativeModel
from steinvae.models.poisson_factor import PoissonFactor, Positivity, log_softplus
from steinvae.stein import posterior_scores
from steinvae.topics import TopicModel

MAPS: tuple[Positivity, ...] = ("log", "softplus")


def model(
    topics: int = 3, words: int = 5, shape: float = 0.7, positivity: Positivity = "log"
) -> PoissonFactor:
    rows = torch.from_numpy(dirichlet.rvs([0.5] * words, size=topics, random_state=1))
    return PoissonFactor(rows, shape, 0.4, positivity)


def counts(documents: int = 2, words: int = 5) -> torch.Tensor:
    return torch.poisson(torch.full((documents, words), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("positivity", MAPS)
@pytest.mark.parametrize("shape", [0.3, 1.0, 2.5])
def test_joint_of_one_topic_integrates_to_the_evidence(positivity, shape):
    """V = 1: p(x) = b^a Gamma(a + n) / (Gamma(a) (b + 1)^(a + n)) prod theta^x / x!, n = sum x.

    The trapezoid rule on a smooth integrand that vanishes at both ends is exact to rounding.
    """
    one = model(1, shape=shape, positivity=positivity)
    x = counts(1)
    grid = torch.linspace(-130, 90 if positivity == "softplus" else 6, 200_001, dtype=x.dtype)
    found = one.log_joint(grid[None, :, None], x).logsumexp(-1) + (grid[1] - grid[0]).log()
    a, b, n = shape, one.rate, x.sum().item()
    expected = a * log(b) + lgamma(a + n) - lgamma(a) - (a + n) * log(b + 1)
    expected += (torch.xlogy(x, one.loadings) - torch.lgamma(x + 1)).sum().item()
    assert found.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("positivity", MAPS)
def test_scores_of_the_training_path_are_the_closed_form(positivity):
    """d/du_v = z' [ sum_p x_p theta_vp / r_p - 1 - b + (a - 1)/z ] + d log z'/du, z' = dz/du."""
    net, x = model(positivity=positivity), counts()
    ensemble = net.ensemble()
    ensemble.flat = net.loadings.reshape(1, -1).clone()
    codes = torch.randn(2, 4, 3, dtype=torch.float64)
    got = posterior_scores(net, ensemble, codes, x, data_size=2).codes
    z, sigmoid = net.scores(codes), codes.sigmoid()
    slope, bend = (z, 1.0) if positivity == "log" else (sigmoid, 1 - sigmoid)
    pull = (x[:, None] / (z @ net.loadings)) @ net.loadings.T
    expected = slope * (pull - 1 - net.rate + (net.shape - 1) / z) + bend
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("positivity", MAPS)
def test_maps_invert(positivity):
    net = model(positivity=positivity)
    scores = torch.tensor([1e-30, 1e-3, 1.0, 60.0], dtype=torch.float64)
    torch.testing.assert_close(net.scores(net.codes(scores)), scores, rtol=1e-12, atol=0)


def test_permuting_topics_permutes_codes():
    net, x = model(), counts()
    order = torch.tensor([2, 0, 1])
    codes = torch.randn(2, 4, 3, dtype=torch.float64)
    moved = PoissonFactor(net.loadings[order], net.shape, net.rate)
    torch.testing.assert_close(moved.log_joint(codes[..., order], x), net.log_joint(codes, x))


def test_log_softplus_and_its_gradient_are_finite_and_meet():
    u = torch.tensor([-200.0, -15.0001, -14.9999, 0.0, 200.0], requires_grad=True)
    value = log_softplus(u)
    (slope,) = torch.autograd.grad(value.sum(), u)
    wide = torch.nn.functional.softplus(u.detach().double()[1:]).log().float()
    torch.testing.assert_close(value.detach()[1:], wide)
    assert value[0].item() == -200
    assert slope.isfinite().all()
    assert slope[0] == 1


def test_is_a_generative_model_and_refuses_what_is_none():
    net = model()
    assert isinstance(net, GenerativeModel)
    with pytest.raises(ValueError, match="shape must be positive"):
        PoissonFactor(net.loadings, 0.0, 1.0)
    with pytest.raises(ValueError, match="rows of topics must sum to 1"):
        PoissonFactor(2 * net.loadings, 1.0, 1.0)
    with pytest.raises(ValueError, match="not negative"):
        PoissonFactor(-net.loadings, 1.0, 1.0)


def test_its_topics_are_one_layer_of_every_particle():
    net = model()
    assert isinstance(net, TopicModel)
    (layer,) = net.topics(net.ensemble().leaves())
    torch.testing.assert_close(layer[0].detach(), net.loadings.float())
