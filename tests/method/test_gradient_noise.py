"""Signal, noise and agreement of gradient estimates: without bias, and of the right gradients."""

from __future__ import annotations

from itertools import count
from math import inf, sqrt

import pytest
import torch
from torch import Tensor

from steinvae.baselines import flow_elbo
from steinvae.config import MethodConfig
from steinvae.experiments.direction_variants import KNOW_DENSITY, VARIANTS
from steinvae.experiments.gradient_noise import EXACT, PARTS, Power, Sums, measure, parts
from steinvae.gradients import Batch, encoder_gradients
from steinvae.monitor import exact_score
from steinvae.stein import posterior_scores

REPEATS = 5


def powers(estimates: Tensor, exact: Tensor) -> Power:
    """Of (R, P) repeats, as one minibatch."""
    own, other = Sums(torch.zeros(estimates.shape[1])), Sums(torch.zeros(estimates.shape[1]))
    for one, beside in zip(estimates, exact, strict=True):
        own.add(one, beside)
        other.add(beside, beside)
    power = Power()
    power.add(own, other, len(estimates), 1.0)
    return power


def test_powers_are_the_means_over_pairs_written_out():
    estimates, exact = torch.randn(2, REPEATS, 7)
    power = powers(estimates, exact)
    pairs = [(r, s) for r in range(REPEATS) for s in range(REPEATS) if r != s]
    signal = sum(estimates[r] @ estimates[s] for r, s in pairs) / len(pairs)
    agreement = sum(estimates[r] @ exact[s] for r, s in pairs) / len(pairs)
    assert power.signal == pytest.approx(float(signal), rel=1e-4)
    assert power.agreement == pytest.approx(float(agreement), rel=1e-4)
    assert power.signal + power.noise == pytest.approx(
        estimates.square().sum(1).mean().item(), rel=1e-4
    )


def test_known_signal_and_noise_are_found():
    """G = 3 a + noise of variance 1 in P dimensions, E = a + noise; |a| = 1, <a, b> = cosine.

    Of 400 repeats with P = 50 the errors are below 0.1: those of signal 2 * 3 sqrt(1/400) = 0.3
    of 9 and sqrt(2 P) / 400 = 0.03, of noise sqrt(2 * 50 / 400) = 0.5 of 50.
    """
    draw = torch.Generator().manual_seed(0)
    a, b = torch.eye(50)[0], (torch.eye(50)[0] + torch.eye(50)[1]) / sqrt(2)
    noise, other = torch.randn(2, 400, 50, generator=draw).unbind()
    power = powers(3 * b + noise, a + 0.1 * other)
    assert power.signal_to_noise() == pytest.approx(3 / sqrt(50), abs=0.05)
    assert power.cosine(inf) == pytest.approx(1 / sqrt(2), abs=0.05)
    assert power.cosine(1) == pytest.approx(3 / sqrt(2) / sqrt(9 + 50), abs=0.05)
    assert power.cosine(4) == pytest.approx(3 / sqrt(2) / sqrt(9 + 50 / 4), abs=0.05)


def test_parts_are_rows_of_the_gradient(make_networks, pixels):
    networks = make_networks(flow_blocks=2)
    codes = networks.encoder(pixels, torch.randn(4, 5, 2).double())
    direction = torch.randn_like(codes)
    got = parts(networks, codes, direction)
    whole = encoder_gradients(networks, codes, direction)
    assert tuple(got) == PARTS
    torch.testing.assert_close(got["all"], torch.cat([item.flatten() for item in whole]))
    named = dict(zip(dict(networks.encoder.named_parameters()), whole, strict=True))
    torch.testing.assert_close(
        got["width"],
        torch.cat([named["head.last.weight"], named["head.last.bias"][:, None]], 1)[2:].flatten(),
    )
    blocks = [item for name, item in named.items() if name.startswith(("residual", "further"))]
    assert len(got["shape"]) == sum(item.numel() for item in blocks)


def test_the_reference_is_the_elbo_s_gradient(make_networks, pixels):
    """Means of J^T (g - grad log q) and of flow_elbo's gradient over 60 draws: equal to 5 errors.

    The errors of the five largest entries, each draw's two gradients from the same codes.
    """
    method = MethodConfig(name="flow_elbo", weights="none", theta_particles=1)
    networks = make_networks(name="flow_elbo")
    gaps, references = [], []
    for _ in range(60):
        noise = torch.randn(4, 50, 2).double()
        codes = networks.encoder(pixels, noise)
        scores = posterior_scores(networks.model, networks.theta, codes, pixels, data_size=1)
        pull = scores.codes - exact_score(networks.encoder, pixels, noise).score
        reference = parts(networks, codes, pull)["all"]
        elbo = flow_elbo(networks, Batch(pixels, noise), method, 40).eta
        gaps.append(torch.cat([item.flatten() for item in elbo]) - reference)
        references.append(reference)
    gap, mean = torch.stack(gaps), torch.stack(references).mean(0)
    largest = mean.abs().topk(5).indices
    error = gap.std(0) / 60**0.5
    assert (gap.mean(0).abs() < 5 * error + 1e-12)[largest].all()
    assert (mean.abs() > 5 * error)[largest].all()


def test_all_directions_are_measured_on_the_same_codes(make_networks, pixels, monkeypatch):
    """A clock that ticks once a reading: the score of the density is on the bill of those that ask
    for it."""
    monkeypatch.setattr("time.process_time", count().__next__)
    networks = make_networks()
    draw = torch.Generator().manual_seed(0)
    found = measure(networks, [pixels, pixels], VARIANTS, samples=8, repeats=4, generator=draw)
    assert set(found) == set(VARIANTS)
    assert EXACT not in found
    exact = found["g - grad log q, no kernel"]
    for part in PARTS:
        assert exact[part].signal == pytest.approx(exact[part].exact, rel=1e-5)
        assert exact[part].agreement == pytest.approx(exact[part].exact, rel=1e-5)
    ticks = {name: each["all"].seconds for name, each in found.items()}
    assert ticks == {name: 2 * (3 if name in KNOW_DENSITY else 2) for name in VARIANTS}
