"""The model of labels that a configuration asks for."""

from __future__ import annotations

import torch

from steinvae.config import CLASSES, Config
from steinvae.data import step_generator
from steinvae.labels.m2_network import M2
from steinvae.labels.pooled import PooledLabels
from steinvae.labels.softmax import LabelModel, SoftmaxLabels
from steinvae.models.stages import code_planes, code_side

KERNELS = 2048
"""Default of model.label_kernels, as printed."""


def make_labels(
    config: Config, device: torch.device | str, classes: int | None = None
) -> LabelModel:
    """Fresh label decoders, or M2; drawn from the seed of the run, from a stream of their own."""
    generator = step_generator(config.seed, 0, "label decoders")
    codes, particles = config.model.codes, config.method.label_decoders
    classes = CLASSES[config.data.name] if classes is None else classes
    if config.method.name == "m2":
        return M2(codes, classes, generator).to(device)
    if config.model.network == "residual":
        kernels = config.model.label_kernels or KERNELS
        planes = code_planes(codes, code_side(config.data.crop, len(config.model.hidden)))
        heads = PooledLabels(planes, classes, particles, generator, device, kernels=kernels)
    else:
        heads = SoftmaxLabels(codes, classes, particles, generator, device)
    if config.method.align_guesses:
        heads.align()
    return heads
