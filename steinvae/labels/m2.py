"""`--method.name m2`: M1+M2 of Kingma et al. 2014, both trained in one run."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from steinvae.config import MethodConfig
from steinvae.gradients import Batch, Gradients
from steinvae.labels.baselines import elbo
from steinvae.labels.m2_network import M2
from steinvae.labels.stein import known
from steinvae.labels.task import LabelTask
from steinvae.networks import Networks

ALPHA = 0.1
"""Weight of the classifier's own term, times N: the paper's alpha = 0.1 N."""


def m2(
    networks: Networks, batch: Batch, method: MethodConfig, data_size: int, *, task: LabelTask
) -> Gradients:
    """M1 descends the negative ELBO of all images, without labels; M2 models its codes.

    The paper trains M2 on the codes of a finished M1. Here M2 trains beside it on codes that it
    cannot change, and the learning rates of both fall together. M1 has no label in it: its code
    space is the one in which nearest neighbours are measured.
    """
    if not isinstance(networks.labels, M2):
        raise TypeError(f"m2 needs M2 networks, got {type(networks.labels).__name__}")
    model, labels = networks.labels, known(batch)
    gradients, drawn = elbo(networks, batch, data_size, task)
    codes = drawn[:, 0]
    # M1's update takes the mean over codes: the noise of the last one is free to use here
    noise = batch.noise[:, -1].expand(len(codes), -1)
    shares = (task.unlabelled / task.images, task.labelled / task.images)
    loss = model.loss(codes, noise, labels, shares, ALPHA)
    trained = model.trained()
    to_labels = torch.autograd.grad(loss, trained)
    with torch.no_grad():
        log_q = model.log_probabilities(codes[-len(labels) :, None])[0, :, 0]
    stats = {
        "m2_loss": loss.detach(),
        "label_nll": F.nll_loss(log_q, labels),
        "label_error": (log_q.argmax(-1) != labels).float().mean(),
    }
    return gradients._replace(
        labels=[
            gradient + parameter.detach() / task.images  # the prior N(0, I), as for theta
            for gradient, parameter in zip(to_labels, trained, strict=True)
        ],
        stats=gradients.stats | stats,
    )
