"""Class probabilities and their scores against hand-made cases."""

from __future__ import annotations

from math import log

import pytest
import torch

from steinvae.config import Config, DataConfig, MethodConfig, ModelConfig
from steinvae.labels.pictures import confusion
from steinvae.labels.predict import (
    calibration_error,
    class_probabilities,
    fit_temperature,
    member_probabilities,
    nearest_neighbour_error,
    scores,
    temper,
)
from steinvae.networks import build_networks


def test_scores_of_known_probabilities():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.25, 0.25]])
    found = scores(probabilities, torch.tensor([0, 1, 0]))
    assert found.error == pytest.approx(1 / 3)
    assert found.error_stderr == pytest.approx((1 / 3 * 2 / 3 / 3) ** 0.5)
    assert found.nll == pytest.approx(-(log(0.7) + log(0.3) + log(0.5)) / 3, rel=1e-6)
    # three bins with one image each
    assert found.ece == pytest.approx((0.3 + 0.6 + 0.5) / 3, rel=1e-6)


def test_impossible_label_has_a_finite_loss():
    assert 87 < scores(torch.tensor([[1.0, 0.0]]), torch.tensor([1])).nll < 88


def test_calibrated_predictions_have_no_error():
    """Right with the probability they state; a constant shift of confidence is what is found."""
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + 0.4 * torch.rand(200_000, generator=generator)
    right = torch.rand(200_000, generator=generator) < confidence
    # of 7 bins each gap has a standard error below 0.003; |gap| has a mean below 0.8 of it
    assert calibration_error(confidence, right) < 0.005
    assert calibration_error(confidence + 0.1, right) == pytest.approx(0.1, abs=0.005)


def test_bins_are_closed_at_the_right():
    confidence = torch.tensor([0.25, 0.25 + 1e-6, 1.0])
    apart = calibration_error(confidence[:2], torch.tensor([True, False]), bins=4)
    assert apart == pytest.approx((0.75 + 0.25) / 2, abs=1e-5)  # 0.25 in one bin
    assert calibration_error(confidence[2:], torch.tensor([True])) == 0


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_fitted_temperature_undoes_a_known_one(temperature):
    """Labels drawn from p itself, and p^T given."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(20_000, 4, generator=generator).mul(1.5).softmax(1)
    labels = torch.multinomial(p, 1, generator=generator)[:, 0]
    distorted = temper(p, 1 / temperature)
    # log T has a standard error of 1 % here, by the Fisher information of 1/T
    assert fit_temperature(distorted, labels) == pytest.approx(temperature, rel=0.04)
    torch.testing.assert_close(temper(distorted, temperature), p, atol=1e-5, rtol=1e-4)


def networks(**method):
    config = Config(
        data=DataConfig(labels_per_class=1),
        model=ModelConfig(codes=3, hidden=(5,)),
        method=MethodConfig(theta_particles=1, **method),
    )
    return build_networks(config, 6, "cpu")


def test_members_average_to_the_prediction():
    """Over label decoders and codes alike; an image's noise depends on its place alone."""
    made, pixels = networks(label_particles=4), (torch.rand(9, 6) < 0.5).float()
    members = member_probabilities(made, pixels, seed=3, samples=7)
    assert members.shape == (4, 9, 10)
    every = class_probabilities(made, pixels, seed=3, samples=7)
    torch.testing.assert_close(every, members.mean(0))
    torch.testing.assert_close(class_probabilities(made, pixels[:2], seed=3, samples=7), every[:2])
    assert not torch.equal(class_probabilities(made, pixels, seed=4, samples=7), every)


def test_mixture_has_no_higher_nll_than_its_members():
    """Jensen: -log mean <= mean of -log."""
    made, pixels = networks(label_particles=4), (torch.rand(9, 6) < 0.5).float()
    assert made.labels is not None
    made.labels.trained()[0].mul_(20)
    labels = torch.randint(10, (9,))
    members = member_probabilities(made, pixels, seed=3, samples=7)
    alone = sum(scores(each, labels).nll for each in members) / 4
    assert scores(members.mean(0), labels).nll < alone


def test_nearest_neighbour():
    known = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    codes = torch.tensor([[1.0, 0.0], [4.0, 4.0], [2.0, 2.0], [9.0, 9.0]])
    labels = torch.tensor([0, 1, 1, 0])
    assert nearest_neighbour_error(codes, labels, known, torch.tensor([0, 1])) == 0.5


def test_confusion_counts():
    probabilities = torch.eye(3)[[0, 1, 1, 2, 0]]
    found = confusion(probabilities, torch.tensor([0, 1, 2, 2, 1]))
    assert found.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
