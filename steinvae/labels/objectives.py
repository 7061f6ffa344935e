"""Which update a configuration with labels asks for."""

from __future__ import annotations

from functools import partial

from steinvae.gradients import Objective
from steinvae.labels.baselines import supervised, vae
from steinvae.labels.m2 import m2
from steinvae.labels.stein import stein
from steinvae.labels.task import LabelTask

_OBJECTIVES = {
    "stein_vae": stein,
    "stein_viwae": stein,
    "vae": vae,
    "m2": m2,
    "supervised": supervised,
}


def labelled_objective(name: str, task: LabelTask) -> Objective:
    """The update of method `name`; ValueError where it cannot use labels."""
    if name not in _OBJECTIVES:
        raise ValueError(f"method.name must be one of {tuple(_OBJECTIVES)}, got {name!r}")
    return partial(_OBJECTIVES[name], task=task)
