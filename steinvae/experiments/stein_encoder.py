"""What the Stein encoder is worth: AIS of decoders trained beside it, against a control without it.

Fixed binarised MNIST, 2x128 tanh, 20 codes, batches of 32, one group of 10 codes, weights on theta.
The parameters of the last step are measured, by annealed importance sampling on the same 100 test
images: no encoder enters, so what differs between rows is the decoder that was learned.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from steinvae.config import Config
from steinvae.density import evenly_spaced
from steinvae.density.annealed import ais
from steinvae.density.annealing import Annealing
from steinvae.device import prepare_process
from steinvae.experiments.cells import Record, announce, read
from steinvae.experiments.over_seeds import shown
from steinvae.presets import mnist_small
from steinvae.report import append_records, markdown_table, tidy_record
from steinvae.run import load_data
from steinvae.trainer import Trainer

NAME, METRIC = "stein_encoder", "test_nll"
IMAGES = 100
ANNEALING = Annealing(temperatures=250, chains=4, pilot_chains=2)
STEPS = (1500, 6000)

CONTROL = "control: Gaussian ELBO encoder"
MOVED = {"name": "stein_viwae", "move_codes": True, "code_step": 0.5}
ROWS: dict[str, dict[str, Any]] = {
    CONTROL: {"name": "vae_weighted_decoder"},
    "control, entropy x 0.8": {"name": "vae_weighted_decoder", "entropy_weight": 0.8},
    "control, entropy x 0.5": {"name": "vae_weighted_decoder", "entropy_weight": 0.5},
    "control, entropy x 0.25": {"name": "vae_weighted_decoder", "entropy_weight": 0.25},
    "flow encoder by its exact ELBO": {"name": "flow_elbo"},
    "Stein": {"name": "stein_viwae"},
    "Stein, exact log q in the weights": {"name": "stein_viwae", "log_q": "jac"},
    "Stein, bandwidth x 4": {"name": "stein_viwae", "bandwidth_factor": 4.0},
    "Stein, bandwidth x 16": {"name": "stein_viwae", "bandwidth_factor": 16.0},
    "Stein, K = 2, step 0.1": {"name": "stein_viwae", "regression_steps": 2},
    "Stein, K = 5, step 0.1": {"name": "stein_viwae", "regression_steps": 5},
    "Stein, K = 5, step 0.5": {"name": "stein_viwae", "regression_steps": 5, "code_step": 0.5},
    "Stein, a kernel a dimension": {"name": "stein_viwae", "kernel_block": 1},
    "control, 20 codes": {"name": "vae_weighted_decoder", "importance_samples": 20},
    "control, 40 codes": {"name": "vae_weighted_decoder", "importance_samples": 40},
    "Stein, 20 codes": {"name": "stein_viwae", "importance_samples": 20},
    "Stein, 40 codes": {"name": "stein_viwae", "importance_samples": 40},
    "Stein, a kernel a dimension, 40 codes": {
        "name": "stein_viwae",
        "importance_samples": 40,
        "kernel_block": 1,
    },
    "triangular encoder by its exact ELBO": {"name": "flow_elbo", "encoder": "triangular"},
    "Stein move, triangular encoder": {**MOVED, "encoder": "triangular"},
    "Stein move, triangular encoder, 5 codes": {
        **MOVED,
        "encoder": "triangular",
        "importance_samples": 5,
    },
    "Stein move, Gaussian encoder, 5 codes": {
        **MOVED,
        "encoder": "gaussian",
        "importance_samples": 5,
    },
}
"""Rows that this module trains. Records of other variants are drawn where the file has them."""


def configuration(row: str, steps: int, seed: int, root: str | None) -> Config:
    """The run of a row."""
    base = mnist_small()
    changes = {"code_particles": 1, "importance_samples": 10, **ROWS[row]}
    encoder = changes.pop("encoder", base.model.encoder)
    return replace(
        base,
        seed=seed,
        data=replace(base.data, root=root),
        model=replace(base.model, encoder=encoder),
        method=replace(base.method, **changes),
        optimizer=replace(base.optimizer, decay_steps=steps),
        trainer=replace(
            base.trainer, max_steps=steps, baseline="none", monitor_every=0, device="cpu"
        ),
    )


def run(root: str | None, seeds: Sequence[int], output: Path, run_dir: Path) -> str:
    """Train and measure what has no record yet, and return the tables."""
    known = {_key(record) for record in read(output)}
    wanted = [(row, steps, seed) for steps in STEPS for seed in seeds for row in ROWS]
    missing = [cell for cell in wanted if cell not in known]
    announce(len(wanted), output, [None for _ in missing])
    for row, steps, seed in missing:
        append_records(output, [measure(row, configuration(row, steps, seed, root), run_dir)])
    return table(output, seeds)


def measure(row: str, config: Config, run_dir: Path) -> Record:
    """Train `config` to its last step, and its AIS bound as a record."""
    prepare_process(config)
    dataset = load_data(config)
    trainer = Trainer(config, dataset, run_dir)
    started = time.process_time()
    for step in range(config.trainer.max_steps):
        trainer.update(step, monitor=False)
    seconds = time.process_time() - started
    pixels = dataset.test.batch(evenly_spaced(len(dataset.test), IMAGES)).to(trainer.device)
    return record(row, config, ais(trainer.networks, pixels, ANNEALING, seed=0).lower, seconds)


def record(row: str, config: Config, lower: torch.Tensor, seconds: float) -> Record:
    """One tidy record; `lower` (B,) are the images' lower bounds in nats."""
    setting = {
        "row": row,
        "data": config.data.name,
        "codes": config.model.codes,
        "steps": config.trainer.max_steps,
        "importance_samples": config.method.importance_samples,
        "weights": config.method.weights,
    }
    return tidy_record(
        experiment=NAME,
        method=config.method.name,
        setting=setting,
        seed=config.seed,
        metric=METRIC,
        value=-lower.mean().item(),
        stderr=(lower.std() / len(lower) ** 0.5).item(),
        n=len(lower),
        estimator=f"ais({ANNEALING.temperatures} x {ANNEALING.chains})",
        seconds=round(seconds, 1),
        device=f"cpu, {torch.get_num_threads()} thread",
    )


