"""Networks that the caller made: tried on a few images before their run begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from steinvae.config import Config, MethodConfig
from steinvae.data import Dataset, step_generator
from steinvae.density.likelihood import noise_dimension
from steinvae.device import choose_device
from steinvae.networks import Networks
from steinvae.pairs import check_shape, has_closed_form
from steinvae.recognition import GaussianEncoder

IMAGES, CODES = 2, 3
BY_MOMENTS = ("vae", "iwae", "vae_weighted_decoder")
"""Methods whose encoder is a `GaussianEncoder`."""

BY_DENSITY = ("flow_elbo", "planar_flow")
"""Methods that differentiate the codes' log density."""

FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


def classes(networks: Networks) -> dict[str, str]:
    """Names of the classes, by part."""
    return {"model": _name(networks.model), "encoder": _name(networks.encoder)}


def check_networks(networks: Networks, config: Config, dataset: Dataset[Any]) -> None:
    """Draw codes for a few training images and decode them, as training will.

    Nothing of the networks changes but the encoder's mode, which is that of evaluation then.
    Errors: TypeError where the method needs another kind of encoder, ValueError naming the class,
    what it was given, what was expected of it and what came.
    """
    encoder, device = networks.encoder, networks.device
    _check_theta(networks)
    if not isinstance(getattr(encoder, "codes", None), Integral):
        raise TypeError(f"{_name(encoder)}.codes must be the int d, of code dimensions")
    wanted = choose_device(config.trainer.device)
    if wanted.type != device.type:
        raise ValueError(
            f"trainer.device {config.trainer.device} is {wanted}, the networks are on {device}"
        )
    _check_kind(networks, config.method)
    generator = step_generator(config.seed, 0, "check")
    chosen = torch.arange(min(IMAGES, len(dataset.train)))
    pixels = dataset.train.batch(chosen, generator).to(device)
    rows = 1 if config.method.shared_noise else len(chosen)
    noise = torch.randn(rows, CODES, noise_dimension(encoder), generator=generator).to(device)
    buffers = [(each, each.clone()) for each in encoder.buffers()]
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
    try:
        with forked, networks.training(), torch.enable_grad():
            codes = _check_encoder(networks, config.method, pixels, noise)
            _check_likelihood(networks, codes, pixels)
            if dataset.image_shape is not None:
                _check_mean_images(networks, codes[0], pixels.shape[-1])
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


def _check_theta(networks: Networks) -> None:
    asked, held = networks.model.parameters, networks.theta.parameters
    if [(each.name, each.shape) for each in asked] != [(each.name, each.shape) for each in held]:
        raise ValueError(
            f"Networks.theta must hold the parameters of {_name(networks.model)}, "
            f"{_shown(asked)}; got {_shown(held)}"
        )


def _check_kind(networks: Networks, method: MethodConfig) -> None:
    encoder = networks.encoder
    if method.name in BY_MOMENTS and not isinstance(encoder, GaussianEncoder):
        raise TypeError(f"method.name {method.name} needs a GaussianEncoder, got {_name(encoder)}")
    asks = _exact(method)
    if asks is not None and not encoder.injective:
        raise TypeError(
            f"{asks} needs an encoder that is injective in the noise; {_name(encoder)} does not "
            "say injective = True"
        )


def _exact(method: MethodConfig) -> str | None:
    """The setting that asks for the exact density of the codes, if any."""
    if method.name == "flow_elbo":
        return "method.name flow_elbo"
    if method.name != "stein_viwae" or method.importance_samples == 1:
        return None
    if method.move_codes:
        return "method.move_codes"
    by_jacobian = method.log_q == "jac" and method.weights != "none"
    return "method.log_q jac" if by_jacobian else None


