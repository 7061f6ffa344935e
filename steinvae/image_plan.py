"""The plan of an update of the all-convolutional nets, and whether a device can hold it or that of
other networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import torch

from steinvae.config import Config
from steinvae.image_networks import STACK
from steinvae.labels.heads import KERNELS as LABEL_KERNELS
from steinvae.models.residual import GaussianResidual
from steinvae.models.stages import (
    COLOURS,
    FIRST,
    KERNEL,
    Down,
    code_planes,
    code_side,
    kept_numbers,
)
from steinvae.plan import BYTES, Plan, make_plan, state_copies

CLASSES = 1000
"""Of the labels that are planned; those of a data set are not known before it is read."""

_OF_IMAGE = 4  # mean image, its distance from the image, their square, and a gradient


def make_image_plan(config: Config) -> Plan:
    """As `plan.make_plan`, for model.network residual. Nothing is allocated."""
    model, method, side = config.model, config.method, config.data.crop
    stack = STACK if model.stack is None else model.stack
    pixels, images = COLOURS * side**2, config.trainer.batch_size
    plane = method.encoder_kind(model) == "concat"  # noise enters with the image
    noise = side**2 if plane else model.codes
    decoder = sum(
        prod(own.shape)
        for own in GaussianResidual(model.codes, model.hidden, pixels, stack).parameters
    )
    encoder = _encoder_parameters(config, stack)
    samples = method.codes_per_image
    dealt = method.is_stein and method.pairing == "strat"
    particles = method.theta_particles if method.is_stein else 1
    groups = method.decoders // particles  # of codes with decoders of their own, by printed weights
    seen = samples // groups // (particles if dealt else 1)  # by a decoder
    pairs = samples * (1 if dealt else particles)
    together = (images + 1) // 2 if config.data.labelled else images  # halves take turns
    rows = images * (samples if plane else 1)  # of the encoder
    kept = kept_numbers(model.hidden, stack, side, recompute=config.trainer.recompute)
    wide = 2 if config.trainer.precision == "bfloat16" else BYTES  # of an activation
    exact = seen * _OF_IMAGE * pixels + 2 * pairs * model.codes
    decoding = together * (wide * seen * kept + BYTES * exact)
    passes = images * pairs
    if method.name == "supervised":  # by label decoders alone
        passes = decoding = 0
    labels = _label_parameters(config) if config.data.labelled else 0
    validation = config.evaluation.validation_images * config.evaluation.validation_samples
    return Plan(
        decoders=method.decoders,
        decoder_parameters=decoder,
        encoder_parameters=encoder,
        codes=samples,
        images=images,
        decoder_passes=passes,
        validation_passes=validation * method.decoders or None,
        flops=3 * 2 * passes * _products(config, stack),
        images_at_once=together,
        decoding_bytes=decoding,
        encoder_images_at_once=images,
        encoder_bytes=wide * rows * kept + BYTES * images * samples * noise,
        density_bytes=0,
        code_bytes=BYTES * images * samples * model.codes,
        decoder_bytes=BYTES * method.decoders * decoder,
        state_bytes=BYTES * state_copies(config) * (method.decoders * decoder + encoder + labels),
    )


def advice(config: Config, available: int | None = None, processes: int = 1) -> str | None:
    """Why an update does not fit the device, and what would help; None where it does.

    `available` bytes are those of the device of `trainer.device` by default. `processes` share out
    the minibatch: each has a GPU of its own, or all of this machine have its memory together.
    """
    if config.model.network != "residual":
        return None
    available = device_bytes(config.trainer.device) if available is None else available
    share = replace(config.trainer, batch_size=config.trainer.batch_size // processes)
    planned = make_image_plan(replace(config, trainer=share)).total_bytes
    if not on_gpu(config.trainer.device):
        planned *= int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if planned <= available:
        return None
    helps = [] if config.trainer.recompute else ["--trainer.recompute true"]
    if config.trainer.precision != "bfloat16":
        helps.append("--trainer.precision bfloat16")
    if config.method.is_stein and config.method.pairing == "full" and config.method.decoders > 1:
        helps.append("--method.pairing strat")
    helps.append("a smaller trainer.batch_size")
    helps.append("fewer method.code_particles or theta_particles")
    return _shortage(planned, available, helps)


def warning(config: Config, plan: Plan) -> str | None:
    """The same of the `plan` of other networks, whose runs nothing refuses.

    They decode in chunks, so that what takes the memory differs: what helps is found by planning.
    """
    available = device_bytes(config.trainer.device)
    if config.model.network == "residual" or plan.total_bytes <= available:
        return None
    method, batch = config.method, config.trainer.batch_size
    tried = {
        "fewer method.theta_particles": {"theta_particles": max(1, method.theta_particles // 2)},
        "--method.pairing strat": {"pairing": "strat"},
        "fewer method.code_particles": {"code_particles": max(1, method.code_particles // 2)},
    }
    helps = [
        help for help, changes in tried.items() if _is_lighter(config, plan, {"method": changes})
    ]
    if _is_lighter(config, plan, {"trainer": {"batch_size": max(1, batch // 2)}}):
        helps.append("a smaller trainer.batch_size")
    return _shortage(plan.total_bytes, available, helps or ["smaller networks"])


def _is_lighter(config: Config, plan: Plan, changes: dict[str, dict[str, Any]]) -> bool:
    """Whether changed settings, by section, take less memory than `plan` by a twentieth."""
    try:
        sections = {name: replace(getattr(config, name), **own) for name, own in changes.items()}
        return make_plan(replace(config, **sections)).total_bytes < 0.95 * plan.total_bytes
    except ValueError:  # refused
        return False


def _shortage(planned: int, available: int, helps: Sequence[str]) -> str:
    return (
        f"an update needs about {planned / 1e9:.1f} GB, the device has {available / 1e9:.1f} GB; "
        f"try {', '.join(helps)} (--plan shows what takes it)"
    )


def on_gpu(device: str) -> bool:
    """Whether `trainer.device` means a GPU here."""
    return device != "cpu" and torch.cuda.is_available()


def device_bytes(device: str) -> int:
    """Memory of the GPU that `trainer.device` means, else of the machine."""
    if on_gpu(device):
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _encoder_parameters(config: Config, stack: int) -> int:
    model, side = config.model, config.data.crop
    planes = code_planes(model.codes, code_side(side, len(model.hidden)))
    plane = config.method.encoder_kind(model) == "concat"
    with torch.device("meta"):
        out = planes if plane else model.hidden[-1]
        net = Down(COLOURS + int(plane), model.hidden, stack, out)
    heads = 0 if plane else 2 * planes * (model.hidden[-1] + 1)
    return sum(own.numel() for own in net.parameters()) + heads


def _label_parameters(config: Config) -> int:
    model = config.model
    planes = code_planes(model.codes, code_side(config.data.crop, len(model.hidden)))
    kernels = model.label_kernels or LABEL_KERNELS
    return config.method.label_decoders * ((planes + 1) * kernels + (kernels + 1) * CLASSES)


def _products(config: Config, stack: int) -> int:
    """Multiplications of a decoder's pass over one code."""
    hidden, side = config.model.hidden, config.data.crop
    sides = [code_side(side, number + 1) for number in range(len(hidden))]
    stacks = sum(
        stack * KERNEL**2 * planes**2 * own**2 for planes, own in zip(hidden, sides, strict=True)
    )
    halving = sum(
        KERNEL**2 * a * b * own**2 for (a, b), own in zip(pairwise(hidden), sides[1:], strict=True)
    )
    first = FIRST**2 * COLOURS * hidden[0] * sides[0] ** 2
    planes = config.model.codes // sides[-1] ** 2
    narrow = 0 if planes == hidden[-1] else planes * hidden[-1] * sides[-1] ** 2
    return first + stacks + halving + narrow
