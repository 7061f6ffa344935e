"""Masses of modes far apart, which Stein directions leave as they come.

A Stein direction reads scores, and the score in one mode says nothing of how much mass another has.
Importance weights say it, so they can tell which noise should lead where.

Shapes: B images, S codes an image, e noise dimensions, d code dimensions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stein_kernels import median_bandwidth, svgd_direction
from steinvae.recognition import StochasticEncoder
from steinvae.weights import local_log_density


@torch.no_grad()
def mass_direction(
    encoder: StochasticEncoder,
    pixels: Float[Tensor, "B X"],
    noise: Float[Tensor, "#B S e"],
    codes: Float[Tensor, "B S d"],
    log_joint: Float[Tensor, "B S"],
) -> Float[Tensor, "B S d"]:
    """f(x, xi + v(xi)) - f(x, xi), v the flow of noise by which KL(p || q) falls.

    `log_joint` is log p(x, z) at `codes` z = f(x, xi), up to a term in x. With q the law of
    f(x, xi + t v) and w = p(z | x) / q(z | x), d/dt KL(p || q) = -E[v . grad_xi w] at t = 0. In the
    unit ball of the kernel's space the steepest v is, by parts and with E w = 1,

        v(y) = E[k(xi, y) grad w(xi)] = E[(1 - w) (grad_xi k(xi, y) - k(xi, y) xi)] :

    the Stein direction of N(0, I) among equally weighted noise, less that among weighted noise. No
    gradient of w enters, so a jump of w between modes counts as the mass it stands for. Codes next
    to the border of a mode are sent to where their neighbours in noise are.

    w is estimated by `local_log_density`: for codes of few dimensions, and for modes that have
    codes; a mode without any has no weights.
    """
    noise = noise.expand(len(codes), -1, -1)
    weights = (log_joint - local_log_density(codes)).softmax(-1)
    h = median_bandwidth(noise)
    equal = svgd_direction(noise, -noise, bandwidth=h, leave_one_out=True)
    weighted = svgd_direction(noise, -noise, weights=weights, bandwidth=h, leave_one_out=True)
    return encoder(pixels, noise + equal - weighted) - codes