def table(output: Path, seeds: Sequence[int]) -> str:
    """One table for each number of steps, drawn from the records in `output`."""
    records = {_key(each): each for each in read(output)}
    parts = [text for steps in STEPS if (text := _table(records, steps, seeds))]
    return "\n\n".join(parts)


def _table(records: dict[tuple[str, int, int], Record], steps: int, seeds: Sequence[int]) -> str:
    rows = list(dict.fromkeys(row for row, horizon, _ in records if horizon == steps))
    control = {seed: records.get((CONTROL, steps, seed)) for seed in seeds}
    lines = []
    for row in rows:
        own = {seed: one for seed in seeds if (one := records.get((row, steps, seed)))}
        if not own:
            continue
        beside = {seed: one for seed in own if (one := control[seed])}
        gains = [other["value"] - own[seed]["value"] for seed, other in beside.items()]
        lines.append(
            [
                row,
                *(f"{own[seed]['value']:.2f}" if seed in own else "-" for seed in seeds),
                shown([one["value"] for one in own.values()], 1),
                shown(gains, 1) if gains and row != CONTROL else "-",
                f"{sum(one['seconds'] for one in own.values()) / len(own):.0f}",
            ]
        )
    if not lines:
        return ""
    header = (f"{steps:,} steps", *(f"seed {seed}" for seed in seeds), "mean", "gain", "s / run")
    return markdown_table(header, lines)


def _key(record: Record) -> tuple[str, int, int]:
    return record["setting"]["row"], record["setting"]["steps"], record["seed"]
