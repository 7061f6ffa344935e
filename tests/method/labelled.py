"""Small networks with label decoders, a minibatch whose last images have labels, and an update."""

from __future__ import annotations

import torch

from steinvae.config import Config, DataConfig, MethodConfig, ModelConfig
from steinvae.gradients import Batch
from steinvae.labels.m2_network import M2
from steinvae.labels.objectives import labelled_objective
from steinvae.labels.softmax import SoftmaxLabels
from steinvae.labels.task import LabelTask
from steinvae.networks import Networks, build_networks

CODES, CLASSES, PIXELS, SAMPLES = 3, 10, 6, 6
TASK = LabelTask(labelled=8, unlabelled=40, zeta=2.5)
LABELS = torch.tensor([0, 7, 3])


def networks(name: str, **method) -> Networks:
    """Of 6 pixels and 3 codes, in float64, label decoders far from uniform."""
    config = Config(
        data=DataConfig(labels_per_class=1),
        model=ModelConfig(codes=CODES, hidden=(5,)),
        method=MethodConfig(**{"name": name, "theta_particles": 2, "label_particles": 4, **method}),
    )
    made = build_networks(config, PIXELS, "cpu")
    made.theta.flat = made.theta.flat.double()
    made.encoder = made.encoder.double()
    if isinstance(made.labels, SoftmaxLabels):
        made.labels.theta.flat = 10 * made.labels.theta.flat.double()
    if isinstance(made.labels, M2):
        made.labels = made.labels.double()
    return made


def minibatch() -> Batch:
    """Four images without a label, then three with one."""
    pixels = (torch.rand(7, PIXELS) < 0.5).double()
    noise = torch.randn(7, SAMPLES, CODES, dtype=torch.float64)
    return Batch(pixels, noise, labels=LABELS)


def update(name: str, made: Networks, batch: Batch, **method):
    settings = MethodConfig(**{"name": name, "theta_particles": 2, **method})
    return labelled_objective(name, TASK)(made, batch, settings, TASK.images)


def log_p_by_hand(heads: SoftmaxLabels, flat, codes, labels):
    """log p(y | z, theta~_m) from the buffer: (K, L, S)."""
    weight = flat[:, : CODES * CLASSES].view(-1, CODES, CLASSES)
    bias = flat[:, CODES * CLASSES :]
    logits = torch.einsum("lsd,kdc->klsc", codes, weight) + bias[:, None, None]
    return logits.log_softmax(-1)[:, torch.arange(len(labels)), :, labels].movedim(1, 0)