def _check_encoder(
    networks: Networks, method: MethodConfig, pixels: Tensor, noise: Tensor
) -> Tensor:
    """The codes, detached."""
    encoder, by_density = networks.encoder, method.name in BY_DENSITY
    shape = (len(pixels), CODES, int(encoder.codes))
    given = {"pixels": pixels, "noise": noise}
    call = "codes_and_log_density" if by_density else "draw"
    name = f"{_name(encoder)}.{call}"
    with _calling(name, **given):
        found = getattr(encoder, call)(pixels, noise)
    outputs: Sequence[Any] = found if by_density else [found]
    drawn = outputs[0]
    _check_tensor(name, "codes", drawn)
    if tuple(drawn.shape) != shape or drawn.dtype != networks.theta.flat.dtype:
        raise ValueError(
            f"{name} must give codes (B, S, d) = {shape} of {networks.theta.flat.dtype} for "
            f"pixels {tuple(pixels.shape)} and noise {tuple(noise.shape)}, "
            f"got {tuple(drawn.shape)} of {drawn.dtype}"
        )
    if not bool(drawn.isfinite().all()):
        raise ValueError(f"{name} must give finite codes before training")
    trained = {name: each for name, each in encoder.named_parameters() if each.requires_grad}
    if not trained:
        raise ValueError(f"{_name(encoder)} has no parameter to train: all are frozen")
    _check_gradients(name, outputs, trained, ", or freeze them by requires_grad_(False)")
    if _exact(method) is not None and not by_density:
        with _calling(f"{_name(encoder)}.codes_and_log_density", **given):
            encoder.codes_and_log_density(pixels, noise)
    return drawn.detach()


def _check_likelihood(networks: Networks, codes: Tensor, pixels: Tensor) -> None:
    model, theta = networks.model, networks.theta.leaves()
    pairs = codes[None].expand(networks.theta.particles, -1, -1, -1).clone().requires_grad_()
    name = f"{_name(model)}.log_likelihood"
    with _calling(name, codes=pairs, pixels=pixels):
        found = model.log_likelihood(theta, pairs, pixels)
    _check_tensor(name, "numbers", found)
    check_shape(model, found, pairs)
    wrong = int((~found.isfinite()).sum())
    if wrong:
        raise ValueError(
            f"{name} must be finite before training: {wrong} of {found.numel()} are not"
        )
    if not has_closed_form(model):
        _check_gradients(name, [found], {"codes": pairs, **theta}, "")


@torch.no_grad()
def _check_mean_images(networks: Networks, codes: Tensor, features: int) -> None:
    model = networks.model
    name = f"{_name(model)}.mean_images"
    with _calling(name, codes=codes):
        found = model.mean_images(networks.theta.leaves(), codes)
    _check_tensor(name, "images", found)
    if tuple(found.shape) != (len(codes), features):
        raise ValueError(
            f"{name} must return (n, X) = {(len(codes), features)}, got {tuple(found.shape)}"
        )


def _check_tensor(name: str, of: str, found: Any) -> None:
    if not isinstance(found, Tensor):
        raise TypeError(f"{name} must give a tensor of {of}, got {_name(found)}")


def _check_gradients(
    name: str, outputs: Sequence[Tensor], trained: Mapping[str, Tensor], otherwise: str
) -> None:
    total = sum(each.sum() for each in outputs)
    if not isinstance(total, Tensor) or not total.requires_grad:
        raise ValueError(f"{name} must be differentiable, its result has no graph (detached?)")
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    unused = [part for part, each in zip(trained, gradients, strict=True) if each is None]
    if unused:
        raise ValueError(
            f"{name} does not depend on {', '.join(unused)}: use or remove them{otherwise}"
        )


@contextmanager
def _calling(name: str, **given: Tensor) -> Iterator[None]:
    try:
        yield
    except FAULTS as error:
        shapes = ", ".join(f"{each} {tuple(value.shape)}" for each, value in given.items())
        raise ValueError(
            f"{name} failed, given {shapes}: {type(error).__name__}: {error}"
        ) from error


def _name(part: Any) -> str:
    return type(part).__name__


def _shown(parameters: Sequence[Any]) -> str:
    return ", ".join(f"{each.name} {tuple(each.shape)}" for each in parameters)
