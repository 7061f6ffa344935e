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
from steinvae.recognition import GaussianEncoder, gaussian_rate, standard_normal
from steinvae.weights import effective_samples


def vae(networks: Networks, batch: Batch, method: MethodConfig, data_size: int) -> Gradients:
    """Negative ELBO with a Gaussian encoder: distortion by S reparameterised codes, rate exact."""
    mean, log_sigma, codes = gaussian_codes(networks, batch)
    rate = gaussian_rate(mean, log_sigma).mean()
    return _elbo(networks, batch, method, data_size, codes, None, rate, rate)


def iwae(networks: Networks, batch: Batch, method: MethodConfig, data_size: int) -> Gradients:
    """Negative importance-weighted bound of S codes: -log mean_s p(x, z_s) / q(z_s | x).

    With w_s the normalised weights its gradient is -sum_s w_s grad log [ p(x, z_s) / q(z_s | x) ],
    along the codes and through the density's own parameters; `dreg` is the doubly reparameterised
    one for the encoder, sum_s w_s^2 (d log w / d z_s) (d z_s / d eta) with those parameters held:
    the score function term, whose signal-to-noise falls with S, is gone. Tucker et al. 2019, eq. 8.
    """
    _, log_sigma, codes = gaussian_codes(networks, batch)
    images, samples, _ = codes.shape
    # log p(z) - log q(z | x): the factors (2 pi)^(-d/2) cancel.
    noise = batch.noise.square().sum(-1)
    log_ratio = 0.5 * (noise - codes.square().sum(-1)) + log_sigma.sum(-1, keepdim=True)
    pairs = pair_gradients(
        *(networks.model, networks.theta, codes, batch.pixels),
        Pairing("full", samples),
        log_ratio.detach(),
    )
    log_weights = pairs.log_likelihood[0] + log_ratio.detach()
    weights = log_weights.softmax(-1)
    if method.iwae_gradient == "dreg":
        deviation = batch.noise * (-log_sigma.detach()).exp()[:, None]  # -grad_z log q
        to_codes = pairs.codes - codes.detach() + deviation
        surrogate = (weights.square()[..., None] * to_codes * codes).sum()
    else:
        surrogate = (weights[..., None] * pairs.codes * codes).sum() + (weights * log_ratio).sum()
    bound = (log_weights.logsumexp(-1) - log(samples)).mean()
    stats = {
        "distortion": -pairs.log_likelihood.mean(),
        "code_spread": code_spread(codes),
        "negative_bound": -bound,
        "effective_samples": effective_samples(weights, samples),
    }
    return Gradients(
        theta=pairs.theta.div_(-images).add_(networks.theta.flat, alpha=1 / data_size),
        eta=list(torch.autograd.grad(surrogate / -images, networks.eta())),
        stats=stats,
    )


def vae_weighted_decoder(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int
) -> Gradients:
    """The control: the encoder of `vae`, the decoder gradient of Stein VIWAE.

    eta descends the negative ELBO, its rate exact. theta ascends the importance-weighted bound of
    groups of k codes, sum_i w_i grad log p(x | z_i, theta), by the exact density of the encoder.

    method.entropy_weight b is a control of that control: eta descends the free energy at
    temperature b, E_q[b log q - log p(x, z)] = -ELBO + (b - 1) E_q log q; narrower q for b < 1.
    """
    mean, log_sigma, codes = gaussian_codes(networks, batch)
    rate = gaussian_rate(mean, log_sigma)
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
    return _by_density(networks, batch, method, data_size, weighted=True)


def planar_flow(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int
) -> Gradients:
    """Negative ELBO of a Gaussian bent by planar layers; S codes, no weights."""
    return _by_density(networks, batch, method, data_size, weighted=False)


def _by_density(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int, *, weighted: bool
) -> Gradients:
    """ELBO gradient of an encoder whose density is known, its rate by the codes drawn."""
    codes, log_q = networks.encoder.codes_and_log_density(batch.pixels, batch.noise)
    log_p = standard_normal(codes)
    rate, annealed = (log_q - log_p).mean(), (log_q - log_p / batch.temperature).mean()
    return _elbo(
        networks, batch, method, data_size, codes, log_q if weighted else None, rate, annealed
    )


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
    distortion, terms = -pairs.log_likelihood.mean(), images * samples // group
    stats = {
        "distortion": distortion,
        "code_spread": code_spread(codes),
        "negative_elbo": rate + distortion,
        "rate": rate,
    }
    if pairs.weights is not None:
        stats["effective_samples"] = effective_samples(pairs.weights, group)
    return Gradients(
        theta=pairs.theta.div_(-terms).add_(networks.theta.flat, alpha=1 / data_size),
        eta=list(torch.autograd.grad(surrogate, networks.eta())),
        stats={name: value.detach() for name, value in stats.items()},
    )


def gaussian_codes(networks: Networks, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """mu and log sigma, (B, d) each, and the codes (B, S, d). Errors: TypeError for encoders that
    are not Gaussian."""
    encoder = networks.encoder
    if not isinstance(encoder, GaussianEncoder):
        raise TypeError(f"this method needs a Gaussian encoder, got {type(encoder).__name__}")
    mean, log_sigma = encoder.moments(encoder.features(batch.shown))
    return mean, log_sigma, mean[:, None] + log_sigma.exp()[:, None] * batch.noise
