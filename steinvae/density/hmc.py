"""Hamiltonian Monte Carlo on a tempered posterior of codes, all images and chains in one tensor.

The target at inverse temperature b is f_b(z) = N(z; 0, I) L(z)^b with L(z) = p(x | z).

Shapes: B images, C chains an image, d code dimensions. Units: nats.
Source: Neal 2011, "MCMC using Hamiltonian dynamics", section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steinvae.density.likelihood import Treatment, over_decoders, prepared
from steinvae.networks import Networks

LogLikelihood = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Codes (B, C, d) -> log L(z) (B, C) float64, and its gradient in z (B, C, d)."""


class Chains(NamedTuple):
    """Where the chains are. log L and its gradient serve every temperature, so they are kept."""

    codes: Tensor
    """(B, C, d)."""

    log_likelihood: Tensor
    """log L at the codes, (B, C) float64."""

    gradient: Tensor
    """Gradient of log L at the codes, (B, C, d)."""


class Draws(NamedTuple):
    """The randomness of one transition."""

    momentum: Tensor
    """(B, C, d) standard normal."""

    uniform: Tensor
    """(B, C, 2) in [0, 1): the accept test, and the jitter of the step size."""


def posterior_likelihood(
    networks: Networks, pixels: Float[Tensor, "B X"], theta: Treatment
) -> LogLikelihood:
    """log L(z) = log p(x_b | z), the decoders counted by `theta`; the gradient by autograd."""
    with torch.no_grad():  # no gradient in theta, or its products would cost half as much again
        leaves = prepared(networks)

    def evaluate(codes: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            free = codes.detach().requires_grad_()
            each = networks.model.log_likelihood(leaves, free[None], pixels)
            value = over_decoders(each, theta)
            (gradient,) = torch.autograd.grad(value.sum(), free)
        return value.detach(), gradient

    return evaluate


def start(evaluate: LogLikelihood, codes: Float[Tensor, "B C d"]) -> Chains:
    """Chains at given codes."""
    return Chains(codes, *evaluate(codes))


def leapfrog(
    evaluate: LogLikelihood,
    chains: Chains,
    momentum: Float[Tensor, "B C d"],
    inverse_temperature: float,
    step: Float[Tensor, "B C"],
    steps: int,
) -> tuple[Chains, Float[Tensor, "B C d"]]:
    """`steps` leapfrog steps of length `step`: volume-preserving, and undone by -momentum."""
    length = step[..., None]
    codes, value, gradient = chains
    momentum = momentum + 0.5 * length * (inverse_temperature * gradient - codes)
    for number in range(steps):
        codes = codes + length * momentum
        value, gradient = evaluate(codes)
        kick = length if number < steps - 1 else 0.5 * length
        momentum = momentum + kick * (inverse_temperature * gradient - codes)
    return Chains(codes, value, gradient), momentum


def transition(
    evaluate: LogLikelihood,
    chains: Chains,
    draws: Draws,
    inverse_temperature: float,
    step: Float[Tensor, "#B #C"],
    *,
    leapfrogs: int,
    jitter: float = 0.2,
) -> tuple[Chains, Float[Tensor, "B C"]]:
    """One HMC transition, reversible with respect to f_b, and the acceptance probability (B, C).

    The step of each chain is multiplied by a uniform draw of [1 - jitter, 1 + jitter], which does
    not look at the state: a fixed trajectory length can be a whole period of a Gaussian target, and
    the chain then never moves. A proposal with a non-finite energy is rejected.
    """
    accept, jittered = draws.uniform.unbind(-1)
    length = step * (1 + jitter * (2 * jittered - 1))
    proposed, momentum = leapfrog(
        evaluate, chains, draws.momentum, inverse_temperature, length, leapfrogs
    )
    before = _energy(chains, draws.momentum, inverse_temperature)
    after = _energy(proposed, momentum, inverse_temperature)
    log_ratio = (before - after).nan_to_num(nan=-torch.inf, posinf=0.0, neginf=-torch.inf)
    moved = _choose(accept.log() < log_ratio, proposed, chains)
    return moved, log_ratio.clamp(max=0.0).exp()


def _energy(
    chains: Chains, momentum: Float[Tensor, "B C d"], inverse_temperature: float
) -> Float[Tensor, "B C"]:
    """-log f_b(z) + |momentum|^2 / 2, up to a constant; float64."""
    squares = chains.codes.double().square() + momentum.double().square()
    return 0.5 * squares.sum(-1) - inverse_temperature * chains.log_likelihood


def _choose(accepted: Bool[Tensor, "B C"], proposed: Chains, chains: Chains) -> Chains:
    return Chains(
        torch.where(accepted[..., None], proposed.codes, chains.codes),
        torch.where(accepted, proposed.log_likelihood, chains.log_likelihood),
        torch.where(accepted[..., None], proposed.gradient, chains.gradient),
    )
