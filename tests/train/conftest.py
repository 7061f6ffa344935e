"""A run on the digits that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from steinvae.config import Config, EvaluationConfig, MethodConfig, ModelConfig, TrainerConfig
from steinvae.data import Dataset, load


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture
def tiny() -> Callable[..., Config]:
    """A small configuration; keywords are sections with the fields to change, as dictionaries."""
    base = Config(
        model=ModelConfig(codes=4, hidden=(16,)),
        method=MethodConfig(theta_particles=1),
        trainer=TrainerConfig(
            max_steps=20,
            batch_size=16,
            log_every=4,
            validate_every=6,
            checkpoint_every=5,
            device="cpu",
        ),
        evaluation=EvaluationConfig(
            images=8, samples=20, validation_images=8, validation_samples=20
        ),
    )

    def make(**changes: Any) -> Config:
        sections = {
            name: replace(getattr(base, name), **value) if isinstance(value, dict) else value
            for name, value in changes.items()
        }
        return replace(base, **sections)

    return make
