"""Stein VAE and Stein VIWAE with labels: Pu et al. 2017, section 4 and appendix B."""

from __future__ import annotations

from torch import Tensor

from steinvae.chunks import Drawn
from steinvae.config import MethodConfig
from steinvae.gradients import Batch, Gradients
from steinvae.labels.guesses import guess
from steinvae.labels.softmax import LabelScores, SoftmaxLabels
from steinvae.labels.task import LabelTask, image_scores
from steinvae.networks import Networks
from steinvae.objectives import grouped, move, weigh
from steinvae.pairs import Pairing
from steinvae.stein import Scores, theta_direction


def stein(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int, *, task: LabelTask
) -> Gradients:
    """Algorithm 1 on images and labels.

    Codes of a labelled image follow
        grad_z [ log p(z) + mean_m log p(x | z, theta_m) + zeta mean_k log p(y | z, theta~_k) ]
    (section 4 prints the gradient of a product), others the first two terms. theta~ has a kernel of
    its own and the score of eq. 31, prior once, no zeta. In Stein VIWAE a labelled code's weight is
    omega = p(x, z) p(y | z)^zeta / q(z | x), p(y | z) the mean over label decoders, and acts on
    theta~ as on theta. With `guess_above` unlabelled codes follow their `guesses`, too.
    """
    heads, labels = softmax_labels(networks), known(batch)
    drawn = Drawn(networks, batch)
    codes, count = drawn.codes, len(labels)
    seen = heads.scores(codes[-count:], labels)
    pairing, log_ratio = grouped(networks, codes, batch, method)
    if log_ratio is not None:
        log_ratio[-count:] += task.zeta * seen.log_likelihood
    of_theta = log_ratio if method.weights in ("theta", "both") else None
    scores = image_scores(networks, codes, batch.pixels, task, count, pairing, of_theta)
    scores.codes[-count:] += task.zeta * seen.codes
    stats = label_stats(seen, labels)
    if method.guess_above is not None:
        above, frequencies = method.guess_above, task.frequencies
        guesses = guess(networks, heads, batch, codes[:-count], above, frequencies)
        scores.codes[:-count] += task.zeta * guesses.codes
        stats["guessed"] = guesses.taken.float().mean()
    weights = None
    if log_ratio is not None:
        decoders = networks.theta.particles
        weights = weigh(scores, log_ratio, pairing, method, decoders, batch.ranks)
    gradients = move(networks, batch, method, data_size, drawn, scores, weights)
    to_theta = label_direction(
        heads, codes, seen, task, method, code_weights(scores, pairing, count)
    )
    return gradients._replace(labels=[-to_theta], stats=gradients.stats | stats)


def label_direction(
    heads: SoftmaxLabels,
    codes: Tensor,
    seen: LabelScores,
    task: LabelTask,
    method: MethodConfig,
    weights: Tensor | None = None,
) -> Tensor:
    """Direction of every label decoder among all of them, divided by N_l: (K, P).

    It is linear in the scores: the mean over processes that have a share of the images each is the
    direction of all.
    """
    labelled = codes[-seen.residual.shape[1] :]
    score = heads.theta_score(labelled, seen.residual, labelled=task.labelled, weights=weights)
    return theta_direction(
        heads.theta.flat, score, bandwidth=method.theta_bandwidth, data_size=task.labelled
    )


def code_weights(scores: Scores, pairing: Pairing, count: int) -> Tensor | None:
    """(L, S) weights of the labelled images' codes, summing to 1 an image, mean over decoders."""
    if scores.weights is None:
        return None
    collected = pairing.collect(scores.weights)[-count:]
    return collected / collected.sum(-1, keepdim=True)


def label_stats(seen: LabelScores, labels: Tensor) -> dict[str, Tensor]:
    """Of the labelled images of the minibatch, averaged over codes as prediction does."""
    onehot_minus = seen.residual.mean((0, 2))  # (L, C): onehot - mean probability
    right = labels[:, None]
    probability = 1 - onehot_minus.gather(1, right).squeeze(1)
    wrong = (-onehot_minus).scatter_(1, right, -1.0)
    return {
        "label_nll": -probability.clamp_min(1e-30).log().mean(),
        "label_error": (wrong.amax(-1) >= probability).float().mean(),
    }


def softmax_labels(networks: Networks) -> SoftmaxLabels:
    """The label decoders of networks that have them."""
    if not isinstance(networks.labels, SoftmaxLabels):
        raise TypeError(f"this method needs SoftmaxLabels, got {type(networks.labels).__name__}")
    return networks.labels


def known(batch: Batch) -> Tensor:
    """The labels of the minibatch."""
    if batch.labels is None:
        raise ValueError("this method needs a minibatch with labels")
    return batch.labels
