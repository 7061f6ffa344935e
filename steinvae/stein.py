"""Stein directions for codes and decoders: Pu et al. 2017, eqs. 3 to 7, 12 and 13, corrected.

Shapes: M decoders of P parameters, B images, S codes an image (the paper's M, or M k for VIWAE), d
code dimensions, N images in the data set. All scores and directions ascend: they point to higher
log density.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stein_kernels import median_bandwidth, rbf_gram, svgd_direction
from steinvae.blocks import runs
from steinvae.models import GenerativeModel
from steinvae.pairs import Pairing, pair_gradients
from steinvae.particles import ParticleEnsemble


class Scores(NamedTuple):
    """Gradients of the log posterior."""

    codes: Tensor
    """(B, S, d): grad_z [ log p(z) + mean_m log p(x | z, theta_m) ], one image, no factor N."""

    theta: Tensor
    """(M, P): grad_theta [ log p(theta) + N/B sum_b mean_s log p(x_b | z_bs, theta) ]; with weights
    the mean over s is the mean over groups of sum_i w_i."""

    log_likelihood: Tensor
    """(M, B, n) nats, of the pairs that were evaluated."""

    weights: Tensor | None = None
    """(M, B, n) importance weights of those pairs, each group summing to 1."""


def posterior_scores(
    model: GenerativeModel,
    theta: ParticleEnsemble,
    codes: Float[Tensor, "B S d"],
    pixels: Float[Tensor, "B X"],
    *,
    data_size: int,
    pairing: str | Pairing = "full",
    permutation: Tensor | None = None,
    log_ratio: Float[Tensor, "B S"] | None = None,
) -> Scores:
    """Both scores from one decoder forward and one backward pass.

    With uniform weights the two scores differ from the gradient of the plain sum of log-likelihoods
    by scalar factors only. With `log_ratio` = log p(z) - log q(z | x) the decoders' likelihood is
    weighted as in the importance-weighted bound (Burda et al. 2016), the codes' is not:

        g_m = grad log p(theta_m) + N/B sum_bj sum_i w_bji grad log p(x_b | z_bji, theta_m) / groups

    with w the softmax over i of log p(x, z_ji | theta_m) - log q(z_ji | x), per image and decoder.
    The priors N(0, I) enter once (eq. 3 prints p(theta) inside the sum over n, which would count it
    N times); N/B scales a minibatch's likelihood to the data set.

    Shapes: codes (B, S, d), pixels (B, X), log_ratio (B, S).
    """
    if isinstance(pairing, str):
        pairing = Pairing(pairing, permutation=permutation)
    gradients = pair_gradients(model, theta, codes, pixels, pairing, log_ratio)
    _, images, evaluated = gradients.log_likelihood.shape
    terms = images * (evaluated if log_ratio is None else evaluated // pairing.group)
    return Scores(
        codes=gradients.codes - codes.detach(),
        theta=gradients.theta.mul_(data_size / terms).sub_(theta.flat),  # a buffer of ours
        log_likelihood=gradients.log_likelihood,
        weights=gradients.weights,
    )


def code_scores(
    model: GenerativeModel,
    theta: ParticleEnsemble,
    codes: Float[Tensor, "B S d"],
    pixels: Float[Tensor, "B X"],
) -> Float[Tensor, "B S d"]:
    """The codes' half of `posterior_scores`, every decoder seeing every code, in less time."""
    found = pair_gradients(model, theta, codes, pixels, Pairing(), decoders=False)
    return found.codes - codes.detach()


def code_bandwidth(
    codes: Float[Tensor, "B S d"],
    rule: str | float | Float[Tensor, " B"],
    factor: float = 1.0,
) -> str | float | Float[Tensor, " B"]:
    """Bandwidth of the codes' kernel: `factor` times the rule's h, one per image.

    A rule with factor 1 is handed on by its name, for the op to evaluate with the direction; a
    number is h itself and takes no factor (MethodConfig refuses another). Kernel mean and repulsion
    share h, so q = p is the leave-one-out fixed point for every h that does not depend on the
    codes: a factor changes how far a code's direction is smoothed over the other codes.
    """
    if factor == 1 or not isinstance(rule, str):
        return rule
    return factor * median_bandwidth(codes, rule=rule)


