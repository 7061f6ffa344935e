"""Annealed bounds against log p(x) that is known exactly, and that breaking them shows."""

from __future__ import annotations

from dataclasses import replace
from math import log, pi

import pytest
import torch
from torch import Tensor

from steinvae.config import Config, MethodConfig, ModelConfig
from steinvae.density import annealed, hmc
from steinvae.density.annealed import ais, reverse_ais
from steinvae.density.annealing import Annealing, sigmoid_schedule
from steinvae.density.likelihood import log_mean_exp
from steinvae.density.sandwich import Sandwich, bdmc, simulate
from steinvae.networks import Networks, build_networks
from tests.method.models import CODES, PIXELS, LinearGaussian, linear_networks

NATS = 0.05
LONG = Annealing(temperatures=100, chains=1024)
SHORT = Annealing(temperatures=6, chains=2)


class SimulatedLinear(LinearGaussian):
    """A linear Gaussian model that can be drawn from."""

    def draw_images(self, theta, codes, generator) -> Tensor:
        mean = codes @ theta["weight"][0]
        return mean + self.noise * torch.randn(mean.shape, generator=generator)


MODEL = SimulatedLinear()


def simulated_networks(decoders: int) -> Networks:
    _, networks = linear_networks(decoders, 1.0)
    networks.model = MODEL
    return networks


def weights(networks: Networks) -> Tensor:
    return networks.theta.flat.view(-1, CODES, PIXELS)


def exact(networks: Networks, pixels: Tensor) -> Tensor:
    """log p(x) of the mixture, (B,)."""
    each = [MODEL.log_evidence(weight, pixels) for weight in weights(networks)]
    return log_mean_exp(torch.stack(each), 0)


def exact_average(networks: Networks, pixels: Tensor) -> Tensor:
    """log of the integral of N(z) exp(mean_m log p(x | z, W_m)): its exponent is quadratic in z."""
    each, variance = weights(networks), MODEL.noise**2
    precision = torch.eye(CODES) + (each @ each.mT).mean(0) / variance
    linear = pixels @ each.mean(0).T / variance
    quadratic = (linear @ precision.inverse() * linear).sum(-1)
    constant = pixels.square().sum(-1) / variance + PIXELS * log(2 * pi * variance)
    return (0.5 * (quadratic - constant) - 0.5 * precision.logdet()).double()


def test_schedule_rises_from_0_to_1_and_is_dense_at_both_ends():
    schedule = sigmoid_schedule(100)
    gaps = schedule.diff()
    assert len(schedule) == 101
    assert (schedule[0], schedule[-1]) == (0, 1)
    assert (gaps > 0).all()
    assert gaps[0] < gaps[50] / 5
    torch.testing.assert_close(gaps, gaps.flip(0))


@pytest.mark.parametrize("decoders", [1, 3])
def test_ais_is_exact_for_linear_gaussian_models(decoders):
    _, networks = linear_networks(decoders, 1.0)
    pixels = torch.randn(6, PIXELS)
    found = ais(networks, pixels, LONG, seed=0).lower
    assert (found - exact(networks, pixels)).abs().max() < NATS


def test_decoders_count_by_the_treatment_that_is_asked_for():
    _, networks = linear_networks(3, 1.0)
    pixels = torch.randn(6, PIXELS)
    settings = replace(LONG, theta="average")
    found, wanted = ais(networks, pixels, settings, seed=0).lower, exact_average(networks, pixels)
    assert (found - wanted).abs().max() < NATS
    assert (exact(networks, pixels) - wanted).min() > NATS  # told apart, and a lower bound


@pytest.mark.parametrize("decoders", [1, 3])
def test_long_chains_close_the_sandwich(decoders):
    networks = simulated_networks(decoders)
    sandwich = bdmc(networks, 24, replace(LONG, chains=128), seed=0)
    truth = exact(networks, simulate(networks, 24, seed=0)[0])
    assert sandwich.consistent
    assert abs(sandwich.gap) < NATS
    assert (sandwich.lower - truth).mean().abs() < NATS
    assert (sandwich.upper - truth).mean().abs() < NATS


def excess(bound: Tensor, truth: Tensor) -> float:
    """Mean of bound - truth in standard errors over images; no image counts by over 5 nats."""
    apart = (bound - truth).clamp(-5, 5)
    return (apart.mean() / (apart.std() / len(apart) ** 0.5)).item()


def test_short_chains_leave_the_truth_in_between():
    """So short that both bounds are off by many standard errors, each to its side."""
    networks = simulated_networks(3)
    sandwich = bdmc(networks, 400, SHORT, seed=1)
    truth = exact(networks, simulate(networks, 400, seed=1)[0])
    assert excess(sandwich.lower, truth) < -4
    assert excess(sandwich.upper, truth) > 4
    assert sandwich.gap > 0.2


def test_weights_are_unbiased_at_any_length():
    """E w = p(x) forward and E 1/w = 1/p(x) backward, for one image and very short chains."""
    networks, repeats = simulated_networks(1), 3_000
    pixels = simulate(networks, 1, seed=3)[0].expand(repeats, -1)
    to_mean, covariance = MODEL.posterior(weights(networks)[0])
    spread = torch.randn(repeats, CODES) @ torch.linalg.cholesky(covariance).T
    settings = Annealing(temperatures=25, chains=2, pilot_chains=1)
    truth = exact(networks, pixels[:1])
    forward = ais(networks, pixels, settings, seed=0).log_weights - truth
    backward = (
        truth
        - reverse_ais(networks, pixels, pixels @ to_mean + spread, settings, seed=0).log_weights
    )
    for log_ratio in (forward, backward):
        ratio = log_ratio.exp().mean(1)  # the chains of a reverse run share their first code
        error = ratio.std() / repeats**0.5
        assert error < 0.1
        assert (ratio.mean() - 1).abs() < 4 * error


