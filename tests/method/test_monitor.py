"""The monitor: the exact score of q, and what it says of the Stein direction."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from steinvae import monitor
from steinvae.config import MethodConfig
from steinvae.gradients import Batch
from steinvae.monitor import (
    cosine,
    direction_stats,
    exact_score,
    folded_fraction,
    reference_noise,
)
from steinvae.networks import Networks
from steinvae.objectives import stein_vae
from steinvae.recognition import make_encoder
from steinvae.stein import code_direction, posterior_scores
from tests.method.test_encoder_density import build

close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["gaussian", "flow", "planar", "triangular"])
def test_exact_score_is_the_slope_of_log_q_between_neighbouring_codes(kind):
    """log q(z') - log q(z) = (z' - z).(s + s') / 2 up to third order, in any direction."""
    encoder = build(kind, 3, 2)
    pixels, noise = torch.rand(2, 6).double(), torch.randn(2, 5, 3).double()
    codes, score, _ = exact_score(encoder, pixels, noise)
    _, log_q = encoder.codes_and_log_density(pixels, noise)
    for _ in range(3):
        near = noise + 1e-4 * torch.randn(2, 5, 3).double()
        moved, moved_score, _ = exact_score(encoder, pixels, near)
        _, moved_log_q = encoder.codes_and_log_density(pixels, near)
        expected = ((moved - codes) * (score + moved_score) / 2).sum(-1)
        torch.testing.assert_close(moved_log_q - log_q, expected, rtol=1e-5, atol=1e-9)


def test_exact_score_of_a_gaussian():
    encoder = build("gaussian", 3)
    pixels, noise = torch.rand(2, 6).double(), torch.randn(2, 5, 3).double()
    _, log_sigma = encoder.moments(encoder.features(pixels))  # type: ignore[attr-defined]
    close(exact_score(encoder, pixels, noise).score, -noise / log_sigma.exp()[:, None].detach())


def pieces(networks: Networks, pixels: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, score and leave-one-out direction of `samples` codes an image."""
    noise = torch.randn(len(pixels), samples, 2).double()
    codes = networks.encoder(pixels, noise).detach()
    score = posterior_scores(networks.model, networks.theta, codes, pixels, data_size=1).codes
    return noise, score, code_direction(codes, score, bandwidth=1.3, leave_one_out=True)


def test_stats_are_those_of_the_fields_written_out(make_networks, pixels, monkeypatch):
    monkeypatch.setattr(monitor, "reference_noise", lambda like: reference_noise(like, 8))
    networks = make_networks(theta_particles=2, flow_blocks=2)
    noise, score, direction = pieces(networks, pixels, 5)
    stats = direction_stats(networks, pixels, noise, score, direction, bandwidth=1.3)
    codes, own, _ = exact_score(networks.encoder, pixels, noise)
    reference, of_reference, _ = exact_score(networks.encoder, pixels, reference_noise(noise, 8))
    posterior = posterior_scores(
        networks.model, networks.theta, reference, pixels, data_size=1
    ).codes
    field = torch.zeros_like(codes)
    for b in range(4):
        for j in range(5):
            for r in range(8):
                kernel = torch.exp(-(codes[b, j] - reference[b, r]).square().sum() / 1.3)
                field[b, j] += kernel * (posterior[b, r] - of_reference[b, r]) / 8
    close(stats["direction_cosine_field"], cosine(direction, field))
    close(stats["direction_snr_field"], field.norm() / (direction - field).norm())
    close(stats["field_cosine_score"], cosine(field, score - own))
    close(stats["direction_cosine_score"], cosine(direction, score - own))
    along = (direction * (score - own)).sum() / (score - own).norm() ** 2 * (score - own)
    close(stats["direction_snr_score"], along.norm() / (direction - along).norm())


def test_more_codes_bring_the_direction_to_the_field(make_networks, pixels, monkeypatch):
    """Noise falls with S; what the kernel costs does not."""
    monkeypatch.setattr(monitor, "reference_noise", lambda like: reference_noise(like, 4000))
    networks = make_networks()
    measured = {}
    for samples in (5, 50, 2000):
        noise, score, direction = pieces(networks, pixels, samples)
        measured[samples] = direction_stats(
            networks, pixels, noise, score, direction, bandwidth=1.3
        )
    cosines = [stats["direction_cosine_field"] for stats in measured.values()]
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[2] > 0.98
    signal = [stats["direction_snr_field"] for stats in measured.values()]
    assert signal[2] > 2 * signal[1] > 4 * signal[0]
    assert measured[2000]["field_cosine_halves"] > 0.98
    kernel = [measured[samples]["field_cosine_score"] for samples in (50, 2000)]
    assert (kernel[0] - kernel[1]).abs() < 0.1


def test_folds_are_counted_by_the_rarer_sign():
    noise, pixels = torch.randn(1, 200, 3).double(), torch.rand(3, 6).double()
    for kind in ("gaussian", "flow", "planar"):
        assert folded_fraction(build(kind, 3, 2), pixels, noise) == 0
    folded = folded_fraction(build("residual", 3, factor=4.0), pixels, noise)
    assert 0.05 < folded <= 0.5
    mirrored = make_encoder("concat", 6, (8,), 3, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():  # nearly linear with a negative determinant: not folded
        identity = torch.eye(8, 3).double()
        mirrored.from_noise.last.weight.copy_(1e-3 * identity)  # type: ignore[union-attr, operator]
        mirrored.rest.last.weight.copy_(-identity.T)  # type: ignore[union-attr, operator]
    assert (torch.linalg.det(mirrored.jacobian(pixels, noise)) < 0).all()
    assert folded_fraction(mirrored, pixels, noise) == 0


FIELD = {
    "direction_cosine_field",
    "direction_snr_field",
    "field_cosine_score",
    "field_cosine_halves",
    "direction_cosine_score",
    "direction_snr_score",
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("encoder", "known"), [("flow", True), ("concat", False)])
def test_training_logs_what_the_encoder_allows(make_networks, pixels, encoder, known, shared):
    networks = make_networks()
    networks.encoder = make_encoder(encoder, 6, (5,), 2, torch.Generator().manual_seed(0)).double()
    batch = Batch(pixels, torch.randn(1 if shared else 4, 5, 2).double())

    def stats(**flags: bool) -> dict[str, Tensor]:
        return stein_vae(networks, batch._replace(**flags), MethodConfig(), 40).stats

    always = {"distortion", "code_spread", "direction"}
    logged = always | {"stein_discrepancy"} | (set() if known else {"folded"})
    assert set(stats()) == always
    assert set(stats(monitor=True)) == logged
    compared = stats(monitor=True, compare=True)
    assert set(compared) == (logged | FIELD if known else logged)
    assert all(value.isfinite() for value in compared.values())


def test_an_encoder_of_whole_minibatches_is_not_compared_by_a_few_images(make_networks, pixels):
    """Batch normalisation: those would have other codes, and move the averages."""
    networks = make_networks()
    networks.encoder.whole_minibatch = True
    batch = Batch(pixels, torch.randn(4, 5, 2).double(), monitor=True, compare=True)
    assert not FIELD & set(stein_vae(networks, batch, MethodConfig(), 40).stats)


@pytest.mark.parametrize("temperature", [4.0, 1.0])
def test_a_hot_direction_is_not_compared_with_the_field_of_the_posterior(
    make_networks, pixels, temperature
):
    method = MethodConfig(temperature=4.0, annealing_steps=10)
    batch = Batch(pixels, torch.randn(4, 5, 2).double(), compare=True, temperature=temperature)
    found = stein_vae(make_networks(), batch, method, 40).stats
    assert (FIELD & set(found) == FIELD) == (temperature == 1)
    assert bool(FIELD & set(found)) == (temperature == 1)
