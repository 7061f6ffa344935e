"""The model of labels that a configuration asks for."""

from __future__ import annotations

import torch

from steinvae.config import CLASSES, Config
from steinvae.data import step_generator
from steinvae.labels.m2_network import M2
from steinvae.labels.softmax import LabelModel, SoftmaxLabels


def make_labels(config: Config, device: torch.device | str) -> LabelModel:
    """Fresh label decoders, or M2; drawn from the seed of the run, from a stream of their own."""
    generator = step_generator(config.seed, 0, "label decoders")
    codes, classes = config.model.codes, CLASSES[config.data.name]
    if config.method.name == "m2":
        return M2(codes, classes, generator).to(device)
    return SoftmaxLabels(codes, classes, config.method.label_decoders, generator, device)
