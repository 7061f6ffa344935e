"""One training update by each method: gradients for the optimiser from one minibatch.

`stein_vae` is Algorithm 1 of Pu et al. 2017; `vae` (Kingma & Welling 2014) and `iwae` (Burda et al.
2016) are the baselines, with the same networks, the same prior over theta and the same code path.

Shapes: M decoders of P parameters, B images, S codes an image, d code dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from stein_kernels import kernel_stein_discrepancy
from steinvae.config import MethodConfig
from steinvae.networks import Networks
from steinvae.recognition import GaussianEncoder
from steinvae.stein import Scores, code_direction, posterior_scores, theta_direction


class Batch(NamedTuple):
    """One minibatch with all the randomness of its update."""

    pixels: Tensor
    """(B, X) in [0, 1]."""

    noise: Tensor
    """(B or 1, S, d) standard normal."""

    permutation: Tensor | None = None
    """(S,) order in which codes are dealt to decoders (`strat` pairing)."""

    monitor: bool = False
    """Whether to compute statistics that cost extra."""


class Gradients(NamedTuple):
    """Descent gradients, ready for an optimiser, and what to log."""

    theta: Tensor
    """(M, P)."""

    eta: list[Tensor]
    """In the order of `Networks.eta()`."""

    stats: dict[str, Tensor]
    """Scalars: distortion = mean of -log p(x | z) in nats an image, and others."""

    targets: Tensor | None = None
    """(B, S, d) moved codes for further regression steps of the encoder (K > 1)."""


Objective = Callable[[Networks, Batch, MethodConfig, int], Gradients]


def stein_vae(networks: Networks, batch: Batch, method: MethodConfig, data_size: int) -> Gradients:
    """Algorithm 1: Stein directions for decoders and codes, one regression step of the encoder.

    Eq. 7 from eta = eta(t) is the chain rule: -sum_bs J_bs^T phi_bs. The step size epsilon is a
    factor that Adam divides out; codes are redrawn at every step, so no optimiser state is theirs.
    """
    codes = networks.encoder(batch.pixels, batch.noise)
    scores = posterior_scores(
        networks.model,
        networks.theta,
        codes,
        batch.pixels,
        data_size=data_size,
        pairing=method.pairing,
        permutation=batch.permutation,
    )
    left_out = method.self_term == "leave_one_out"
    drawn = codes.detach()
    to_codes = code_direction(
        drawn, scores.codes, bandwidth=method.bandwidth, leave_one_out=left_out
    )
    to_theta = theta_direction(
        networks.theta.flat, scores.theta, bandwidth=method.theta_bandwidth, data_size=data_size
    )
    return Gradients(
        theta=-to_theta,
        eta=encoder_gradients(networks, codes, to_codes),
        stats=_stein_stats(drawn, scores, to_codes, method, batch.monitor),
        targets=drawn + method.code_step * to_codes if method.regression_steps > 1 else None,
    )


def regression_gradients(
    networks: Networks, batch: Batch, targets: Tensor, step_size: float
) -> list[Tensor]:
    """Gradient of mean_bs |f(x, xi) - target|^2 / (2 epsilon): regression steps 2 to K of eq. 7."""
    codes = networks.encoder(batch.pixels, batch.noise)
    return encoder_gradients(networks, codes, (targets - codes.detach()) / step_size)


def encoder_gradients(networks: Networks, codes: Tensor, direction: Tensor) -> list[Tensor]:
    """-1/(B S) sum_bs J_bs^T direction_bs, J the Jacobian of a code in the encoder's parameters."""
    images, samples, _ = codes.shape
    cotangent = direction / (-images * samples)
    return list(torch.autograd.grad(codes, networks.eta(), grad_outputs=cotangent))


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


OBJECTIVES: dict[str, Objective] = {"stein_vae": stein_vae, "vae": vae, "iwae": iwae}


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
    shared = {"distortion": -log_likelihood.mean(), "code_spread": _spread(codes)}
    return Gradients(
        theta=to_theta + networks.theta.flat / data_size,
        eta=list(gradients[len(leaves) :]),
        stats={name: value.detach() for name, value in (shared | stats).items()},
    )


def _stein_stats(
    codes: Tensor, scores: Scores, direction: Tensor, method: MethodConfig, monitor: bool
) -> dict[str, Tensor]:
    stats = {
        "distortion": -scores.log_likelihood.mean(),
        "code_spread": _spread(codes),
        "direction": direction.square().sum(-1).mean().sqrt(),
    }
    if monitor:
        statistic = "u" if method.self_term == "leave_one_out" else "v"
        discrepancy = kernel_stein_discrepancy(
            codes, scores.codes, bandwidth=method.bandwidth, statistic=statistic
        )
        stats["stein_discrepancy"] = discrepancy.mean()
    return stats


def _spread(codes: Tensor) -> Tensor:
    """Root mean square over images and dimensions of the codes' deviation from their image's mean.

    Zero for a single code. Divided by S, so that it is defined for S = 1.
    """
    return codes.detach().var(dim=1, correction=0).mean().sqrt()