def hotter(evaluate, chains, draws, inverse_temperature, step, **settings):
    """A sampler that aims at the wrong target."""
    return hmc.transition(evaluate, chains, draws, 0.6 * inverse_temperature, step, **settings)


def unadjusted(evaluate, chains, draws, inverse_temperature, step, **settings):
    """A sampler that never rejects, with steps that are made for rejections."""
    draws = draws._replace(uniform=torch.zeros_like(draws.uniform))
    return hmc.transition(evaluate, chains, draws, inverse_temperature, 0.75 * step, **settings)


def sleeping(evaluate, chains, draws, inverse_temperature, step, **settings):
    """A valid sampler that does not move: nothing is wrong but the looseness."""
    return chains, torch.ones_like(chains.log_likelihood)


def shifted(evaluate, chains, draws, inverse_temperature, step, **settings):
    """Weights that are taken with another likelihood than the one the chains move in."""
    moved, acceptance = hmc.transition(
        evaluate, chains, draws, inverse_temperature, step, **settings
    )
    return moved._replace(log_likelihood=moved.log_likelihood + 0.1), acceptance


def bounds(sampler, monkeypatch) -> tuple[Sandwich, float, float]:
    """The sandwich with a sampler in place of HMC, and the excess of its bounds over the truth."""
    networks = simulated_networks(1)
    monkeypatch.setattr(annealed, "transition", sampler)
    sandwich = bdmc(networks, 100, Annealing(temperatures=40, chains=64), seed=2)
    truth = exact(networks, simulate(networks, 100, seed=2)[0])
    return sandwich, excess(sandwich.lower, truth), excess(sandwich.upper, truth)


@pytest.mark.parametrize("sampler", [hmc.transition, sleeping])
def test_valid_sampler_is_accepted_however_slow(sampler, monkeypatch):
    sandwich, lower, upper = bounds(sampler, monkeypatch)
    assert lower < 4
    assert upper > -4
    assert sandwich.consistent


@pytest.mark.parametrize("sampler", [hotter, unadjusted, shifted])
def test_broken_sampler_is_caught_by_the_exact_value(sampler, monkeypatch):
    _, lower, upper = bounds(sampler, monkeypatch)
    assert lower > 4 or upper < -4


@pytest.mark.parametrize(("sampler", "caught"), [(hotter, True), (shifted, False)])
def test_what_the_sandwich_alone_can_catch(sampler, caught, monkeypatch):
    """A wrong target turns the bounds round; an error that moves both alike stays hidden."""
    sandwich, _, _ = bounds(sampler, monkeypatch)
    assert sandwich.consistent is not caught


def test_image_has_its_own_randomness_whatever_its_company(monkeypatch):
    networks = simulated_networks(3)
    pixels, codes = simulate(networks, 5, seed=4)
    settings = Annealing(temperatures=12, chains=3)
    whole = ais(networks, pixels, settings, seed=4).lower
    back = reverse_ais(networks, pixels, codes, settings, seed=4).upper
    monkeypatch.setattr(annealed, "CHAIN_LOGITS", 2 * 3 * 3 * PIXELS)  # two images at a time
    torch.testing.assert_close(ais(networks, pixels, settings, seed=4).lower, whole)
    torch.testing.assert_close(reverse_ais(networks, pixels, codes, settings, seed=4).upper, back)
    torch.testing.assert_close(ais(networks, pixels[:2], settings, seed=4).lower, whole[:2])
    assert (ais(networks, pixels, settings, seed=5).lower - whole).abs().min() > 1e-4
    torch.testing.assert_close(simulate(networks, 2, seed=4)[0], pixels[:2])


def test_simulated_images_are_those_of_the_model():
    """Bits of a Bernoulli network have its mean; all decoders are drawn from."""
    networks = build_networks(
        Config(model=ModelConfig(codes=2, hidden=(5,)), method=MethodConfig(theta_particles=3)),
        PIXELS,
        "cpu",
    )
    networks.theta.flat[1] += 1  # so that one decoder is not the mixture
    pixels, codes = simulate(networks, 3_000, seed=0)
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    means = networks.model.logits(networks.theta.leaves(), codes[None]).sigmoid()  # type: ignore
    wanted = means.mean((0, 1))
    assert (pixels.mean(0) - wanted).abs().max() < 4 * 0.5 / 3_000**0.5
    assert (pixels.mean(0) - means[0].mean(0)).abs().max() > 4 * 0.5 / 3_000**0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [(name, 0) for name in ("temperatures", "chains", "pilot_chains", "leapfrogs", "acceptance")],
)
def test_wrong_setting_is_named(field, value):
    with pytest.raises(ValueError, match=f"Annealing: {field} must"):
        Annealing(**{field: value})


def test_sandwich_is_refused_where_no_exact_code_exists():
    networks = simulated_networks(2)
    with pytest.raises(ValueError, match="exact codes exist for theta mixture only"):
        bdmc(networks, 2, replace(SHORT, theta="average"), seed=0)
    with pytest.raises(ValueError, match="images must be at least 1"):
        simulate(networks, 0, seed=0)
    _, silent = linear_networks(1, 1.0)
    with pytest.raises(TypeError, match="LinearGaussian has no draw_images"):
        bdmc(silent, 2, SHORT, seed=0)
