"""The cells of Table 1 by budget: methods with the same networks and decoder passes a step.

`small`: fixed binarised MNIST, 2 x 128 tanh, d = 20, batches of 32, S = 10, 6,000 steps.
`dynamic`: MNIST drawn anew at every visit, 200-200 tanh, d = 50, batches of 64, S = 50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from steinvae.config import GROUPED, Config, MethodConfig, ModelConfig
from steinvae.experiments.cells import Cell
from steinvae.presets import mnist, mnist_small

ROWS: dict[str, dict[str, Any]] = {
    "Stein VIWAE": {"name": "stein_viwae", "kernel": "joint"},
    "control: VAE encoder, weighted decoder": {"name": "vae_weighted_decoder"},
    "VAE": {"name": "vae"},
    "IWAE": {"name": "iwae"},
    "Stein VAE": {"name": "stein_vae", "kernel": "joint"},
    "planar flow": {"name": "planar_flow"},
    "ceiling: flow by its ELBO, weighted decoder": {"name": "flow_elbo"},
    "Stein VIWAE, moved codes": {
        "name": "stein_viwae",
        "kernel": "joint",
        "move_codes": True,
        "code_step": 0.5,
        "encoder": "triangular",
    },
    "control: triangular encoder, weighted decoder": {
        "name": "flow_elbo",
        "encoder": "triangular",
    },
    "Stein VIWAE, linear kernel": {"name": "stein_viwae", "kernel": "linear"},
    "Stein VAE, linear kernel": {"name": "stein_vae", "kernel": "linear"},
}
METHODS = {
    "stein_viwae": "Stein VIWAE",
    "control": "control: VAE encoder, weighted decoder",
    "vae": "VAE",
    "iwae": "IWAE",
    "stein_vae": "Stein VAE",
    "planar_flow": "planar flow",
    "ceiling": "ceiling: flow by its ELBO, weighted decoder",
    "moved_codes": "Stein VIWAE, moved codes",
    "triangular_control": "control: triangular encoder, weighted decoder",
    "linear_kernel": "Stein VIWAE, linear kernel",
    "stein_vae_linear": "Stein VAE, linear kernel",
}
"""What a row is called on the command line."""

COMPARED = tuple(ROWS)[:4]
"""Rows that the claims are about; they run first, for every seed."""


def small(root: str | None) -> Config:
    """The configuration that the rows of `small` change."""
    base = mnist_small()
    return replace(
        base,
        data=replace(base.data, root=root),
        optimizer=replace(base.optimizer, decay_steps=6000),
        trainer=replace(
            base.trainer,
            max_steps=6000,
            log_every=100,
            monitor_every=1500,
            validate_every=1000,
            checkpoint_every=1000,
            baseline="none",
            device="cpu",
        ),
        evaluation=replace(base.evaluation, images=200, samples=1000),
    )


def dynamic(root: str | None, device: Literal["cpu", "cuda"]) -> Config:
    """The configuration that the rows of `cpu` and `gpu` change; a pilot finds their steps.

    A GPU multiplies in TF32 in updates; emulated, no loss was seen (docs/table1.md).
    """
    base, on_gpu = mnist(), device == "cuda"
    return replace(
        base,
        data=replace(base.data, name="mnist", root=root, binarization="dynamic"),
        trainer=replace(
            base.trainer,
            monitor_every=0,
            patience=0,
            baseline="none",
            device=device,
            cuda_graph=on_gpu,
            precision="tf32" if on_gpu else "float32",
            threads=1,
        ),
        evaluation=replace(base.evaluation, images=200, samples=1000),
    )


def cells(
    base: Config,
    seeds: Sequence[int],
    methods: Sequence[str] | None = None,
    minutes: float | None = None,
) -> list[Cell]:
    """The rows that the claims are about seed by seed, then the others; of some METHODS or all."""
    wanted = {METHODS[name] for name in methods or METHODS}
    others = [row for row in ROWS if row not in COMPARED]
    return [
        Cell(
            row,
            replace(base, seed=seed, model=model(base, row), method=method(base, row)),
            minutes,
        )
        for rows in (COMPARED, others)
        for seed in seeds
        for row in rows
        if row in wanted
    ]


def model(base: Config, row: str) -> ModelConfig:
    """The networks of a row: all have those of `base`, moved codes an encoder of any covariance."""
    return replace(base.model, encoder=ROWS[row].get("encoder", base.model.encoder))


def method(base: Config, row: str) -> MethodConfig:
    """S decoder passes an image for every method; those with groups take one group of k = S.

    Codes that move are decoded before and after: half as many.
    """
    changes = {name: value for name, value in ROWS[row].items() if name != "encoder"}
    changed = replace(base.method, **changes)
    if changed.name not in GROUPED:
        return changed
    passes = base.method.code_particles
    group = passes // 2 if changed.move_codes else passes
    return replace(changed, code_particles=1, importance_samples=group)