def code_direction(
    codes: Float[Tensor, "B S d"],
    score: Float[Tensor, "B S d"],
    *,
    bandwidth: str | float | Float[Tensor, " B"],
    leave_one_out: bool,
    weights: Float[Tensor, "B S"] | None = None,
    group: int = 1,
    factor: float = 1.0,
    blocks: Sequence[int] | None = None,
) -> Float[Tensor, "B S d"]:
    """Direction of every code among the codes of its own image, eq. 5: (B, S, d) -> (B, S, d).

    Codes are drawn afresh at every step. Averaging over all of them, j' = j included, then has the
    wrong fixed point: the variance collapses to about 0.1 at d = 50, M = 100. Leaving j' = j out
    and dividing by M - 1 (the default) is unbiased at a bandwidth that does not depend on the
    codes; one by a rule adds a little where they are few. See docs/method.md.

    `weights` (eq. 13) sum to 1 over groups of `group` codes times the number of groups. What a code
    leaves out is then its whole group, whose weights depend on it; a single group leaves out the
    code alone and is renormalised.

    `blocks` cut the dimensions into blocks with a kernel each (`steinvae.blocks`); a bandwidth rule
    and its `factor` (`code_bandwidth`) are then taken block by block. None: one kernel.
    """
    parts = []
    for run in runs(blocks or codes.shape[-1:]):
        own, own_score = run.fold(codes), run.fold(score)
        h = code_bandwidth(own, _repeat(bandwidth, run.count), factor)
        shared = None if weights is None else weights.repeat_interleave(run.count, 0)
        parts.append(run.unfold(_one_kernel(own, own_score, h, leave_one_out, shared, group)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _repeat(
    bandwidth: str | float | Float[Tensor, " B"], count: int
) -> str | float | Float[Tensor, " BC"]:
    """An image's bandwidth for each of its blocks."""
    return bandwidth.repeat_interleave(count) if isinstance(bandwidth, Tensor) else bandwidth


def _one_kernel(
    codes: Float[Tensor, "B S d"],
    score: Float[Tensor, "B S d"],
    bandwidth: str | float | Float[Tensor, " B"],
    leave_one_out: bool,
    weights: Float[Tensor, "B S"] | None,
    group: int,
) -> Float[Tensor, "B S d"]:
    """`code_direction` of a single block."""
    groups = codes.shape[1] // group
    if weights is None:
        return svgd_direction(codes, score, bandwidth=bandwidth, leave_one_out=leave_one_out)
    weights = weights / groups
    if not leave_one_out or groups == 1:
        return svgd_direction(
            codes, score, weights=weights, bandwidth=bandwidth, leave_one_out=leave_one_out
        )
    if isinstance(bandwidth, str):
        h = median_bandwidth(codes, rule=bandwidth)
    elif isinstance(bandwidth, Tensor):
        h = bandwidth
    else:
        h = codes.new_full(codes.shape[:1], bandwidth)
    every = svgd_direction(codes, score, weights=weights, bandwidth=h)
    within = svgd_direction(
        codes.unflatten(1, (groups, group)),
        score.unflatten(1, (groups, group)),
        weights=weights.unflatten(1, (groups, group)),
        bandwidth=h[:, None].expand(-1, groups),
    )
    return (every - within.flatten(1, 2)) * (groups / (groups - 1))


def normalised_direction(
    direction: Float[Tensor, "B S d"],
    codes: Float[Tensor, "B S d"],
    bandwidth: str | float | Float[Tensor, " B"],
    factor: float = 1.0,
    blocks: Sequence[int] | None = None,
) -> Float[Tensor, "B S d"]:
    """phi(z_j) / mean_i k(z_i, z_j), i = j included: as long as a score, wherever the code is.

    A Stein direction sums over neighbours, so that codes of a light mode, which have few, move less
    than others, and a shared encoder gives light modes up for the sake of heavy ones. The factor is
    positive: zeros of the direction stay where they are. Of `blocks`, each by its own kernel.
    """
    parts = []
    for run in runs(blocks or codes.shape[-1:]):
        own = run.fold(codes)
        h = code_bandwidth(own, _repeat(bandwidth, run.count), factor)
        near = rbf_gram(own, bandwidth=h).mean(-1, keepdim=True)
        parts.append(run.unfold(run.fold(direction) / near))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def summed_direction(
    codes: Float[Tensor, "B S d"],
    score: Float[Tensor, "B S d"],
    joint: Float[Tensor, "B S d"],
    *,
    bandwidth: str | float,
    joint_bandwidth: str | float | Float[Tensor, " B"],
    leave_one_out: bool,
) -> Float[Tensor, "B S d"]:
    """The direction of a sum of kernels: `joint` over its kernel's mean, plus one a dimension.

        phi(y)_v = joint(y)_v / mean k + mean_i [ k_v(x_iv, y_v) g_iv + grad k_v ]

    with mean_i over the others alone by `leave_one_out`, as mean k always is. Each term vanishes
    at q = p (Stein's identity holds for every kernel), so the fixed point is that of the joint
    kernel. In d dimensions squared distances differ by a share of about sqrt(2/d) only, and what a
    code's direction knows of its own place in one of them is a share of 1/d, under the noise of S
    codes; a kernel of that dimension alone has all of it. Source of kernels by dimension: Zhuo et
    al. 2018, Wang et al. 2018, which leave the joint one out.
    """
    count = codes.shape[1]
    same = torch.eye(count, dtype=torch.bool, device=codes.device)  # where k = 1, left out
    pairs = rbf_gram(codes, bandwidth=joint_bandwidth).masked_fill(same, 0.0)
    mean = (pairs.sum((1, 2)) / (count * (count - 1))).clamp_min(torch.finfo(pairs.dtype).tiny)
    single = svgd_direction(
        codes.mT[..., None],
        score.mT[..., None],
        bandwidth=bandwidth,
        leave_one_out=leave_one_out,
    )
    return joint / mean[:, None, None] + single.squeeze(-1).mT


def linear_direction(
    codes: Float[Tensor, "B S d"],
    score: Float[Tensor, "B S d"],
    variance: Float[Tensor, " d"],
) -> Float[Tensor, "B S d"]:
    """The direction of k(x, y) = 1 + (x - m)^T V^-1 (y - m), each code's by the S - 1 others alone.

        phi(z_j) = mean g + [ C_gz + I ] V^-1 (z_j - m)

    with m, mean g and the sample covariance C_gz of scores and codes those of the others, and V the
    diagonal of `variance` (d,). It vanishes in expectation where mean g = 0 and cov(g, z) = -I,
    which is Stein's identity for the functions 1 and z: q has then the moments of a p that is
    Gaussian. Kernels of distances are nearly flat in many dimensions and hardly see a covariance;
    this one sees it whatever d is, and no density is needed. At least four codes.

    Source: Liu & Wang 2018, "Stein variational gradient descent as moment matching".
    """
    count = codes.shape[1]
    left_out = count / (count - 1)  # a code is this much farther from the mean of the others
    z, g = codes - codes.mean(1, keepdim=True), score - score.mean(1, keepdim=True)
    scaled = z / variance
    own = (z * scaled).sum(-1, keepdim=True)
    fitted = (scaled @ z.mT @ g - left_out * own * g) / (count - 2)
    return score.mean(1, keepdim=True) - g / (count - 1) + left_out * (fitted + scaled)


def theta_direction(
    theta: Float[Tensor, "M P"],
    score: Float[Tensor, "M P"],
    *,
    bandwidth: str | float,
    data_size: int,
    weights: Float[Tensor, " M"] | None = None,
) -> Float[Tensor, "M P"]:
    """Direction of every decoder among all decoders, eq. 3, divided by N: (M, P) -> (M, P).

    Decoders persist from step to step, so each needs its own score: j' = j stays in. Dividing by N
    leaves the fixed point alone and makes gradients of order one for the optimiser. `weights` sum
    to 1 (eq. 12).
    """
    direction = svgd_direction(theta, score, weights=weights, bandwidth=bandwidth)
    return direction.div_(data_size)
