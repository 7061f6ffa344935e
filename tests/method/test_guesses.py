"""Guessed classes of unlabelled images: what they pull, their alignment, what perturbs images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from steinvae.config import MethodConfig
from steinvae.gradients import Batch, encoder_gradients
from steinvae.labels.adversary import perturbed
from steinvae.labels.guesses import KEPT, align, guess
from steinvae.labels.objectives import labelled_objective
from steinvae.labels.softmax import SoftmaxLabels
from steinvae.labels.stein import softmax_labels
from steinvae.stein import code_direction, code_scores
from tests.method.labelled import (
    CLASSES,
    CODES,
    LABELS,
    PIXELS,
    SAMPLES,
    TASK,
    log_p_by_hand,
    minibatch,
    networks,
    update,
)


@pytest.fixture
def batch() -> Batch:
    return minibatch()


@pytest.mark.parametrize("hidden", [False, True])
def test_guesses_are_the_labels_that_all_particles_and_codes_agree_on(batch, hidden):
    """Where p averaged over both is above the bound, as for a known label; elsewhere nothing. p is
    that of the images, whatever an update shows of them.
    """
    made = networks("stein_vae")
    heads = softmax_labels(made)
    whole = made.encoder(batch.pixels, batch.noise)[:4].detach()
    codes = torch.randn(4, SAMPLES, CODES, dtype=torch.float64) if hidden else whole
    batch = batch._replace(visible=torch.rand(7, PIXELS).double() if hidden else None)
    every = torch.arange(CLASSES)
    each = torch.stack(
        [log_p_by_hand(heads, heads.theta.flat, whole, y.expand(4)).exp() for y in every]
    )
    confidence, classes = each.mean((1, 3)).max(0)
    bound = confidence.sort().values[1:3].mean().item()
    found = guess(made, heads, batch, codes, bound)
    assert found.taken.tolist() == (confidence > bound).tolist()
    assert found.taken.sum() == 2
    expected = heads.scores(codes, classes).codes
    torch.testing.assert_close(found.codes[found.taken], expected[found.taken])
    assert not found.codes[~found.taken].any()


@pytest.mark.parametrize("name", ["stein_vae", "stein_viwae", "vae"])
def test_a_guessed_class_pulls_codes_and_no_label_decoder(name, batch):
    """Sure of nothing, the update is that without guesses, to the bit. Sure of everything, the
    encoder's gradient differs by zeta times the pull of unlabelled codes through it, divided by
    their number for the VAE, and that of the label decoders does not differ.
    """
    made = networks(name)
    plain = update(name, made, batch, importance_samples=3)
    for above in (0.999999, 1e-6):
        found = update(name, made, batch, importance_samples=3, guess_above=above)
        taken = found.stats["guessed"].item()
        assert taken == (0.0 if above > 0.5 else 1.0)
        assert torch.equal(found.labels[0], plain.labels[0])
        assert torch.equal(found.theta, plain.theta)
        same = [torch.equal(a, b) for a, b in zip(found.eta, plain.eta, strict=True)]
        assert all(same) == (taken == 0.0)
    if name == "vae":
        codes = made.encoder(batch.pixels, batch.noise)
        heads = made.labels
        assert isinstance(heads, SoftmaxLabels)
        pull = TASK.zeta * guess(made, heads, batch, codes[:4].detach(), 1e-6).codes
        expected = torch.autograd.grad(-(codes[:4] * pull).sum() / (7 * SAMPLES), made.eta())
        for a, b, c in zip(found.eta, plain.eta, expected, strict=True):
            torch.testing.assert_close(a - b, c)


def test_aligned_guesses_have_the_frequencies_of_the_labels():
    """p r / m, normalised; m follows the mean of p. Predictions that are twice too often one class
    come out with the labels' frequencies on average, once m is their mean.
    """
    p = torch.softmax(torch.randn(5, 3, dtype=torch.float64), -1)
    frequencies = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    predicted = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    before = predicted.clone()
    found = align(p, predicted, frequencies)
    by_hand = p * frequencies / before
    torch.testing.assert_close(found, by_hand / by_hand.sum(1, keepdim=True))
    torch.testing.assert_close(predicted, KEPT * before + (1 - KEPT) * p.mean(0))
    even = p.mean(0).expand(5, 3)
    torch.testing.assert_close(align(even, p.mean(0), frequencies)[0], frequencies)


def test_a_class_that_is_never_predicted_stays_finite():
    predicted = torch.tensor([0.0, 1.0])
    found = align(torch.tensor([[0.0, 1.0]]), predicted, torch.tensor([0.5, 0.5]))
    assert found.tolist() == [[0.0, 1.0]]
    assert predicted.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["stein_vae", "stein_viwae", "vae"])
def test_frequencies_turn_guesses(name, batch):
    """Labels all of one class: so are the guesses, whatever was predicted."""
    made = networks(name, guess_above=0.5, align_guesses=True)
    heads = softmax_labels(made)
    assert heads.predicted is not None
    assert any(heads.predicted is own for own in made.averages())
    only = F.one_hot(torch.tensor(6), CLASSES).double()
    seen = []
    plain = type(heads).scores

    def scores(self, codes, labels):
        seen.append(labels)
        return plain(self, codes, labels)

    heads.scores = scores.__get__(heads)  # type: ignore[method-assign]
    settings = MethodConfig(name=name, theta_particles=2, importance_samples=3, guess_above=0.5)
    labelled_objective(name, replace(TASK, frequencies=only))(made, batch, settings, 48)
    assert seen[-1].tolist() == [6] * 4


def test_a_perturbation_changes_predictions_more_than_others_of_its_length(batch):
    """Of the images without a label alone, along the gradient of KL, and no more than asked."""
    made = networks("stein_vae")
    probe = torch.randn(7, PIXELS, dtype=torch.float64)
    batch = batch._replace(probe=probe, visible=batch.pixels.flip(1))
    shown = perturbed(made, batch, 0.3)
    assert torch.equal(shown.pixels, batch.pixels)
    assert torch.equal(shown.shown[4:], batch.shown[4:])
    added = (shown.shown - batch.shown)[:4]
    torch.testing.assert_close(added.norm(dim=1), torch.full((4,), 0.3, dtype=torch.float64))

    def divergence(extra: torch.Tensor) -> torch.Tensor:
        p, q = (
            softmax_labels(made)
            .log_probabilities(made.encoder(pixels, batch.noise[:4, :1]))
            .exp()
            .mean((0, 2))
            for pixels in (batch.pixels[:4], batch.pixels[:4] + extra)
        )
        return (p * (p / q).log()).sum(-1)

    others = F.normalize(torch.randn(50, 4, PIXELS, dtype=torch.float64), dim=-1) * 0.3
    with torch.no_grad():
        changed = divergence(added)
        rivals = torch.stack([divergence(other) for other in others])
    assert (changed > rivals.quantile(0.8, dim=0)).all()


def test_guesses_and_perturbations_are_of_the_encoder_as_it_predicts(batch, monkeypatch):
    """Within a training step too, whose statistics of batch normalisation are the minibatch's."""
    made = networks("stein_vae")
    probe = torch.randn(7, PIXELS, dtype=torch.float64)
    batch = batch._replace(probe=probe, visible=batch.pixels.flip(1))
    training, draw = [], made.encoder.draw

    def watched(*arguments: torch.Tensor) -> torch.Tensor:
        training.append(made.encoder.training)
        return draw(*arguments)

    monkeypatch.setattr(made.encoder, "draw", watched)
    with made.training():
        perturbed(made, batch, 0.3)
        before = len(training)
        guess(made, softmax_labels(made), batch, torch.randn(4, SAMPLES, CODES).double(), 0.0)
        assert made.encoder.training
    assert 0 < before < len(training)
    assert not any(training)


def test_stein_codes_follow_labels_and_guesses_with_one_weight():
    made, batch = networks("stein_vae"), minibatch()
    found = update("stein_vae", made, batch, guess_above=1e-6, bandwidth=0.7)
    heads, codes = made.labels, made.encoder(batch.pixels, batch.noise)
    assert isinstance(heads, SoftmaxLabels)
    z = codes.detach()
    score = code_scores(made.model, made.theta, z, batch.pixels)
    score[:4] += TASK.zeta * guess(made, heads, batch, z[:4], 1e-6).codes
    score[4:] += TASK.zeta * heads.scores(z[4:], LABELS).codes
    direction = code_direction(z, score, bandwidth=0.7, leave_one_out=True)
    torch.testing.assert_close(found.eta, encoder_gradients(made, codes, direction))
