"""The cells of Table 3: networks, labels per class, methods and splits, by budget.

Split s is the choice of labelled images and the seed of the run, so that all methods of a split
start from the same networks, see the same minibatches and are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from steinvae.config import GROUPED, Config
from steinvae.experiments.cells import Cell
from steinvae.presets import mnist_labels

GUESS_ABOVE = 0.5
RADIUS = {"FNN": 1.0, "CNN": 2.0}
"""Of the adversarial perturbation of rows with guesses. Both chosen on validation images, on splits
that are in no table."""

GUESSES = {"guess_above": GUESS_ABOVE, "align_guesses": True}

ROWS: dict[str, dict[str, Any]] = {
    "Stein VAE": {"name": "stein_vae"},
    "VAE": {"name": "vae"},
    "Stein VIWAE": {"name": "stein_viwae"},
    "M1+M2": {"name": "m2"},
    "supervised": {"name": "supervised"},
    "Stein VAE + guesses": {"name": "stein_vae", **GUESSES},
    "VAE + guesses": {"name": "vae", **GUESSES},
}
METHODS = {
    changes["name"] + ("_guesses" if "guess_above" in changes else ""): row
    for row, changes in ROWS.items()
}
"""What a row is called on the command line."""

NETWORKS = ("FNN", "CNN")
PER_CLASS = (10, 60, 100, 300)


@dataclass(frozen=True)
class Budget:
    """What is trained, and for how long."""

    networks: tuple[str, ...]
    per_class: tuple[int, ...]
    splits: int
    """Where no others are chosen."""

    minutes: float | None
    """Of a cell, on one core or one GPU; None where the steps are those of the preset."""

    device: Literal["cpu", "cuda"] = "cpu"


BUDGETS = {
    "small": Budget(("FNN",), (100, 10), 3, None),
    "cpu": Budget(NETWORKS, (10, 100), 3, 40.0),
    "gpu": Budget(NETWORKS, PER_CLASS, 20, 20.0, "cuda"),
}


def base(budget: Budget, network: str, root: str | None) -> Config:
    """The configuration that the rows of a network change."""
    start = mnist_labels()
    model = start.model
    if network == "CNN":
        model = replace(model, network="conv", hidden=(32, 64), activation="tanh")
    return replace(
        start,
        data=replace(start.data, root=root),
        model=model,
        trainer=replace(
            start.trainer,
            log_every=100,
            validate_every=500,
            checkpoint_every=500,
            baseline="none",
            device=budget.device,
            cuda_graph=budget.device == "cuda",
        ),
        # the density is not what is measured here, and its estimate takes longer than the labels'
        evaluation=replace(
            start.evaluation, images=20, samples=200, validation_images=20, validation_samples=20
        ),
    )


def cells(
    budget: Budget,
    root: str | None,
    splits: Sequence[int],
    networks: Sequence[str] | None = None,
    per_class: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
) -> list[Cell]:
    """Split by split, so that a run that was stopped compares methods on the splits it has."""
    return [
        Cell(
            name(network, count, row),
            _config(budget, network, root, row, count, split),
            budget.minutes,
        )
        for split in splits
        for network in networks or budget.networks
        for count in per_class or budget.per_class
        for method, row in METHODS.items()
        if method in (methods or METHODS)
    ]


def name(network: str, count: int, row: str) -> str:
    """What a cell's records and its folder are called."""
    return f"{row}, {network}, {count} a class"


def _config(
    budget: Budget, network: str, root: str | None, row: str, count: int, split: int
) -> Config:
    """S codes for every method; Stein VIWAE takes them as one group of k = S."""
    start = base(budget, network, root)
    method = replace(start.method, **ROWS[row])
    if method.guess_above is not None:
        method = replace(method, adversarial_radius=RADIUS[network])
    if method.name in GROUPED:
        codes = start.method.code_particles
        method = replace(method, code_particles=1, importance_samples=codes)
    data = replace(start.data, labels_per_class=count, split_seed=split)
    return replace(start, seed=split, data=data, method=method)
