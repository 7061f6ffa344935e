"""What Stein learning with labels is compared with, on the same networks and label decoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steinvae.baselines import gaussian_codes
from steinvae.config import MethodConfig
from steinvae.gradients import Batch, Gradients, code_spread
from steinvae.labels.guesses import guess
from steinvae.labels.softmax import LabelScores
from steinvae.labels.stein import known, label_direction, label_stats, softmax_labels
from steinvae.labels.task import LabelTask, image_scores
from steinvae.networks import Networks
from steinvae.pairs import Pairing
from steinvae.recognition import gaussian_rate


def vae(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int, *, task: LabelTask
) -> Gradients:
    """The paper's VAE: a Gaussian encoder by the ELBO, and zeta log p(y | z) of labelled codes.

    eta descends the mean over the minibatch of -ELBO(x), rate exact, less zeta E_q log p(y | z)
    where the label is known (or guessed, with `guess_above`). theta and theta~ are one particle
    each, by the scores of Stein VAE: maximum a posteriori.
    """
    heads, labels = softmax_labels(networks), known(batch)
    count, found, stats = len(labels), list[LabelScores](), dict[str, Tensor]()

    def pull(codes: Tensor) -> Tensor:
        found.append(heads.scores(codes[-count:], labels))
        added = torch.zeros_like(codes)
        added[-count:] = task.zeta * found[0].codes
        if method.guess_above is not None:
            above, frequencies = method.guess_above, task.frequencies
            guesses = guess(networks, heads, batch, codes[:-count], above, frequencies)
            added[:-count] = task.zeta * guesses.codes
            stats["guessed"] = guesses.taken.float().mean()
        return added

    gradients, drawn = elbo(networks, batch, data_size, task, pull)
    (seen,) = found
    return gradients._replace(
        labels=[-label_direction(heads, drawn, seen, task, method)],
        stats=gradients.stats | label_stats(seen, labels) | stats,
    )


def elbo(
    networks: Networks,
    batch: Batch,
    data_size: int,
    task: LabelTask,
    pull: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Gradients, Tensor]:
    """Gradients of -ELBO of both halves, and the codes (B, S, d).

    `pull` takes the codes to what labels add to their gradient, (B, S, d) both.
    """
    count = len(known(batch))
    mean, log_sigma, codes = gaussian_codes(networks, batch)
    rate = gaussian_rate(mean, log_sigma).mean()
    drawn = codes.detach()
    scores = image_scores(networks, drawn, batch.pixels, task, count, Pairing())
    uphill = scores.codes + drawn  # the prior is in the rate
    if pull is not None:
        uphill += pull(drawn)
    descended = rate - (codes * uphill).sum() / codes.shape[:2].numel()
    distortion = -scores.log_likelihood.mean()
    stats = {
        "distortion": distortion,
        "code_spread": code_spread(drawn),
        "negative_elbo": rate.detach() + distortion,
        "rate": rate.detach(),
    }
    gradients = Gradients(
        theta=-scores.theta / data_size,
        eta=list(torch.autograd.grad(descended, networks.eta())),
        stats=stats,
    )
    return gradients, drawn


def supervised(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int, *, task: LabelTask
) -> Gradients:
    """Encoder and label decoder by -E log p(y | z) of the labelled half alone; no decoder.

    The unlabelled half is not looked at. The encoder keeps its noise, whose scale it is free to
    shrink.
    """
    heads, labels = softmax_labels(networks), known(batch)
    count = len(labels)
    noise = batch.noise if len(batch.noise) == 1 else batch.noise[-count:]
    codes = networks.encoder.draw(batch.shown[-count:], noise)
    drawn = codes.detach()
    seen = heads.scores(drawn, labels)
    descended = -(codes * seen.codes).sum() / codes.shape[:2].numel()
    return Gradients(
        theta=torch.zeros_like(networks.theta.flat),
        eta=list(torch.autograd.grad(descended, networks.eta(), materialize_grads=True)),
        labels=[-label_direction(heads, drawn, seen, task, method)],
        stats={"code_spread": code_spread(drawn)} | label_stats(seen, labels),
    )
