"""A small tree of images in files, and a configuration that learns it in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from steinvae.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    MethodConfig,
    ModelConfig,
    TrainerConfig,
)
from tests.images.trees import encode

CLASSES, TRAIN, VAL, SIDE = 3, 24, 6, 18


def write_tree(root: Path) -> Path:
    """Classes that differ in colour, so that a few updates tell them apart."""
    stream = np.random.RandomState(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for label in range(CLASSES):
            place = root / split / f"n{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = stream.randint(0, 90, (SIDE, SIDE, 3)).astype(np.uint8)
                pixels[..., label] += 120
                (place / f"{number}.png").write_bytes(encode(pixels))
    return root


def small_config(root: Path, trainer: TrainerConfig) -> Config:
    """Two stages, codes of 2 x 2 x 3, half of the labels."""
    return Config(
        data=DataConfig(
            name="image_folder", root=str(root), side=SIDE, crop=16, label_fraction=0.5
        ),
        model=ModelConfig(
            network="residual",
            encoder="concat",
            codes=12,
            hidden=(4, 6),
            stack=1,
            label_kernels=8,
        ),
        method=MethodConfig(code_particles=2, theta_particles=2, pairing="strat", kernel_block=2),
        trainer=replace(trainer, max_steps=8, baseline="none"),
        evaluation=EvaluationConfig(
            images=6, samples=5, validation_images=3, validation_samples=5, proposal="diagonal"
        ),
    )
