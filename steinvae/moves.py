"""Stein VIWAE whose codes move before decoders see them: eq. 4, with a density that stays exact.

For a kernel far wider than the codes, preconditioned by q's own covariance C = L L^T, the
leave-one-out Stein direction of code j is the same for all positions of j: a shift by the others,

    z_j' = z_j + epsilon C mean_{i != j} (g_i - s_i),   g = grad log p(x, z), s = grad log q(z | x)

(s has mean zero under q and is there for its correlation with g). Given the other codes the shift
is a constant, so z_j' has the density q(z_j | x), its weight p(x, z_j') / q(z_j | x) has mean p(x),
and the logarithm of the weights' mean remains a lower bound of log p(x) in expectation. One step
with epsilon = 1 would bring a q that is right up to its mean onto its target.

Shapes: M decoders, B images, S codes an image in groups of k, d code dimensions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.chunks import Drawn
from steinvae.config import MethodConfig
from steinvae.gradients import Batch, Gradients, code_spread, decoder_gradient
from steinvae.monitor import exact_score
from steinvae.networks import Networks
from steinvae.pairs import Pairing
from steinvae.recognition import standard_normal
from steinvae.stein import code_scores, posterior_scores
from steinvae.weights import effective_samples


def moved_viwae(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int
) -> Gradients:
    """Two decoder passes: scores at the drawn codes, then decoders and weights at the moved ones.

    The encoder follows g - s at the codes that it drew: the Stein direction for a kernel far
    narrower than the codes, its repulsion by the exact density.
    """
    drawn, group = Drawn(networks, batch), method.importance_samples
    codes = drawn.codes
    posterior = code_scores(networks.model, networks.theta, codes, batch.pixels)
    _, score, log_q = exact_score(networks.encoder, batch.pixels, batch.noise)
    pull = posterior - score
    moved = codes + method.code_step * shift(pull, linear_part(networks, batch.pixels), group)
    scores = posterior_scores(
        networks.model,
        networks.theta,
        moved,
        batch.pixels,
        data_size=data_size,
        pairing=Pairing(method.pairing, group, batch.permutation),
        log_ratio=standard_normal(moved) - log_q,
    )
    theta = decoder_gradient(networks, batch, method, data_size, scores.theta)
    stats = {
        "distortion": -scores.log_likelihood.mean(),
        "code_spread": code_spread(codes),
        "direction": pull.square().sum(-1).mean().sqrt(),
        "moved": (moved - codes).square().sum(-1).mean().sqrt(),
    }
    if scores.weights is not None:
        stats["effective_samples"] = effective_samples(scores.weights, group)
    return Gradients(theta, drawn.pull_back(pull), stats)


def shift(
    pull: Float[Tensor, "B S d"], factor: Float[Tensor, "B d d"], group: int
) -> Float[Tensor, "B S d"]:
    """L L^T times the mean of `pull` over the other codes of a code's group of `group`."""
    grouped = pull.unflatten(1, (-1, group))
    others = (grouped.sum(2, keepdim=True) - grouped) / (group - 1)
    return others.flatten(1, 2) @ factor @ factor.mT


@torch.no_grad()
def linear_part(networks: Networks, pixels: Float[Tensor, "B X"]) -> Float[Tensor, "B d d"]:
    """L = df/dxi at xi = 0: the whole of an encoder that is affine in its noise."""
    centre = networks.theta.flat.new_zeros(1, 1, networks.encoder.codes)
    return networks.encoder.jacobian(pixels, centre)[:, 0]
