"""One update of Stein VAE and Stein VIWAE as one would first write it from the paper.

A loop over decoders and images with autograd inside, (S, S, d) differences for the codes of an
image, a loop over decoders for theirs, `torch.median`. Encoder, log q and optimiser are ours: what
is compared is the decoders' pass and the Stein directions. `strat` pairing has no permutation.

Shapes: M decoders of P parameters, B images, S codes an image, d code dimensions.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from steinvae.config import MethodConfig
from steinvae.gradients import Batch
from steinvae.models.mlp import BernoulliMlp
from steinvae.networks import Networks
from steinvae.weights import log_prior_over_q


def log_likelihood(widths: tuple[int, ...], theta: Tensor, codes: Tensor, x: Tensor) -> Tensor:
    """log p(x | z_s, theta) of one decoder (P,) and one image (X,): codes (S, d) -> (S,) nats."""
    start, activation = 0, codes
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        weight = theta[start : start + fan_in * fan_out].view(fan_in, fan_out)
        start += fan_in * fan_out
        activation = activation @ weight + theta[start : start + fan_out]
        start += fan_out
        activation = activation.tanh() if layer < len(widths) - 2 else activation
    target = x.expand_as(activation)
    return -F.binary_cross_entropy_with_logits(activation, target, reduction="none").sum(-1)


def bandwidth(particles: Tensor) -> Tensor:
    """med^2 / log(M + 1) of one set (M, d)."""
    return torch.pdist(particles).median().square() / math.log(len(particles) + 1)


def code_direction(codes: Tensor, score: Tensor) -> Tensor:
    """Leave-one-out direction of one image's codes: (S, d) -> (S, d)."""
    h, count = bandwidth(codes), len(codes)
    difference = codes[None] - codes[:, None]  # (i, j): z_j - z_i
    kernel = torch.exp(-difference.square().sum(-1) / h)
    kernel = kernel * (1 - torch.eye(count, dtype=codes.dtype))
    return (kernel[..., None] * (score[:, None] + 2 / h * difference)).sum(0) / (count - 1)


def theta_direction(theta: Tensor, score: Tensor) -> Tensor:
    """Direction of every decoder, itself included: (M, P) -> (M, P)."""
    if len(theta) == 1:
        return score
    h, rows = bandwidth(theta), []
    for one in theta:
        difference = one - theta
        kernel = torch.exp(-difference.square().sum(-1, keepdim=True) / h)
        rows.append((kernel * (score + 2 / h * difference)).mean(0))
    return torch.stack(rows)


def gradients(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int
) -> tuple[Tensor, list[Tensor]]:
    """Descent gradients for theta (M, P) and eta, as `objectives.stein_vae` and `stein_viwae`."""
    if not isinstance(networks.model, BernoulliMlp):
        raise TypeError(
            f"the naive step decodes a BernoulliMlp, got {type(networks.model).__name__}"
        )
    codes = networks.encoder(batch.pixels, batch.noise)
    drawn, theta = codes.detach(), networks.theta.flat
    group = method.importance_samples if method.name == "stein_viwae" else 1
    ratio = torch.zeros_like(drawn[..., 0])
    if group > 1:
        ratio = log_prior_over_q(
            *(networks.encoder, drawn, batch.pixels, batch.noise),
            estimator=method.log_q,
            bandwidth=method.bandwidth,
        )
    images, samples, _ = drawn.shape
    dealt = method.pairing == "strat"
    seen = samples // len(theta) if dealt else samples
    code_score, theta_score = -drawn.clone(), -theta.clone()
    for m in range(len(theta)):
        own = slice(m * seen, (m + 1) * seen) if dealt else slice(None)
        for b in range(images):
            z, decoder = (item.clone().requires_grad_() for item in (drawn[b, own], theta[m]))
            pairs = log_likelihood(networks.model.widths, decoder, z, batch.pixels[b])
            if group == 1:  # nothing is weighted: one backward pass will do
                to_z, to_theta = torch.autograd.grad(pairs.sum(), (z, decoder))
            else:
                weights = (pairs.detach() + ratio[b, own]).view(-1, group).softmax(-1).flatten()
                (to_z,) = torch.autograd.grad(pairs.sum(), z, retain_graph=True)
                (to_theta,) = torch.autograd.grad((weights * pairs).sum(), decoder)
            code_score[b, own] += to_z if dealt else to_z / len(theta)
            theta_score[m] += data_size / images * group / seen * to_theta
    moves = torch.stack([code_direction(z, g) for z, g in zip(drawn, code_score, strict=True)])
    surrogate = -(moves * codes).sum() / (images * samples)
    eta = torch.autograd.grad(surrogate, networks.eta())
    return -theta_direction(theta, theta_score) / data_size, list(eta)
