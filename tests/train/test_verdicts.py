"""Verdicts on what each estimate rests on."""

from __future__ import annotations

from dataclasses import replace
from math import log, pi

import pytest
import torch
from torch import Tensor

from steinvae.config import Config, MethodConfig, ModelConfig
from steinvae.density import Annealing, Suite, measure_all, negative_log_likelihood
from steinvae.density import suite as suite_module
from steinvae.density.findings import NOTHING, UPPER
from steinvae.models.deep_poisson import DeepPoisson
from steinvae.models.residual import GaussianResidual
from steinvae.models.softmax_counts import SoftmaxCounts
from steinvae.networks import Networks, build_networks
from steinvae.particles import Parameter, ParticleEnsemble
from steinvae.recognition import make_encoder

SUITE = Suite(samples=40, annealing=Annealing(temperatures=6, chains=2), simulated=3)


def networks_of(encoder: str, decoders: int = 1) -> Networks:
    config = Config(
        model=ModelConfig(codes=2, hidden=(5,)), method=MethodConfig(theta_particles=decoders)
    )
    networks = build_networks(config, 6, "cpu")
    draws = torch.Generator().manual_seed(0)
    networks.encoder = make_encoder(encoder, 6, (5,), 2, draws)
    return networks


def verdicts(networks: Networks, pixels: torch.Tensor) -> dict[str, str]:
    return {found.estimator: found.holds for found in measure_all(networks, pixels, SUITE)}


def test_injective_encoder_on_bits_holds_throughout():
    found = verdicts(networks_of("flow"), (torch.rand(4, 6) < 0.5).float())
    assert {found[name] for name in ("iw_g(40)", "elbo(40)", "s_elbo(40)", "ais(6x2)")} == {"yes"}
    assert found["bdmc(6x2)"] == "not shown"


def test_folding_encoder_loses_its_elbo_and_keeps_the_rest():
    networks = networks_of("concat")
    with torch.no_grad():
        for parameter in networks.encoder.parameters():
            parameter.mul_(4)
    pixels = (torch.rand(4, 6) < 0.5).float()
    found = {f.estimator: f for f in measure_all(networks, pixels, SUITE)}
    assert found["s_elbo(40)"].diagnostics["minority_of_signs"] > 0.01
    assert found["elbo(40)"].claim == found["s_elbo(40)"].claim == NOTHING
    assert found["iw_g(40)"].claim == found["ais(6x2)"].claim == UPPER


def test_grey_levels_are_no_density():
    found = verdicts(networks_of("flow"), torch.rand(4, 6))
    assert {found[name] for name in ("iw_g(40)", "elbo(40)", "s_elbo(40)", "ais(6x2)")} == {"no"}


class Shifted:
    """p(x | z) = N(x; (z, z, z), I): a density of grey levels."""

    parameters = (Parameter("bias", (1, 6), 0.0),)

    def log_likelihood(self, theta: dict, codes: Tensor, pixels: Tensor) -> Tensor:
        means = codes.repeat_interleave(3, -1) + theta["bias"][:, None]
        apart = (pixels[:, None] - means).square() + log(2 * pi)
        return -0.5 * apart.sum(-1)

    def mean_images(self, theta: dict, codes: Tensor) -> Tensor:
        return codes.repeat_interleave(3, -1) + theta["bias"][0]


class Drawn(Shifted):
    def draw_images(self, theta: dict, codes: Tensor, generator: torch.Generator) -> Tensor:
        means = self.mean_images(theta, codes)
        return means + torch.randn(means.shape, generator=generator)


class Said(Shifted):
    normalised = True


@pytest.mark.parametrize(("kind", "holds"), [(Shifted, "not shown"), (Drawn, "yes"), (Said, "yes")])
def test_a_density_of_grey_levels_is_one(kind, holds):
    """Said by what the likelihood is, not by pixels that are no bits."""
    networks = networks_of("flow")
    theta = ParticleEnsemble(kind.parameters, 1, torch.Generator().manual_seed(0))
    own = Networks(kind(), theta, networks.encoder)
    suite = replace(SUITE, estimators=("iw_g", "elbo", "ais"))
    found = measure_all(own, torch.rand(4, 6), suite)
    assert {each.holds for each in found} == {holds}


def test_likelihoods_of_counts_and_of_photographs_say_that_they_are_normalised():
    assert all(kind.normalised for kind in (SoftmaxCounts, DeepPoisson, GaussianResidual))


@pytest.mark.parametrize(("images", "holds"), [(10, "not shown"), (100, "yes")])
def test_active_units_of_few_images_are_not_shown(images, holds):
    """Noise alone takes units past the threshold there."""
    pixels = (torch.rand(images, 6) < 0.5).float()
    (found,) = measure_all(networks_of("flow"), pixels, replace(SUITE, estimators=("units",)))
    assert found.holds == holds


def test_bound_by_few_effective_samples_is_called_loose():
    """An encoder far from the posterior: the bound holds, and its evidence says how loose it is."""
    networks, pixels = networks_of("gaussian"), (torch.rand(4, 6) < 0.5).float()
    suite = Suite(estimators=("iw_g",), samples=500)
    networks.theta.flat *= 20  # a narrow posterior
    (loose,) = measure_all(networks, pixels, suite)
    networks.theta.flat *= 0  # the posterior is the prior
    with torch.no_grad():
        for parameter in networks.encoder.parameters():
            parameter.zero_()
    (tight,) = measure_all(networks, pixels, suite)
    assert "the bound is loose" in loose.assumptions[1].evidence
    assert "the bound is loose" not in tight.assumptions[1].evidence
    assert loose.holds == tight.holds == "yes"


def test_a_diagonal_proposal_is_the_one_that_training_reports_by():
    networks, pixels = networks_of("flow"), (torch.rand(4, 6) < 0.5).float()
    suite = Suite(estimators=("iw_g",), samples=40, proposal="diagonal")
    (found,) = measure_all(networks, pixels, suite)
    reported = negative_log_likelihood(networks, pixels, samples=40, seed=0, proposal="diagonal")
    assert (found.estimator, found.value) == ("iw_d(40)", reported.value)


@pytest.mark.parametrize(
    ("estimators", "proposal", "says"),
    [
        (("iw_g",), "fitted", "set evaluation.proposal to diagonal"),
        (("elbo", "units"), "diagonal", "leave it out of the estimators"),
        (("iw_g", "units"), "diagonal", None),
    ],
)
def test_matrices_of_many_codes_are_refused_before_anything_is_made(
    estimators, proposal, says, monkeypatch
):
    monkeypatch.setattr(suite_module, "MOST_CODES", 1)
    suite = Suite(estimators=estimators, samples=10, proposal=proposal)
    found = measure_all(networks_of("flow"), torch.ones(4, 6), suite)
    if says is None:
        assert len(list(found)) == 2
    else:
        with pytest.raises(ValueError, match=says):
            list(found)
