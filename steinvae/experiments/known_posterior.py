"""What experiments share that train an encoder alone and score it against a known posterior."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from steinvae.config import Config, EvaluationConfig, MethodConfig, OptimizerConfig, TrainerConfig
from steinvae.experiments.cells import Record
from steinvae.report import append_records, tidy_record


class Score(NamedTuple):
    """One number of a run: a mean over test points with its standard error over them."""

    metric: str
    estimator: str
    value: float
    stderr: float | None
    points: int | None = None
    """Test points that it is a mean over; None for all of the run."""


def encoder_config(
    folder: Path,
    *,
    seed: int,
    steps: int,
    method: MethodConfig,
    images: int,
    learning_rate: float = 2e-3,
) -> Config:
    """Adam with a cosine, 64 points a step; the NLL of `images` points with 500 samples.

    There is no best step to look for: the evidence does not depend on the encoder.
    """
    return Config(
        run_dir=str(folder),
        seed=seed,
        resume="auto",
        method=method,
        optimizer=OptimizerConfig(learning_rate=learning_rate, decay_steps=steps),
        trainer=TrainerConfig(
            max_steps=steps,
            batch_size=64,
            log_every=100,
            monitor_every=0,
            validate_every=steps + 1,
            checkpoint_every=1_000,
            keep_checkpoints=1,
            baseline="none",
            device="cpu",
        ),
        evaluation=EvaluationConfig(images=images, samples=500),
    )


def find(
    records: Sequence[Record], method: str, setting: dict[str, Any], seed: int
) -> list[Record]:
    """The records of one run."""
    return [
        each
        for each in records
        if each["method"] == method and each["setting"] == setting and each["seed"] == seed
    ]


def write_scores(
    output: Path,
    scores: Sequence[Score],
    *,
    experiment: str,
    method: str,
    setting: dict[str, Any],
    seed: int,
    n: int,
    seconds: float,
) -> None:
    """Append a record for every score of a run over `n` test points."""
    records = [
        tidy_record(
            experiment=experiment,
            method=method,
            setting=setting,
            seed=seed,
            metric=each.metric,
            value=each.value,
            stderr=each.stderr,
            n=n if each.points is None else each.points,
            estimator=each.estimator,
            seconds=seconds,
            device="cpu, 1 thread",
        )
        for each in scores
    ]
    append_records(output, records)


def over_runs(values: Sequence[float]) -> str:
    """Mean over runs and, for several, the standard error of that mean; "-" for none."""
    if not values:
        return "-"
    found = torch.tensor(values, dtype=torch.float64)
    error = f" ± {found.std() / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{found.mean():.3f}{error}"


def mean_seconds(runs: Sequence[Sequence[Record]]) -> str:
    """Of the runs, as text; "-" where nothing was trained."""
    seconds = sum(run[0]["seconds"] for run in runs) / len(runs)
    return f"{seconds:.0f}" if seconds else "-"
