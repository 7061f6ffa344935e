"""The methods Stein learning is compared with, on the same networks and the same prior over theta.

Shapes: M = 1 decoder of P parameters, B images, S codes an image, d code dimensions.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from steinvae.config import MethodConfig
from steinvae.gradients import Batch, Gradients, Objective, code_spread
from steinvae.networks import Networks
from steinvae.recognition import GaussianEncoder


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
    _, log_sigma, codes = _gaussian_codes(networks, batch)
    leaves = networks.theta.leaves()
    log_likelihood = networks.model.log_likelihood(leaves, codes[None], batch.pixels)
    # log p(z) - log q(z | x): the factors (2 pi)^(-d/2) cancel.
    noise = batch.noise.square().sum(-1)
    log_ratio = 0.5 * (noise - codes.square().sum(-1)) + log_sigma.sum(-1, keepdim=True)
    bound = (log_likelihood[0] + log_ratio).logsumexp(-1) - log(codes.shape[1])
    stats = {"negative_bound": -bound.mean()}
    return _descend(networks, leaves, -bound.mean(), log_likelihood, codes, stats, data_size)


def _gaussian_codes(networks: Networks, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    encoder = networks.encoder
    if not isinstance(encoder, GaussianEncoder):
        raise TypeError(f"vae and iwae need a Gaussian encoder, got {type(encoder).__name__}")
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


BASELINES: dict[str, Objective] = {"vae": vae, "iwae": iwae}
