"""The methods Stein learning is compared with, on the same networks and the same prior over theta.

The field's are `vae` (Kingma & Welling 2014), `iwae` (Burda et al. 2016), with the doubly
reparameterised gradient as an option (Tucker et al. 2019), and `planar_flow` (Rezende & Mohamed
2015). Two say what the Stein encoder is worth: `vae_weighted_decoder` gives an ELBO encoder the
decoder gradient of Stein VIWAE, and `flow_elbo` trains the encoder of Stein VIWAE by its own exact
ELBO gradient.

Shapes: M = 1 decoder of P parameters, B images, S codes an image, d code dimensions.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from steinvae.config import MethodConfig
from steinvae.gradients import Batch, Gradients, Objective, code_spread
from steinvae.networks import Networks
from steinvae.pairs import Pairing, pair_gradients
from steinvae.recognition import GaussianEncoder, standard_normal
from steinvae.weights import effective_samples


def vae(networks: Networks, batch: Batch, method: MethodConfig, data_size: int) -> Gradients:
    """Negative ELBO with a Gaussian encoder: distortion by S reparameterised codes, rate exact."""
    mean, log_sigma, codes = _gaussian_codes(networks, batch)
    leaves = networks.theta.leaves()
    log_likelihood = networks.model.log_likelihood(leaves, codes[None], batch.pixels)
    rate = 0.5 * (mean.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(-1)
    negative_elbo = (rate - log_likelihood.mean((0, 2))).mean()
    stats = {"negative_elbo": negative_elbo, "rate": rate.mean()}
    return _descend(networks, leaves, negative_elbo, log_likelihood, codes, stats, data_size)


def iwae(networks: Networks, batch: Batch, method: MethodConfig, data_size: int) -> Gradients:
    """Negative importance-weighted bound of S codes: -log mean_s p(x, z_s) / q(z_s | x)."""
    if method.iwae_gradient == "dreg":
        return _iwae_dreg(networks, batch, data_size)
    _, log_sigma, codes = _gaussian_codes(networks, batch)
    leaves = networks.theta.leaves()
    log_likelihood = networks.model.log_likelihood(leaves, codes[None], batch.pixels)
    # log p(z) - log q(z | x): the factors (2 pi)^(-d/2) cancel.
    noise = batch.noise.square().sum(-1)
    log_ratio = 0.5 * (noise - codes.square().sum(-1)) + log_sigma.sum(-1, keepdim=True)
    log_weights, samples = log_likelihood[0] + log_ratio, codes.shape[1]
    bound = log_weights.logsumexp(-1) - log(samples)
    effective = effective_samples(log_weights.detach().softmax(-1), samples)
    stats = {"negative_bound": -bound.mean(), "effective_samples": effective}
    return _descend(networks, leaves, -bound.mean(), log_likelihood, codes, stats, data_size)


def vae_weighted_decoder(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int
) -> Gradients:
    """The control: the encoder of `vae`, the decoder gradient of Stein VIWAE.

    eta descends the negative ELBO, its rate exact. theta ascends the importance-weighted bound of
    groups of k codes, sum_i w_i grad log p(x | z_i, theta), by the exact density of the encoder.

    method.entropy_weight b is a control of that control: eta descends the free energy at
    temperature b, E_q[b log q - log p(x, z)] = -ELBO + (b - 1) E_q log q; narrower q for b < 1.
    """
    mean, log_sigma, codes = _gaussian_codes(networks, batch)
    rate = 0.5 * (mean.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(-1)
    log_q = standard_normal(batch.noise) - log_sigma.sum(-1, keepdim=True)
    # E log q = -sum log sigma + constant
    heat = (1 - method.entropy_weight) * log_sigma.sum(-1).mean()
    rate = rate.mean()
    return _elbo(networks, batch, method, data_size, codes, log_q, rate, rate + heat)


def flow_elbo(networks: Networks, batch: Batch, method: MethodConfig, data_size: int) -> Gradients:
    """The ceiling of the Stein encoder: the same family by its exact pathwise ELBO gradient.

    Negative ELBO = mean_s [ log q(z_s | x) - log p(z_s) - log p(x | z_s, theta) ]. With weights
    `theta` the decoder follows the importance-weighted gradient, with `none` the ELBO's.
    """
    codes, log_q = networks.encoder.codes_and_log_density(batch.pixels, batch.noise)
    rate = (log_q - standard_normal(codes)).mean()
    annealed = (log_q - standard_normal(codes) / batch.temperature).mean()
    return _elbo(networks, batch, method, data_size, codes, log_q, rate, annealed)


def planar_flow(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int
) -> Gradients:
    """Negative ELBO of a Gaussian bent by planar layers; S codes, no weights."""
    codes, log_q = networks.encoder.codes_and_log_density(batch.pixels, batch.noise)
    rate = (log_q - standard_normal(codes)).mean()
    annealed = (log_q - standard_normal(codes) / batch.temperature).mean()
    return _elbo(networks, batch, method, data_size, codes, None, rate, annealed)


BASELINES: dict[str, Objective] = {
    "vae": vae,
    "iwae": iwae,
    "planar_flow": planar_flow,
    "vae_weighted_decoder": vae_weighted_decoder,
    "flow_elbo": flow_elbo,
}


def _elbo(
    networks: Networks,
    batch: Batch,
    method: MethodConfig,
    data_size: int,
    codes: Tensor,
    log_q: Tensor | None,
    rate: Tensor,
    descended: Tensor,
) -> Gradients:
    """ELBO gradient for eta; for theta the same, or weighted where there is a `log_q` (B, S).

    One pass of the decoder; `rate` is the rest of the ELBO. What eta descends may be another,
    E[ b log q - log p(x, z) / T ], and `descended` is that without the decoder.
    """
    images, samples, _ = codes.shape
    group = 1 if log_q is None or method.weights == "none" else method.importance_samples
    log_ratio = None
    if group > 1 and log_q is not None:
        log_ratio = (standard_normal(codes) - log_q).detach()
    pairing = Pairing("full", group)
    pairs = pair_gradients(networks.model, networks.theta, codes, batch.pixels, pairing, log_ratio)
    seen = (codes * pairs.codes).sum() / (images * samples)
    surrogate = descended - seen / batch.temperature
    distortion = -pairs.log_likelihood.mean()
    stats = {
        "distortion": distortion,
        "code_spread": code_spread(codes),
        "negative_elbo": rate + distortion,
        "rate": rate,
    }
    if pairs.weights is not None:
        stats["effective_samples"] = effective_samples(pairs.weights, group)
    return Gradients(
        theta=networks.theta.flat / data_size - pairs.theta / (images * samples // group),
        eta=list(torch.autograd.grad(surrogate, networks.eta())),
        stats={name: value.detach() for name, value in stats.items()},
    )


def _iwae_dreg(networks: Networks, batch: Batch, data_size: int) -> Gradients:
    """The same bound with the doubly reparameterised encoder gradient.

    sum_s w_s^2 (d log w / d z_s) (d z_s / d eta), the density's own parameters held: the score
    function term, whose signal-to-noise falls with S, is gone. Tucker et al. 2019, eq. 8.
    """
    mean, log_sigma, codes = _gaussian_codes(networks, batch)
    leaves = networks.theta.leaves()
    free = codes.detach().requires_grad_()
    log_likelihood = networks.model.log_likelihood(leaves, free[None], batch.pixels)
    deviation = (-log_sigma.detach()).exp()[:, None] * (free - mean.detach()[:, None])
    log_q = standard_normal(deviation) - log_sigma.detach().sum(-1, keepdim=True)
    log_weights = log_likelihood[0] + standard_normal(free) - log_q
    images, samples, _ = codes.shape
    weights = log_weights.detach().softmax(-1)
    to_codes, *to_theta = torch.autograd.grad(
        log_weights, [free, *leaves.values()], grad_outputs=weights / -images
    )
    bound = log_weights.logsumexp(-1) - log(samples)
    stats = {
        "distortion": -log_likelihood.mean(),
        "code_spread": code_spread(codes),
        "negative_bound": -bound.mean(),
        "effective_samples": effective_samples(weights, samples),
    }
    eta = torch.autograd.grad(codes, networks.eta(), grad_outputs=weights[..., None] * to_codes)
    return Gradients(
        theta=networks.theta.flatten(to_theta) + networks.theta.flat / data_size,
        eta=list(eta),
        stats={name: value.detach() for name, value in stats.items()},
    )


def _gaussian_codes(networks: Networks, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    encoder = networks.encoder
    if not isinstance(encoder, GaussianEncoder):
        raise TypeError(f"this method needs a Gaussian encoder, got {type(encoder).__name__}")
    mean, log_sigma = encoder.moments(encoder.features(batch.pixels))
    return mean, log_sigma, mean[:, None] + log_sigma.exp()[:, None] * batch.noise


def _descend(
    networks: Networks,
    leaves: dict[str, Tensor],
    loss: Tensor,
    log_likelihood: Tensor,
    codes: Tensor,
    stats: dict[str, Tensor],
    data_size: int,
) -> Gradients:
    """Gradients of a bound per image; the prior N(0, I) of theta adds theta / N, as for Stein."""
    gradients = torch.autograd.grad(loss, [*leaves.values(), *networks.eta()])
    to_theta = networks.theta.flatten(gradients[: len(leaves)])
    shared = {"distortion": -log_likelihood.mean(), "code_spread": code_spread(codes)}
    return Gradients(
        theta=to_theta + networks.theta.flat / data_size,
        eta=list(gradients[len(leaves) :]),
        stats={name: value.detach() for name, value in (shared | stats).items()},
    )
