"""Gradients of the baselines against densities and bounds written out a second time."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from steinvae.baselines import flow_elbo, iwae, planar_flow, vae, vae_weighted_decoder
from steinvae.config import MethodConfig
from steinvae.gradients import Batch, Gradients
from steinvae.networks import Networks
from steinvae.recognition import FlowEncoder, GaussianEncoder, PlanarEncoder
from tests.method.test_scores import log_likelihood

close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-10)
SIZE = 40


def grouped(name: str, **changes: Any) -> MethodConfig:
    """Two groups of three codes an image."""
    return MethodConfig(**{"name": name, "code_particles": 2, "importance_samples": 3, **changes})


def batch_of(pixels: Tensor, samples: int) -> Batch:
    return Batch(pixels, torch.randn(len(pixels), samples, 2).double())


def likelihoods(networks: Networks, flat: Tensor, codes: Tensor, pixels: Tensor) -> Tensor:
    """(B, S), one pair at a time."""
    rows = [
        torch.stack([log_likelihood(networks, flat[0], code, x) for code in row])
        for row, x in zip(codes, pixels, strict=True)
    ]
    return torch.stack(rows)


def moments(networks: Networks, pixels: Tensor) -> Normal:
    """q(z | x) of a Gaussian encoder, (B, 1, d)."""
    encoder = networks.encoder
    assert isinstance(encoder, GaussianEncoder)
    mean, log_sigma = encoder.moments(encoder.features(pixels))
    return Normal(mean[:, None], log_sigma.exp()[:, None])


def log_density_by_autograd(networks: Networks, batch: Batch) -> Tensor:
    """log N(xi) - log |det df/dxi|, code by code, with a graph: (B, S)."""
    rows = []
    for x, noise in zip(batch.pixels, batch.noise, strict=True):
        for xi in noise:
            jacobian = torch.autograd.functional.jacobian(
                lambda e, x=x: networks.encoder(x[None], e[None, None])[0, 0], xi, create_graph=True
            )
            log_det = jacobian.det().abs().log()  # type: ignore[union-attr]
            rows.append(Normal(0.0, 1.0).log_prob(xi).sum() - log_det)
    return torch.stack(rows).view(len(batch.pixels), -1)


def assert_descends(
    networks: Networks, gradients: Gradients, of_eta: Tensor, of_theta: Tensor, flat: Tensor
) -> None:
    """Gradients are those of losses per image; the prior of theta adds theta / N."""
    expected = torch.autograd.grad(of_eta, networks.eta(), retain_graph=True)
    for first, second in zip(gradients.eta, expected, strict=True):
        close(first, second)
    (to_theta,) = torch.autograd.grad(of_theta + 0.5 * flat.square().sum() / SIZE, flat)
    close(gradients.theta, to_theta)


def steepen(networks: Networks, factor: float) -> None:
    with torch.no_grad():
        for name, parameter in networks.encoder.named_parameters():
            if name.startswith(("residual", "further", "layers")):
                parameter *= factor


def test_control_is_an_elbo_encoder_with_an_importance_weighted_decoder(make_networks, pixels):
    networks = make_networks(name="vae_weighted_decoder")
    batch = batch_of(pixels, 6)
    method = grouped("vae_weighted_decoder")
    gradients = vae_weighted_decoder(networks, batch, method, SIZE)
    flat = networks.theta.flat.clone().requires_grad_()
    q = moments(networks, pixels)
    codes = q.mean + q.stddev * batch.noise
    log_p = likelihoods(networks, flat, codes, pixels)
    rate = torch.distributions.kl_divergence(q, Normal(0.0, 1.0)).sum(-1).squeeze(1)
    elbo = log_p.mean(1) - rate
    prior = Normal(0.0, 1.0).log_prob(codes).sum(-1)
    log_weights = log_p + prior - q.log_prob(codes).sum(-1)
    bound = log_weights.unflatten(1, (2, 3)).logsumexp(-1).mean(-1)
    assert_descends(networks, gradients, -elbo.mean(), -bound.mean(), flat)
    close(gradients.stats["negative_elbo"], -elbo.mean().detach())
    weights = log_weights.detach().unflatten(1, (2, 3)).softmax(-1)
    close(gradients.stats["effective_samples"], weights.square().sum(-1).reciprocal().mean())


def test_entropy_weight_scales_the_entropy_and_leaves_the_weights_alone(make_networks, pixels):
    networks = make_networks(name="vae_weighted_decoder")
    batch = batch_of(pixels, 6)
    plain, cold = (
        vae_weighted_decoder(
            networks, batch, grouped("vae_weighted_decoder", entropy_weight=weight), SIZE
        )
        for weight in (1.0, 0.25)
    )
    flat = networks.theta.flat
    q = moments(networks, pixels)
    codes = q.mean + q.stddev * batch.noise
    log_p = likelihoods(networks, flat, codes, pixels).mean(1)
    energy = -log_p + 0.5 * (q.mean.square() + q.variance).sum((1, 2))
    free = energy - 0.25 * q.entropy().sum((1, 2))
    expected = torch.autograd.grad(free.mean(), networks.eta())
    for first, second in zip(cold.eta, expected, strict=True):
        close(first, second)
    # The decoder and what is logged know nothing of it, to the bit.
    assert torch.equal(cold.theta, plain.theta)
    assert cold.stats == plain.stats


@pytest.mark.parametrize("changes", [{"importance_samples": 1}, {"weights": "none"}])
def test_control_without_weights_is_the_vae(make_networks, pixels, changes):
    networks = make_networks(name="vae_weighted_decoder")
    method = grouped("vae_weighted_decoder", **{"code_particles": 6, **changes})
    batch = batch_of(pixels, 6)
    first = vae_weighted_decoder(networks, batch, method, SIZE)
    second = vae(networks, batch, method, SIZE)
    close(first.theta, second.theta)
    for one, other in zip(first.eta, second.eta, strict=True):
        close(one, other)
    for name, value in second.stats.items():
        close(first.stats[name], value)


@pytest.mark.parametrize("weights", ["none", "theta"])
@pytest.mark.parametrize("factor", [0.3, 4.0])
def test_flow_elbo_is_the_exact_gradient_of_its_elbo(make_networks, pixels, weights, factor):
    """Also where the gain is active (factor 4): rho takes part in the derivative."""
    networks = make_networks(name="flow_elbo", flow_blocks=2)
    assert isinstance(networks.encoder, FlowEncoder)
    steepen(networks, factor)
    active = [bool(block.gain() < 1) for block in networks.encoder.blocks]
    assert all(active) if factor > 1 else not any(active)
    batch, method = batch_of(pixels, 6), grouped("flow_elbo", weights=weights)
    gradients = flow_elbo(networks, batch, method, SIZE)
    flat = networks.theta.flat.clone().requires_grad_()
    codes = networks.encoder(pixels, batch.noise)
    log_p = likelihoods(networks, flat, codes, pixels)
    prior = Normal(0.0, 1.0).log_prob(codes).sum(-1)
    log_weights = log_p + prior - log_density_by_autograd(networks, batch)
    of_theta = log_p.mean()
    if weights == "theta":
        of_theta = log_weights.unflatten(1, (2, 3)).logsumexp(-1).mean()
    assert_descends(networks, gradients, -log_weights.mean(), -of_theta, flat)
    close(gradients.stats["negative_elbo"], -log_weights.mean().detach())


@torch.no_grad()
def finite_difference(
    networks: Networks, batch: Batch, method: MethodConfig
) -> tuple[float, float]:
    """Slope of the negative ELBO along a random direction of eta, and what the gradient says."""
    along = [torch.randn_like(parameter) for parameter in networks.eta()]

    def value(step: float) -> float:
        for parameter, direction in zip(networks.eta(), along, strict=True):
            parameter += step * direction
        with torch.enable_grad():
            found = flow_elbo(networks, batch, method, SIZE).stats["negative_elbo"].item()
        for parameter, direction in zip(networks.eta(), along, strict=True):
            parameter -= step * direction
        return found

    with torch.enable_grad():
        eta = flow_elbo(networks, batch, method, SIZE).eta
    said = sum((g * a).sum().item() for g, a in zip(eta, along, strict=True))
    return (value(1e-6) - value(-1e-6)) / 2e-6, said


def test_elbo_gradient_sees_the_gain_change(make_networks, pixels):
    networks = make_networks(name="flow_elbo")
    steepen(networks, 4.0)
    measured, said = finite_difference(
        networks, batch_of(pixels, 6), grouped("flow_elbo", weights="none")
    )
    assert said == pytest.approx(measured, rel=1e-5)


def test_planar_flow_is_the_exact_gradient_of_its_elbo(make_networks, pixels):
    networks = make_networks(name="planar_flow", planar_layers=3)
    assert isinstance(networks.encoder, PlanarEncoder)
    steepen(networks, 5.0)
    batch = batch_of(pixels, 4)
    gradients = planar_flow(networks, batch, MethodConfig(name="planar_flow"), SIZE)
    flat = networks.theta.flat.clone().requires_grad_()
    codes = networks.encoder(pixels, batch.noise)
    prior = Normal(0.0, 1.0).log_prob(codes).sum(-1)
    log_p = likelihoods(networks, flat, codes, pixels)
    elbo = (log_p + prior - log_density_by_autograd(networks, batch)).mean()
    assert_descends(networks, gradients, -elbo, -log_p.mean(), flat)


def test_doubly_reparameterised_gradient_is_its_definition(make_networks, pixels):
    """sum_s w_s^2 log w(z_s(eta)), the moments inside log q held fixed; theta as in iwae."""
    networks = make_networks(name="iwae")
    batch = batch_of(pixels, 5)
    gradients = iwae(networks, batch, MethodConfig(name="iwae", iwae_gradient="dreg"), SIZE)
    flat = networks.theta.flat.clone().requires_grad_()
    q = moments(networks, pixels)
    held = Normal(q.mean.detach(), q.stddev.detach())
    codes = q.mean + q.stddev * batch.noise
    log_p = likelihoods(networks, flat, codes, pixels)
    log_weights = log_p + Normal(0.0, 1.0).log_prob(codes).sum(-1) - held.log_prob(codes).sum(-1)
    squared = log_weights.detach().softmax(-1).square()
    of_eta = -(squared * log_weights).sum(-1).mean()
    bound = log_weights.logsumexp(-1) - torch.tensor(5.0).log()
    assert_descends(networks, gradients, of_eta, -bound.mean(), flat)
    standard = iwae(networks, batch, MethodConfig(name="iwae"), SIZE)
    close(gradients.theta, standard.theta)
    close(gradients.stats["negative_bound"], standard.stats["negative_bound"])


def test_both_gradients_of_the_bound_agree_on_average(make_networks):
    networks = make_networks(name="iwae")
    pixels = torch.tensor([[1.0, 0, 1, 1, 0, 0]]).double().expand(30, -1)
    found = {}
    for kind in ("standard", "dreg"):
        method = grouped("iwae", iwae_gradient=kind)
        each = []
        for seed in range(200):
            noise = torch.randn(30, 4, 2, generator=torch.Generator().manual_seed(seed)).double()
            batch = Batch(pixels, noise)
            each.append(iwae(networks, batch, method, SIZE).eta[-1])  # bias of mu and log sigma
        found[kind] = torch.stack(each)
    means = {kind: item.mean(0) for kind, item in found.items()}
    error = sum(item.var(0) / len(item) for item in found.values()) ** 0.5
    assert ((means["standard"] - means["dreg"]).abs() < 5 * error).all()
    assert means["dreg"].norm() > 5 * error.norm()
