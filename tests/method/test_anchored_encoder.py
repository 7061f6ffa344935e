"""The encoder that starts from EM: its anchor by closed forms, its density by autograd."""

from __future__ import annotations

from math import log, pi

import pytest
import torch
from scipy.special import digamma, polygamma

from steinvae.experiments.poisson_cells import Known, PoissonCell, build
from steinvae.experiments.poisson_encoder import AnchoredEncoder
from steinvae.gibbs import Prior
from steinvae.models.poisson_factor import PoissonFactor, Positivity
from steinvae.recognition import FlowEncoder

A, B = 0.8, 0.5


def topics(count: int, words: int = 6) -> torch.Tensor:
    rows = torch.rand(count, words, dtype=torch.float64) ** 3
    return rows / rows.sum(-1, keepdim=True)


def anchored(count: int, positivity: Positivity = "log", steps: int = 3) -> AnchoredEncoder:
    draws = torch.Generator().manual_seed(0)
    core = FlowEncoder(6, (7,), count, draws).double()
    return AnchoredEncoder(core, PoissonFactor(topics(count), A, B, positivity), steps=steps)


def test_the_anchor_of_one_topic_is_the_exact_posterior():
    """V = 1: log z | x has the moments of log Gamma(a + sum x, b + 1)."""
    counts = torch.tensor([[3.0, 0, 2, 1, 0, 0], [0.0] * 6]).double()
    mean, spread = anchored(1).anchor(counts)
    for row, tokens in ((0, 6), (1, 0)):
        exact = digamma(A + tokens) - torch.tensor(1 + B).log().item()
        assert mean[row].item() == pytest.approx(exact)
        assert spread[row].item() == pytest.approx(polygamma(1, A + tokens) ** 0.5)


@pytest.mark.parametrize("positivity", ["log", "softplus"])
def test_one_sd_to_either_side_is_the_same_in_both_maps(positivity):
    torch.manual_seed(1)
    encoder = anchored(4, positivity)
    model = encoder._model
    counts = torch.poisson(2 * torch.rand(5, 6).double())
    mean, spread = encoder.anchor(counts)
    torch.manual_seed(1)
    low, high = anchored(4, "log").anchor(counts)
    for side in (-1, 1):
        torch.testing.assert_close(model.scores(mean + side * spread), (low + side * high).exp())


def test_more_steps_raise_the_density_of_the_scores():
    """EM: log p(x | z) + sum (a log z - b z) rises at every step; a + n is its M step."""
    torch.manual_seed(2)
    counts = torch.poisson(3 * torch.rand(8, 6).double())
    before = None
    for steps in (1, 2, 3, 10):
        torch.manual_seed(3)
        encoder = anchored(4, "log", steps)
        _, spread = encoder.anchor(counts)
        # The M step's z = (a + n) / (b + 1), with a + n from its trigamma by bisection.
        low, high = torch.full_like(spread, 1e-3), torch.full_like(spread, 1e4)
        for _ in range(80):
            middle = (low + high) / 2
            too_small = torch.polygamma(1, middle) > spread**2
            low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
        codes = (low / (1 + B)).log()
        now = encoder._model.log_joint(codes, counts)[:, 0]
        assert before is None or bool((now >= before - 1e-9).all())
        before = now


@pytest.mark.parametrize("positivity", ["log", "softplus"])
def test_density_is_that_of_the_jacobian(positivity):
    torch.manual_seed(4)
    encoder = anchored(3, positivity)
    counts, noise = torch.poisson(torch.rand(2, 6).double()), torch.randn(2, 4, 3).double()
    codes, log_q = encoder.codes_and_log_density(counts, noise)
    torch.testing.assert_close(codes, encoder(counts, noise))
    torch.testing.assert_close(codes, encoder.draw(counts, noise))
    free = noise.clone().requires_grad_()
    rows = [
        torch.autograd.grad(code.sum(), free, retain_graph=True)[0]
        for code in encoder(counts, free).unbind(-1)
    ]
    of_codes = torch.stack(rows, -2)
    exact = -0.5 * (noise.square().sum(-1) + 3 * log(2 * pi))
    exact = exact - torch.linalg.slogdet(of_codes).logabsdet
    torch.testing.assert_close(log_q, exact)
    torch.testing.assert_close(encoder.jacobian(counts, noise), of_codes)
    torch.testing.assert_close(encoder.kernel_scale(counts), encoder.anchor(counts)[1])


def test_a_fresh_gaussian_cell_is_its_anchor():
    known = Known(topics=topics(4), prior=Prior(shape=A, rate=B), test=torch.zeros(1, 6))
    networks = build(PoissonCell(row="any", encoder="gaussian", anchor=2), known)
    assert isinstance(networks.encoder, AnchoredEncoder)
    counts, noise = torch.poisson(torch.rand(3, 6)), torch.randn(3, 5, 4)
    mean, spread = networks.encoder.anchor(counts)
    torch.testing.assert_close(networks.encoder(counts, noise), mean + spread * noise)
    torch.testing.assert_close(networks.encoder.kernel_scale(counts), spread)
