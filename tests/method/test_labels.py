"""Labels in the update: gradients against autograd, scales, weights, what labels do not change."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
import torch.nn.functional as F

from stein_kernels import median_bandwidth, rbf_gram, svgd_direction
from steinvae.config import Config, DataConfig, MethodConfig
from steinvae.gradients import Batch
from steinvae.labels.m2_network import M2
from steinvae.labels.softmax import SoftmaxLabels
from steinvae.labels.stein import code_weights
from steinvae.labels.task import LabelTask, image_scores
from steinvae.monitor import cosine, exact_score, reference_noise
from steinvae.objectives import stein_vae, stein_viwae
from steinvae.pairs import Pairing
from steinvae.recognition import GaussianEncoder
from steinvae.stein import code_direction, code_scores, posterior_scores, theta_direction
from steinvae.weights import log_prior_over_q
from tests.method.labelled import (
    CLASSES,
    CODES,
    LABELS,
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


@pytest.fixture
def heads() -> SoftmaxLabels:
    made = SoftmaxLabels(CODES, CLASSES, 4, torch.Generator().manual_seed(1))
    made.theta.flat = 10 * made.theta.flat.double()
    made.theta.flat[:, -CLASSES:] = torch.randn(4, CLASSES, dtype=torch.float64)
    return made


@pytest.mark.parametrize("weighted", [False, True])
def test_label_scores_are_the_gradients(heads, weighted):
    """Closed forms against autograd: log mean, mean_k grad_z, and eq. 31 with the prior once."""
    codes = torch.randn(3, SAMPLES, CODES, dtype=torch.float64, requires_grad=True)
    flat = heads.theta.flat.clone().requires_grad_()
    each = log_p_by_hand(heads, flat, codes, LABELS)
    seen = heads.scores(codes.detach(), LABELS)
    torch.testing.assert_close(seen.log_likelihood, each.exp().mean(0).log().detach())
    (to_codes,) = torch.autograd.grad(each.mean(0).sum(), codes, retain_graph=True)
    torch.testing.assert_close(seen.codes, to_codes)

    weights = torch.rand(3, SAMPLES, dtype=torch.float64).softmax(-1) if weighted else None
    mean = each.mean(-1) if weights is None else (each * weights).sum(-1)
    log_posterior = -0.5 * flat.square().sum() + TASK.labelled / 3 * mean.sum()
    (expected,) = torch.autograd.grad(log_posterior, flat)
    found = heads.theta_score(
        codes.detach(), seen.residual, labelled=TASK.labelled, weights=weights
    )
    torch.testing.assert_close(found, expected)


def test_each_set_is_scaled_to_its_own_size(batch):
    """grad log p(theta) + 40/4 sum over unlabelled + 8/3 sum over labelled, prior once."""
    made = networks("stein_vae")
    codes = made.encoder(batch.pixels, batch.noise).detach()
    found = image_scores(made, codes, batch.pixels, TASK, 3, Pairing())
    flat = made.theta.flat.clone().requires_grad_()
    made.theta.flat = flat
    leaves, start = {}, 0
    for item in made.theta.parameters:
        size = torch.Size(item.shape).numel()
        leaves[item.name] = flat[:, start : start + size].view(len(flat), *item.shape)
        start += size
    mean = made.model.log_likelihood(leaves, codes[None], batch.pixels).mean(-1)
    likelihood = 10 * mean[:, :4].sum() + 8 / 3 * mean[:, 4:].sum()
    (expected,) = torch.autograd.grad(likelihood - 0.5 * flat.square().sum(), flat)
    torch.testing.assert_close(found.theta, expected)


def test_equal_rates_are_the_scores_of_one_set(batch):
    """N_u/B_u = N_l/L: nothing is left of the two sets."""
    made = networks("stein_vae")
    codes = made.encoder(batch.pixels, batch.noise).detach()
    even = LabelTask(labelled=30, unlabelled=40, zeta=1.0)
    found = image_scores(made, codes, batch.pixels, even, 3, Pairing())
    expected = posterior_scores(made.model, made.theta, codes, batch.pixels, data_size=70)
    torch.testing.assert_close(found.theta, expected.theta)
    torch.testing.assert_close(found.codes, expected.codes)


def test_labels_move_labelled_codes_alone(batch, monkeypatch):
    """The scores that reach the direction differ by zeta grad log p(y | z) on the last three."""
    made, given = networks("stein_vae"), {}
    import steinvae.labels.stein as module

    def keep(networks, batch, method, data_size, drawn, scores, weights):
        given[scores.codes] = drawn.codes
        return original(networks, batch, method, data_size, drawn, scores, weights)

    original = module.move
    monkeypatch.setattr(module, "move", keep)
    update("stein_vae", made, batch)
    ((score, codes),) = given.items()
    plain = posterior_scores(made.model, made.theta, codes, batch.pixels, data_size=1).codes
    assert isinstance(made.labels, SoftmaxLabels)
    label = TASK.zeta * made.labels.scores(codes[4:], LABELS).codes
    torch.testing.assert_close(score[:4], plain[:4])
    torch.testing.assert_close(score[4:], plain[4:] + label)
    assert label.abs().min() > 0


def test_k_of_one_is_stein_vae(batch):
    made = networks("stein_vae")
    one = update("stein_viwae", made, batch, importance_samples=1)
    plain = update("stein_vae", made, batch)
    assert all(torch.equal(a, b) for a, b in zip(one.eta, plain.eta, strict=True))
    assert torch.equal(one.theta, plain.theta)
    assert torch.equal(one.labels[0], plain.labels[0])


@pytest.mark.parametrize("zeta", [0.0, 3.0])
def test_weights_contain_the_label(batch, zeta):
    """softmax over a group of log p(x, z | theta) + zeta log p(y | z) - log q, by hand."""
    made = networks("stein_viwae")
    codes = made.encoder(batch.pixels, batch.noise).detach()
    assert isinstance(made.labels, SoftmaxLabels)
    log_p = made.labels.scores(codes[4:], LABELS).log_likelihood
    ratio = torch.randn(7, SAMPLES, dtype=torch.float64)
    with_label = ratio.clone()
    with_label[4:] += zeta * log_p
    pairing = Pairing("full", 3)
    scores = image_scores(made, codes, batch.pixels, TASK, 3, pairing, with_label)
    likelihood = scores.log_likelihood[:, 4:]
    expected = (likelihood + ratio[4:] + zeta * log_p).unflatten(-1, (2, 3)).softmax(-1)
    assert scores.weights is not None
    torch.testing.assert_close(scores.weights[:, 4:], expected.flatten(-2))
    of_codes = code_weights(scores, pairing, 3)
    torch.testing.assert_close(of_codes, expected.flatten(-2).mean(0) / 2)


@pytest.mark.parametrize("weights", ["theta", "z", "both", "none", "paper"])
def test_viwae_follows_its_own_weights(batch, weights):
    """Every kind of weights runs, and differs from the update without the label's term."""
    settings = {"code_particles": 2, "importance_samples": 3, "weights": weights}
    made = networks("stein_viwae", **settings)
    found = update("stein_viwae", made, batch, **settings)
    assert all(torch.isfinite(item).all() for item in (*found.eta, found.theta, *found.labels))
    unlabelled = MethodConfig(name="stein_viwae", theta_particles=2, **settings)
    without = stein_viwae(made, batch._replace(labels=None), unlabelled, TASK.images)
    assert not torch.equal(found.eta[0], without.eta[0])


