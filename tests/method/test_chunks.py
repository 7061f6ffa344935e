"""Chunks of every kind give what the whole minibatch gives."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from steinvae.config import MethodConfig
from steinvae.gradients import Batch, Gradients
from steinvae.models import closed_form
from steinvae.monitor import exact_score
from steinvae.objectives import OBJECTIVES, regression_gradients
from tests.method.test_closed_form import ByAutograd

# float64, sums of fewer than 1e3 terms of order one
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
STEIN = {"code_particles": 4, "theta_particles": 2}
VIWAE = {"name": "stein_viwae", "importance_samples": 3, **STEIN}
METHODS = {
    "stein_vae": STEIN,
    "stein_vae, dealt": {**STEIN, "pairing": "strat"},
    "stein_viwae": VIWAE,
    "stein_viwae, exact q": {**VIWAE, "log_q": "jac"},
    "stein_viwae, kernel estimate": {**VIWAE, "log_q": "kde", "weights": "both"},
    "stein_viwae, weights on codes, dealt": {**VIWAE, "weights": "z", "pairing": "strat"},
    "stein_viwae, printed": {**VIWAE, "weights": "paper", "self_term": "include"},
    "vae": {"name": "vae"},
    "iwae": {"name": "iwae"},
    "iwae, dreg": {"name": "iwae", "iwae_gradient": "dreg"},
    "planar_flow": {"name": "planar_flow"},
    "vae_weighted_decoder": {"name": "vae_weighted_decoder", "entropy_weight": 0.5},
    "flow_elbo": {"name": "flow_elbo"},
    "flow_elbo, unweighted": {"name": "flow_elbo", "weights": "none"},
}


def whole_and_chunked(monkeypatch, find) -> tuple[Gradients, Gradients]:
    """Results with every limit as it is, and with every limit at one number."""
    whole = find()
    for limit in ("pairs.PAIRS_AT_ONCE", "chunks.CODES_AT_ONCE", "weights.NUMBERS_AT_ONCE"):
        monkeypatch.setattr(f"steinvae.{limit}", 1)
    monkeypatch.setitem(closed_form.NUMBERS_AT_ONCE, "cpu", 1)
    return whole, find()


@pytest.mark.parametrize("closed", [True, False], ids=["closed form", "autograd"])
@pytest.mark.parametrize("shared", [False, True], ids=["own noise", "shared noise"])
@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS.keys())
def test_an_update_in_chunks_is_the_whole_update(
    make_networks, pixels, monkeypatch, settings, shared, closed
):
    method = MethodConfig(**settings)
    networks = make_networks(flow_blocks=2, **settings)
    if not closed:
        networks.model = ByAutograd(2, (5,), 6)
    noise = torch.randn(1 if shared else 4, method.codes_per_image, 2).double()
    batch = Batch(pixels, noise, torch.randperm(method.code_particles))

    def update() -> Gradients:
        return OBJECTIVES[method.name](networks, batch, method, 40)

    whole, chunked = whole_and_chunked(monkeypatch, update)
    close(chunked.theta, whole.theta)
    close(chunked.eta, whole.eta)
    close(chunked.stats, whole.stats)


def test_further_regression_steps_in_chunks(make_networks, pixels, monkeypatch):
    networks = make_networks()
    batch = Batch(pixels, torch.randn(4, 5, 2).double())
    targets = torch.randn(4, 5, 2).double()
    whole, chunked = whole_and_chunked(
        monkeypatch, lambda: regression_gradients(networks, batch, targets, 0.3)
    )
    close(chunked, whole)


def test_exact_score_in_chunks(make_networks, pixels, monkeypatch):
    networks, noise = make_networks(), torch.randn(4, 5, 2).double()
    whole, chunked = whole_and_chunked(
        monkeypatch, lambda: exact_score(networks.encoder, pixels, noise)
    )
    close(chunked, whole)


def test_a_last_chunk_of_fewer_images_counts_for_fewer(make_networks, pixels, monkeypatch):
    """Chunks of 3 and 1 of four images, by the ELBO's gradients."""
    networks, method = make_networks(name="vae"), MethodConfig(name="vae")
    batch = Batch(pixels, torch.randn(4, 5, 2).double())
    whole = OBJECTIVES["vae"](networks, batch, method, 40)
    cut = [slice(0, 3), slice(3, 4)]
    monkeypatch.setattr("steinvae.chunks.chunks", lambda count, numbers: cut)
    parts = OBJECTIVES["vae"](networks, batch, method, 40)
    torch.testing.assert_close(parts.theta, whole.theta)
    torch.testing.assert_close(parts.eta, whole.eta)
    torch.testing.assert_close(parts.stats, whole.stats)
