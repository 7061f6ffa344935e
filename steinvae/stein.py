"""Stein directions for codes and decoders: Pu et al. 2017, eqs. 3 to 7, and the lines we correct.

Shapes: M decoders of P parameters, B images, S codes an image (the paper's M), d code dimensions,
N images in the data set. All scores and directions ascend: they point to higher log density.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stein_kernels import svgd_direction
from steinvae.models import GenerativeModel
from steinvae.particles import ParticleEnsemble


class Scores(NamedTuple):
    """Gradients of the log posterior."""

    codes: Tensor
    """(B, S, d): grad_z [ log p(z) + mean_m log p(x | z, theta_m) ], one image, no factor N."""

    theta: Tensor
    """(M, P): grad_theta [ log p(theta) + N/B sum_b mean_s log p(x_b | z_bs, theta) ]."""

    log_likelihood: Tensor
    """(M, B, n) nats, of the pairs that were evaluated."""


def deal_codes(
    codes: Float[Tensor, "B S d"], decoders: int, permutation: Tensor | None
) -> Float[Tensor, "M B n d"]:
    """Split every image's codes into one block per decoder (`strat` pairing).

    Decoder m gets block m of the permuted codes, so S pairs an image are evaluated instead of M S.
    Both scores stay unbiased. Shapes: codes (B, S, d), permutation (S,) -> (M, B, S / M, d).
    """
    count = codes.shape[1]
    if count % decoders:
        raise ValueError(
            f"pairing strat: code_particles must be a multiple of {decoders}, got {count}"
        )
    if permutation is not None:
        codes = codes.index_select(1, permutation)
    return codes.unflatten(1, (decoders, count // decoders)).transpose(0, 1)


def posterior_scores(
    model: GenerativeModel,
    theta: ParticleEnsemble,
    codes: Float[Tensor, "B S d"],
    pixels: Float[Tensor, "B X"],
    *,
    data_size: int,
    pairing: str = "full",
    permutation: Tensor | None = None,
) -> Scores:
    """Both scores from one decoder forward and one backward pass.

    With uniform weights the two scores differ from the gradient of the plain sum of log-likelihoods
    by scalar factors only. The priors N(0, I) enter once (eq. 3 prints p(theta) inside the sum over
    n, which would count it N times); N/B scales a minibatch's likelihood to the data set.

    Shapes: codes (B, S, d), pixels (B, X).
    """
    with torch.enable_grad():
        free = codes.detach().requires_grad_()
        leaves = theta.leaves()
        strat = pairing == "strat"
        dealt = deal_codes(free, theta.particles, permutation) if strat else free[None]
        log_likelihood = model.log_likelihood(leaves, dealt, pixels)
        to_codes, *to_theta = torch.autograd.grad(log_likelihood.sum(), [free, *leaves.values()])
    _, images, evaluated = log_likelihood.shape
    decoders_per_code = 1 if strat else theta.particles
    return Scores(
        codes=to_codes / decoders_per_code - codes.detach(),
        theta=theta.flatten(to_theta) * (data_size / (images * evaluated)) - theta.flat,
        log_likelihood=log_likelihood.detach(),
    )


def code_direction(
    codes: Float[Tensor, "B S d"],
    score: Float[Tensor, "B S d"],
    *,
    bandwidth: str | float,
    leave_one_out: bool,
) -> Float[Tensor, "B S d"]:
    """Direction of every code among the codes of its own image, eq. 5: (B, S, d) -> (B, S, d).

    Codes are drawn afresh at every step. Averaging over all of them, j' = j included, then has the
    wrong fixed point: the variance collapses to about 0.1 at d = 50, M = 100. Leaving j' = j out
    and dividing by M - 1 (the default) is unbiased. See docs/method.md.
    """
    return svgd_direction(codes, score, bandwidth=bandwidth, leave_one_out=leave_one_out)


def theta_direction(
    theta: Float[Tensor, "M P"],
    score: Float[Tensor, "M P"],
    *,
    bandwidth: str | float,
    data_size: int,
) -> Float[Tensor, "M P"]:
    """Direction of every decoder among all decoders, eq. 3, divided by N: (M, P) -> (M, P).

    Decoders persist from step to step, so each needs its own score: j' = j stays in. Dividing by N
    leaves the fixed point alone and makes gradients of order one for the optimiser.
    """
    return svgd_direction(theta, score, bandwidth=bandwidth) / data_size