def test_vae_descends_the_elbo_and_the_labels(batch):
    """eta: autograd of mean(-ELBO) - zeta/B sum over labelled of mean log p(y | z)."""
    made = networks("vae")
    assert isinstance(made.labels, SoftmaxLabels)
    found = update("vae", made, batch)
    encoder = made.encoder
    assert isinstance(encoder, GaussianEncoder)
    mean, log_sigma = encoder.moments(encoder.features(batch.pixels))
    codes = mean[:, None] + log_sigma.exp()[:, None] * batch.noise
    rate = 0.5 * (mean.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(-1)
    likelihood = made.model.log_likelihood(made.theta.leaves(), codes[None], batch.pixels)
    label = log_p_by_hand(made.labels, made.labels.theta.flat, codes[4:], LABELS).mean((0, 2))
    loss = (rate - likelihood.mean((0, 2))).mean() - TASK.zeta * label.sum() / 7
    expected = torch.autograd.grad(loss, made.eta())
    for one, other in zip(found.eta, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_supervised_looks_at_the_labelled_half_alone(batch):
    made = networks("supervised")
    found = update("supervised", made, batch)
    other = batch._replace(pixels=torch.cat([1 - batch.pixels[:4], batch.pixels[4:]]))
    again = update("supervised", made, other)
    assert all(torch.equal(a, b) for a, b in zip(found.eta, again.eta, strict=True))
    assert found.theta.abs().max() == 0
    assert isinstance(made.labels, SoftmaxLabels)
    codes = made.encoder(batch.pixels[4:], batch.noise[4:])
    label = log_p_by_hand(made.labels, made.labels.theta.flat, codes, LABELS)
    expected = torch.autograd.grad(-label.mean(), made.eta(), materialize_grads=True)
    for one, right in zip(found.eta, expected, strict=True):
        torch.testing.assert_close(one, right)


# --- M1+M2 -----------------------------------------------------------------------------------


def test_m2_leaves_m1_to_its_elbo(batch):
    """Encoder and decoder follow the plain ELBO; labels change M2 alone."""
    made = networks("m2")
    found = update("m2", made, batch)
    other = update("m2", made, batch._replace(labels=(LABELS + 1) % CLASSES))
    assert all(torch.equal(a, b) for a, b in zip(found.eta, other.eta, strict=True))
    assert not torch.equal(found.labels[0], other.labels[0])


def test_m2_bounds_the_evidence():
    """Averaged over a, -L(z, y) is below log p(z, y) by the KL; with q(a) = p(a) and a decoder that
    ignores a it is exact."""
    model = M2(2, 4, torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        for parameter in (*model.encoder.last.parameters(), *model.decoder.last.parameters()):
            parameter.zero_()
    codes = torch.randn(5, 2, dtype=torch.float64)
    onehot = torch.eye(4, dtype=torch.float64)[torch.tensor([0, 1, 2, 3, 1])]
    found = model.negative_bound(codes, onehot, torch.randn_like(codes))
    expected = log(4) - torch.distributions.Normal(0, 1).log_prob(codes).sum(-1)
    torch.testing.assert_close(found, expected)


def test_m2_loss_sums_out_unknown_classes():
    """U = sum_y q (L + log q), L of a known class, and the classifier's term, by a loop."""
    model = M2(2, 3, torch.Generator().manual_seed(3)).double()
    codes, noise = torch.randn(2, 4, 2, dtype=torch.float64).unbind()
    labels = torch.tensor([2, 0])
    log_q = model.log_probabilities(codes[:, None])[0, :, 0]
    every = torch.eye(3, dtype=torch.float64)
    unlabelled = sum(
        log_q[i, y].exp() * (model.negative_bound(codes[i], every[y], noise[i]) + log_q[i, y])
        for i in range(2)
        for y in range(3)
    )
    known = [
        model.negative_bound(codes[2 + i], every[y], noise[2 + i]) for i, y in enumerate(labels)
    ]
    expected = 0.9 * unlabelled / 2 + 0.1 * sum(known) / 2 + 0.3 * F.nll_loss(log_q[2:], labels)
    torch.testing.assert_close(model.loss(codes, noise, labels, (0.9, 0.1), 0.3), expected)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": MethodConfig(zeta=2.0)}, "method.zeta"),
        ({"method": MethodConfig(label_particles=2)}, "method.label_particles"),
        ({"method": MethodConfig(name="m2")}, "method.name"),
        ({"method": MethodConfig(name="supervised")}, "method.name"),
    ],
)
def test_settings_of_labels_are_refused_without_labels(changes, named):
    with pytest.raises(ValueError, match=f"^{named} must be .*data.labels_per_class"):
        Config(**changes)


def test_methods_that_cannot_use_labels_say_so():
    with pytest.raises(ValueError, match=r"^method.name must be one of .*labels"):
        Config(data=DataConfig(labels_per_class=1), method=MethodConfig(name="iwae"))
    with pytest.raises(ValueError, match=r"^method.mass_rate must be off where labels are in use"):
        Config(data=DataConfig(labels_per_class=1), method=MethodConfig(mass_rate=0.3))
    with pytest.raises(ValueError, match=r"^method.zeta must be left out"):
        Config(data=DataConfig(labels_per_class=1), method=MethodConfig(name="m2", zeta=1.0))


def test_unlabelled_update_has_no_trace_of_labels(batch):
    """The same networks with and without label decoders give the same bits."""
    made = networks("stein_vae")
    method, plain = MethodConfig(theta_particles=2), replace(made, labels=None)
    batch = batch._replace(labels=None)
    first, second = (stein_vae(each, batch, method, 48) for each in (made, plain))
    assert torch.equal(first.theta, second.theta)
    assert all(torch.equal(a, b) for a, b in zip(first.eta, second.eta, strict=True))
    assert not first.labels


@pytest.mark.parametrize("labels", [LABELS, torch.tensor([0, 7, 3, 1, 2])])
def test_the_monitor_compares_codes_of_what_was_shown_with_the_posterior_of_the_image(
    batch, labels
):
    """Of the images without a label, whose posterior has no label in it."""
    made, shown = networks("stein_vae"), batch.pixels.flip(0)
    batch = batch._replace(labels=labels, visible=shown, monitor=True, compare=True)
    found = update("stein_vae", made, batch).stats
    rows = min(4, 7 - len(labels))
    pixels, noise = batch.pixels[:rows], batch.noise[:rows]
    codes, _, _ = exact_score(made.encoder, shown[:rows], noise)
    reference, of_reference, _ = exact_score(made.encoder, shown[:rows], reference_noise(noise))
    score = code_scores(made.model, made.theta, codes, pixels)
    direction = code_direction(codes, score, bandwidth="liu_wang", leave_one_out=True)
    known = code_scores(made.model, made.theta, reference, pixels) - of_reference
    near = rbf_gram(reference, codes, bandwidth=median_bandwidth(codes, rule="liu_wang"))
    field = near.mT @ known / known.shape[1]
    torch.testing.assert_close(found["direction_cosine_field"], cosine(direction, field))
    torch.testing.assert_close(
        found["direction_snr_field"], field.norm() / (direction - field).norm()
    )


def test_the_monitor_compares_nothing_where_guesses_act(batch):
    made, batch = networks("stein_vae"), batch._replace(monitor=True, compare=True)
    assert "direction_cosine_field" in update("stein_vae", made, batch).stats
    guessed = update("stein_vae", made, batch, guess_above=0.5).stats
    assert "stein_discrepancy" in guessed
    assert not any("direction_" in name or "field_" in name for name in guessed)


@pytest.mark.parametrize("bandwidth", ["liu_wang", "median", 7.0])
def test_label_decoders_follow_the_direction_of_their_scores(batch, bandwidth):
    made = networks("stein_vae")
    found = update("stein_vae", made, batch, theta_bandwidth=bandwidth)
    heads, codes = made.labels, made.encoder(batch.pixels, batch.noise).detach()[4:]
    assert isinstance(heads, SoftmaxLabels)
    residual = heads.scores(codes, LABELS).residual
    score = heads.theta_score(codes, residual, labelled=TASK.labelled)
    direction = svgd_direction(heads.theta.flat, score, bandwidth=bandwidth) / TASK.labelled
    torch.testing.assert_close(found.labels[0], -direction)


@pytest.mark.parametrize("log_q", ["gauss", "jac", "kde"])
def test_decoders_follow_weights_by_the_density_that_is_set(batch, log_q):
    """omega = p(x, z) p(y | z)^zeta / q(z | x), q with the codes' bandwidth where it has one."""
    settings = {"code_particles": 2, "importance_samples": 3, "log_q": log_q, "bandwidth": 0.3}
    made = networks("stein_viwae", **settings)
    found = update("stein_viwae", made, batch, **settings)
    codes = made.encoder(batch.pixels, batch.noise).detach()
    ratio = log_prior_over_q(
        *(made.encoder, codes, batch.pixels, batch.noise), estimator=log_q, bandwidth=0.3
    )
    assert isinstance(made.labels, SoftmaxLabels)
    ratio[4:] += TASK.zeta * made.labels.scores(codes[4:], LABELS).log_likelihood
    score = image_scores(made, codes, batch.pixels, TASK, 3, Pairing("full", 3), ratio).theta
    direction = theta_direction(made.theta.flat, score, bandwidth="liu_wang", data_size=TASK.images)
    torch.testing.assert_close(found.theta, -direction)


def test_m2_follows_its_loss_on_the_first_code_and_its_prior(batch):
    """The noise of its auxiliary code is that of the last one, which the first does not know."""
    made = networks("m2")
    found, model = update("m2", made, batch), made.labels
    assert isinstance(model, M2)
    codes = made.encoder(batch.pixels, batch.noise).detach()[:, 0]
    shares = (TASK.unlabelled / TASK.images, TASK.labelled / TASK.images)
    loss = model.loss(codes, batch.noise[:, -1], LABELS, shares, 0.1)
    gradients = torch.autograd.grad(loss, model.trained())
    for own, gradient, value in zip(found.labels, gradients, model.trained(), strict=True):
        torch.testing.assert_close(own, gradient + value.detach() / TASK.images)
