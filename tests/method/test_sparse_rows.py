"""Counts as sparse rows: what is computed of them is what is computed of the dense batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steinvae import pairs
from steinvae.config import Config, DataConfig, MethodConfig, ModelConfig
from steinvae.density import Annealing, Suite, measure_all
from steinvae.gradients import Batch
from steinvae.networks import Networks, build_networks
from steinvae.objectives import OBJECTIVES
from steinvae.sparse_rows import entries, some_rows, sparse_rows

WORDS, DOCUMENTS = 7, 6
SOFTMAX = ModelConfig(codes=2, hidden=(6,), encoder="gaussian")
DEEP = ModelConfig(decoder="deep_poisson", layers=(4, 3), codes=7, hidden=(6,), encoder="gaussian")


@pytest.fixture
def counts() -> torch.Tensor:
    """Dense; no document is empty."""
    return torch.poisson(torch.full((DOCUMENTS, WORDS), 0.8)) + torch.eye(DOCUMENTS, WORDS)


def as_rows(counts: torch.Tensor) -> torch.Tensor:
    found = sparse_rows(*entries(counts), counts.shape)
    assert found.is_sparse
    return found


def some_networks(model: ModelConfig, method: MethodConfig) -> Networks:
    config = Config(data=DataConfig(name="nyt"), model=model, method=method)
    return build_networks(config, WORDS, "cpu")


@pytest.mark.parametrize("wanted", [slice(2, 5), slice(3), slice(4, 99), slice(0, 6), slice(1, 1)])
def test_rows_are_those_of_the_dense_batch(counts, wanted):
    counts[2:4] = 0  # documents that have none of the words
    found = some_rows(as_rows(counts), wanted)
    assert torch.equal(found.to_dense(), counts[wanted])
    assert torch.equal(some_rows(counts, wanted), counts[wanted])
    assert all(map(torch.equal, entries(found), entries(counts[wanted])))


@pytest.mark.parametrize("model", [SOFTMAX, DEEP], ids=["softmax", "deep_poisson"])
@pytest.mark.parametrize("name", ["stein_viwae", "vae"])
def test_an_update_is_that_of_the_dense_batch(counts, model, name, monkeypatch):
    """Also where the decoders take the minibatch in chunks."""
    method = MethodConfig(name=name, theta_particles=1, code_particles=2, importance_samples=3)
    networks = some_networks(model, replace(method, log_q="jac"))
    dense = Batch(counts, torch.randn(DOCUMENTS, method.codes_per_image, model.codes))
    whole = OBJECTIVES[name](networks, dense, method, 100)
    for at_once in (pairs.PAIRS_AT_ONCE, 2 * WORDS * method.codes_per_image):
        monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", at_once)
        found = OBJECTIVES[name](networks, dense._replace(pixels=as_rows(counts)), method, 100)
        for own, expected in zip([found.theta, *found.eta], [whole.theta, *whole.eta], strict=True):
            assert torch.allclose(own, expected, rtol=1e-4, atol=1e-6)  # float32, other sums


@pytest.mark.parametrize("model", [SOFTMAX, DEEP], ids=["softmax", "deep_poisson"])
def test_estimates_are_those_of_the_dense_batch(counts, model, monkeypatch):
    networks = some_networks(model, MethodConfig(theta_particles=1))
    suite = Suite(
        estimators=("iw_g", "elbo", "ais", "units"),
        samples=5,
        annealing=Annealing(temperatures=3, chains=2),
    )
    expected = measure_all(networks, counts, suite)
    for module in ("elbo", "importance", "likelihood"):
        monkeypatch.setattr(f"steinvae.density.{module}.LOGITS_AT_ONCE", 2 * WORDS * 5)
    found = measure_all(networks, as_rows(counts), suite)
    for own, other in zip(found, expected, strict=True):
        assert own.estimator == other.estimator
        assert own.value == pytest.approx(other.value, rel=1e-4)
