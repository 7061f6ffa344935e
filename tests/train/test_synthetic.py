"""Drawn data: the same for every run, splits that do not depend on each other."""

from __future__ import annotations

import pytest
import torch

from steinvae.data.synthetic import Vectors, drawn
from steinvae.models.gaussian_mixture import section_5_1


def test_draws_repeat_and_the_test_set_does_not_know_the_training_set():
    model = section_5_1(10.0)
    small = drawn("name", model, train=5, validation=4, test=3)
    large = drawn("name", model, train=50, validation=4, test=3)
    assert torch.equal(small.test.rows, large.test.rows)
    assert torch.equal(small.validation.rows, large.validation.rows)
    assert [len(split) for split in (large.train, large.validation, large.test)] == [50, 4, 3]
    assert large.train.rows.dtype == torch.float32
    other = drawn("name", model, train=5, validation=4, test=3, seed=1)
    assert not torch.equal(small.test.rows, other.test.rows)


def test_moments_are_those_of_the_model():
    """x has mean 0 and covariance theta (I + 25 (1 1)^T (1 1)) theta^T + 100 I."""
    rows = drawn("name", section_5_1(10.0), train=20_000, validation=1, test=1).train.rows
    expected = torch.tensor([[130.0, -21.0], [-21.0, 130.0]])
    assert rows.mean(0).abs().max() < 4 * (130 / 20_000) ** 0.5
    assert (rows.T.cov() - expected).abs().max() < 4 * 130 * (2 / 20_000) ** 0.5


def test_batches_are_the_rows_asked_for():
    rows = torch.arange(12.0).reshape(4, 3)
    split = Vectors(rows)
    assert split.features == 3
    assert torch.equal(split.batch(torch.tensor([2, 0])), rows[[2, 0]])


def test_wrong_vectors_are_refused():
    with pytest.raises(TypeError, match=r"float32, got torch\.float64"):
        Vectors(torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\(N, X\), got \(2,\)"):
        Vectors(torch.zeros(2))
    with pytest.raises(ValueError, match="test must be at least 1, got 0"):
        drawn("name", section_5_1(1.0), train=1, validation=1, test=0)
