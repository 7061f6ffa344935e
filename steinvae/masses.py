"""Masses of modes far apart, which Stein directions leave as they come.

A Stein direction reads scores, and the score in one mode says nothing of how much mass another has.
Importance weights say it, so they can tell which noise should lead where.

Shapes: B images, S codes an image, R codes that are weighed, e noise dimensions, d code dimensions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stein_kernels import median_bandwidth, svgd_direction
from steinvae.networks import Networks
from steinvae.recognition import standard_normal
from steinvae.weights import local_log_density


@torch.no_grad()
def mass_direction(
    networks: Networks,
    pixels: Float[Tensor, "B X"],
    noise: Float[Tensor, "#B S e"],
    codes: Float[Tensor, "B S d"],
    reference: Float[Tensor, "#B R e"],
) -> Float[Tensor, "B S d"]:
    """f(x, xi + v(xi)) - f(x, xi), v the flow of noise by which KL(p || q) falls.

    With q the law of f(x, xi + t v) and w = p(z | x) / q(z | x) at z = f(x, xi),
    d/dt KL(p || q) = -E[v . grad_xi w] at t = 0. In the unit ball of the kernel's space the
    steepest v is, by parts and with E w = 1,

        v(y) = E[k(xi, y) grad w(xi)] = E[(1 - w) (grad_xi k(xi, y) - k(xi, y) xi)] :

    the Stein direction of N(0, I) among equally weighted noise, less that among weighted noise. No
    gradient of w enters, so a jump of w between modes counts as the mass it stands for. Codes next
    to the border of a mode are sent to where their neighbours in noise are.

    `codes` are f(x, xi). The expectation is over `reference`, noise of its own, and w is normalised
    over its codes, with `local_log_density` for q: for codes of few dimensions, and for modes that
    have codes. A mode of mass m gets 1 - (1 - m)^R of its share: R must be a few times 1/m.
    """
    weights = mass_weights(networks, pixels, reference)
    reference = reference.expand(len(weights), -1, -1)
    noise = noise.expand(len(weights), -1, -1)
    h = median_bandwidth(reference)
    equal = svgd_direction(reference, -reference, query=noise, bandwidth=h)
    weighted = svgd_direction(reference, -reference, weights=weights, query=noise, bandwidth=h)
    return networks.encoder(pixels, noise + equal - weighted) - codes


def mass_weights(
    networks: Networks, pixels: Float[Tensor, "B X"], reference: Float[Tensor, "#B R e"]
) -> Float[Tensor, "B R"]:
    """p(x, z) / q(z | x) of `reference`'s codes, normalised; decoders averaged as densities."""
    codes = networks.encoder(pixels, reference)
    theta = networks.theta.leaves()
    log_likelihood = networks.model.log_likelihood(theta, codes[None], pixels).logsumexp(0)
    return (log_likelihood + standard_normal(codes) - local_log_density(codes)).softmax(-1)
