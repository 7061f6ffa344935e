"""One training update by each method: gradients for the optimiser from one minibatch.

`stein_vae` is Algorithm 1 of Pu et al. 2017 and `stein_viwae` its section 3; `baselines` has the
methods they are compared with, on the same networks, the same prior over theta and the same code
path.

Shapes: M decoders of P parameters, B images, S codes an image, d code dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stein_kernels import kernel_stein_discrepancy, median_bandwidth
from steinvae.baselines import BASELINES, iwae, vae
from steinvae.blocks import runs
from steinvae.chunks import Drawn, in_chunks
from steinvae.config import MethodConfig
from steinvae.gradients import (
    Batch,
    Gradients,
    Objective,
    SharesTheta,
    code_spread,
    decoder_gradient,
    within_variance,
)
from steinvae.masses import mass_direction
from steinvae.monitor import field_stats, fold_stats
from steinvae.moves import moved_viwae
from steinvae.networks import Networks
from steinvae.pairs import Pairing
from steinvae.stein import (
    Scores,
    code_bandwidth,
    code_direction,
    linear_direction,
    normalised_direction,
    posterior_scores,
    summed_direction,
)
from steinvae.weights import effective_samples, group_weights, log_prior_over_q, printed_weights

__all__ = ["OBJECTIVES", "Batch", "Gradients", "iwae", "stein_vae", "stein_viwae", "vae"]


def stein_vae(networks: Networks, batch: Batch, method: MethodConfig, data_size: int) -> Gradients:
    """Algorithm 1: Stein directions for decoders and codes, one regression step of the encoder.

    Eq. 7 from eta = eta(t) is the chain rule: -sum_bs J_bs^T phi_bs. The step size epsilon is a
    factor that Adam divides out; codes are redrawn at every step, so no optimiser state is theirs.
    """
    drawn = Drawn(networks, batch)
    scores = posterior_scores(
        networks.model,
        networks.theta,
        drawn.codes,
        batch.pixels,
        data_size=data_size,
        pairing=Pairing(method.pairing, permutation=batch.permutation),
    )
    return move(networks, batch, method, data_size, drawn, scores)


def stein_viwae(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int
) -> Gradients:
    """Section 3: groups of k codes, importance weights normalised within each group.

    `weights` says what they act on: the decoders' score (`theta`: corollary 3.1 with Z marginalised
    in score and weight alike), the codes' direction (`z`: eq. 13), `both`, or both directions with
    the weights as eqs. 12 and 13 print them (`paper`; decoders then come in groups of k too). In a
    group of one every weight is 1: Stein VAE.
    """
    if method.importance_samples == 1:
        return stein_vae(networks, batch, method, data_size)
    if method.move_codes:
        return moved_viwae(networks, batch, method, data_size)
    drawn = Drawn(networks, batch)
    pairing, log_ratio = grouped(networks, drawn.codes, batch, method)
    scores = posterior_scores(
        networks.model,
        networks.theta,
        drawn.codes,
        batch.pixels,
        data_size=data_size,
        pairing=pairing,
        log_ratio=log_ratio if method.weights in ("theta", "both") else None,
    )
    weights = Weights()
    if log_ratio is not None:
        decoders = networks.theta.particles
        weights = weigh(scores, log_ratio, pairing, method, decoders, batch.ranks)
    return move(networks, batch, method, data_size, drawn, scores, weights)


def grouped(
    networks: Networks, codes: Tensor, batch: Batch, method: MethodConfig
) -> tuple[Pairing, Tensor | None]:
    """How decoders see the codes, and log p(z) - log q(z | x) of each, (B, S) in nats, where
    something is weighted."""
    group = method.importance_samples if method.name == "stein_viwae" else 1
    sliced = group > 1 and method.weights == "paper"
    pairing = Pairing(method.pairing, group, batch.permutation, sliced=sliced)
    if group == 1 or method.weights == "none":
        return pairing, None
    log_ratio = log_prior_over_q(
        networks.encoder,
        codes,
        batch.shown,
        batch.noise,
        estimator=method.log_q,
        bandwidth=method.bandwidth,
    )
    return pairing, log_ratio


class Weights:
    """Weights of the two directions, where they have any, and what to log of them."""

    def __init__(
        self,
        codes: Tensor | None = None,
        theta: Tensor | None = None,
        stats: dict[str, Tensor] | None = None,
    ) -> None:
        self.codes, self.theta, self.stats = codes, theta, stats or {}


def weigh(
    scores: Scores,
    log_ratio: Tensor,
    pairing: Pairing,
    method: MethodConfig,
    decoders: int,
    ranks: SharesTheta | None = None,
) -> Weights:
    """The weights of Stein VIWAE from the pairs' log-likelihoods and log p(z) - log q(z | x)."""
    group = pairing.group
    if scores.weights is not None and method.weights == "theta":
        return Weights(stats={"effective_samples": effective_samples(scores.weights, group)})
    if method.weights == "paper":
        log_weights = scores.log_likelihood + pairing.deal(log_ratio, decoders)
        over_ranks = None if ranks is None else ranks.logsumexp
        printed = printed_weights(log_weights, decoders // group, group, over_ranks)
        stats = {
            "effective_samples": effective_samples(printed.codes, group),
            "effective_decoders": effective_samples(printed.theta, group),
        }
        tuples = log_ratio.shape[1] // group
        to_theta = printed.theta.repeat(decoders // group) / (decoders // group)
        return Weights(printed.codes.repeat(1, tuples), to_theta, stats)
    # One decoder is a draw of theta; several are averaged as densities, not as logarithms.
    log_likelihood = scores.log_likelihood
    if method.pairing == "full":
        log_likelihood = log_likelihood.logsumexp(0, keepdim=True)
    weights = group_weights(pairing.collect(log_likelihood) + log_ratio, group)
    return Weights(weights, stats={"effective_samples": effective_samples(weights, group)})


def move(
    networks: Networks,
    batch: Batch,
    method: MethodConfig,
    data_size: int,
    drawn: Drawn,
    scores: Scores,
    weights: Weights | None = None,
) -> Gradients:
    """Both directions from the scores, and the encoder's gradient from the codes'.

    Annealing divides the score of the codes by the temperature; that of theta has none.
    """
    weights = weights or Weights()
    scores = scores._replace(codes=scores.codes / batch.temperature)
    codes = drawn.codes
    blocks, scale = networks.kernel_blocks(method), networks.encoder.kernel_scale(batch.shown)
    if scale is None:
        direction, to_codes = _direct(
            codes, scores.codes, method, blocks, weights.codes, batch.ranks
        )
    else:  # a direction is a gradient: that in codes / scale, divided by the scale
        placed, score = codes / scale, scores.codes * scale
        direction, to_codes = _direct(placed, score, method, blocks, weights.codes, batch.ranks)
        direction, to_codes = direction / scale, to_codes / scale
    theta = decoder_gradient(networks, batch, method, data_size, scores.theta, weights.theta)
    stats = _stein_stats(networks, batch, codes, scores, direction, method)
    if batch.reference is not None and batch.temperature == 1:  # masses of p, not of p^(1/T)
        to_masses = mass_direction(networks, batch.pixels, batch.noise, codes, batch.reference)
        to_codes = to_codes + method.mass_rate * to_masses
    return Gradients(
        theta=theta,
        eta=drawn.pull_back(to_codes),
        stats=stats | weights.stats,
        targets=codes + method.code_step * to_codes if method.regression_steps > 1 else None,
    )


def _direct(
    codes: Tensor,
    score: Tensor,
    method: MethodConfig,
    blocks: Sequence[int],
    weights: Tensor | None,
    ranks: SharesTheta | None = None,
) -> tuple[Tensor, Tensor]:
    """Direction of the codes by the kernels of `method`, and what the encoder follows of it."""
    if method.kernel == "linear":
        direction = linear_direction(codes, score, within_variance(codes, ranks))
        return direction, direction
    h: str | float | Tensor = method.bandwidth
    factor, leave_one_out = method.bandwidth_factor, method.self_term == "leave_one_out"
    if len(blocks) == 1:
        h, factor = code_bandwidth(codes, h, factor), 1.0
        if method.normalise_direction and isinstance(h, str):
            h = median_bandwidth(codes, rule=h)  # once, for the direction and its normaliser
    direction = code_direction(
        codes,
        score,
        bandwidth=h,
        factor=factor,
        blocks=blocks,
        leave_one_out=leave_one_out,
        weights=weights,
        group=method.importance_samples,
    )
    if method.kernel == "sum":
        direction = summed_direction(
            codes,
            score,
            direction,
            bandwidth=method.bandwidth,
            joint_bandwidth=h,
            leave_one_out=leave_one_out,
        )
    if method.normalise_direction:
        return direction, normalised_direction(direction, codes, h, factor, blocks)
    return direction, direction


def regression_gradients(
    networks: Networks, batch: Batch, targets: Tensor, step_size: float
) -> list[Tensor]:
    """Gradient of mean_bs |f(x, xi) - target|^2 / (2 epsilon): regression steps 2 to K of eq. 7."""
    drawn = Drawn(networks, batch)
    return drawn.pull_back((targets - drawn.codes) / step_size)


OBJECTIVES: dict[str, Objective] = {
    "stein_vae": stein_vae,
    "stein_viwae": stein_viwae,
    **{name: in_chunks(objective) for name, objective in BASELINES.items()},
}


def _stein_stats(
    networks: Networks,
    batch: Batch,
    codes: Tensor,
    scores: Scores,
    direction: Tensor,
    method: MethodConfig,
) -> dict[str, Tensor]:
    stats = {
        "distortion": -scores.log_likelihood.mean(),
        "code_spread": code_spread(codes),
        "direction": direction.square().sum(-1).mean().sqrt(),
    }
    if batch.monitor:
        stats["stein_discrepancy"] = _discrepancy(
            codes, scores.codes, networks.kernel_blocks(method), method
        )
        stats |= fold_stats(networks, batch.shown, batch.noise)
    one_kernel = len(networks.kernel_blocks(method)) == 1 and method.kernel == "joint"
    compare = batch.compare and batch.temperature == 1 and one_kernel
    if compare and networks.encoder.kernel_scale(batch.shown) is None:  # the field has neither
        stats |= field_stats(networks, batch, scores.codes, direction, method)
    return stats


def _discrepancy(
    codes: Tensor, score: Tensor, blocks: Sequence[int], method: MethodConfig
) -> Tensor:
    """Mean over images of the kernel Stein discrepancy, summed over blocks."""
    statistic = "u" if method.self_term == "leave_one_out" else "v"
    total = torch.zeros((), device=codes.device)
    for run in runs(blocks):
        own = run.fold(codes)
        h = code_bandwidth(own, method.bandwidth, method.bandwidth_factor)
        found = kernel_stein_discrepancy(own, run.fold(score), bandwidth=h, statistic=statistic)
        total = total + run.count * found.mean()
    return total
