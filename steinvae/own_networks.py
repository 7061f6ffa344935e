"""Networks that the caller made: tried on a few images before their run begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steinvae.config import Config, MethodConfig
from steinvae.data import Dataset, step_generator
from steinvae.density.likelihood import noise_dimension
from steinvae.networks import Networks
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
    """Draw codes for a few validation images and decode them, as training will.

    Errors: TypeError where the method needs another kind of encoder, ValueError naming the class,
    what it was given, what was expected of it and what came.
    """
    _check_theta(networks)
    codes = networks.encoder, "codes"
    if not isinstance(getattr(*codes, None), int):
        raise TypeError(f"{_name(networks.encoder)}.codes must be the int d, of code dimensions")
    _check_kind(networks, config.method)
    generator = step_generator(config.seed, 0, "check")
    chosen = torch.arange(min(IMAGES, len(dataset.validation)))
    pixels = dataset.validation.batch(chosen).to(networks.device)
    noise = torch.randn(len(chosen), CODES, noise_dimension(networks.encoder), generator=generator)
    with torch.random.fork_rng(), torch.enable_grad():
        drawn = _check_encoder(networks, config.method, pixels, noise.to(networks.device))
        _check_likelihood(networks, drawn.detach(), pixels)
        if dataset.image_shape is not None:
            _check_mean_images(networks, drawn.detach()[0], pixels.shape[-1])


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
    by_jacobian = method.name == "stein_viwae" and method.weights != "none"
    by_jacobian = by_jacobian and method.log_q == "jac" and method.importance_samples > 1
    if (method.name == "flow_elbo" or by_jacobian) and not encoder.injective:
        asks = "method.log_q jac" if by_jacobian else "method.name flow_elbo"
        raise TypeError(
            f"{asks} needs an encoder that is injective in the noise; {_name(encoder)} does not "
            "say injective = True"
        )


def _check_encoder(
    networks: Networks, method: MethodConfig, pixels: Tensor, noise: Tensor
) -> Tensor:
    encoder, shape = networks.encoder, (len(pixels), CODES, networks.encoder.codes)
    by_density = method.name in BY_DENSITY
    call = "codes_and_log_density" if by_density else "draw"
    with _calling(encoder, call, pixels=pixels, noise=noise):
        found = getattr(encoder, call)(pixels, noise)
    outputs: Sequence[Any] = found if by_density else [found]
    drawn = outputs[0]
    if not isinstance(drawn, Tensor):
        raise TypeError(f"{_name(encoder)}.{call} must give a tensor of codes, got {_name(drawn)}")
    if tuple(drawn.shape) != shape or drawn.dtype != networks.theta.flat.dtype:
        raise ValueError(
            f"{_name(encoder)}.{call} must give codes (B, S, d) = {shape} of "
            f"{networks.theta.flat.dtype} for pixels {tuple(pixels.shape)} and noise "
            f"{tuple(noise.shape)}, got {tuple(drawn.shape)} of {drawn.dtype}"
        )
    trained = {name: each for name, each in encoder.named_parameters() if each.requires_grad}
    _check_gradients(f"{_name(encoder)}.{call}", outputs, trained)
    return drawn


def _check_likelihood(networks: Networks, codes: Tensor, pixels: Tensor) -> None:
    model, theta = networks.model, networks.theta.leaves()
    pairs = codes[None].expand(networks.theta.particles, -1, -1, -1)
    with _calling(model, "log_likelihood", codes=pairs, pixels=pixels):
        found = model.log_likelihood(theta, pairs, pixels)
    name = f"{_name(model)}.log_likelihood"
    if tuple(found.shape) != tuple(pairs.shape[:3]):
        raise ValueError(
            f"{name} must return one number a decoder, image and code, (M, B, n) = "
            f"{tuple(pairs.shape[:3])}, got {tuple(found.shape)}"
        )
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} must be finite before training, got {found.flatten().tolist()}")
    if not callable(getattr(model, "pair_gradients", None)):
        _check_gradients(name, [found], theta)


def _check_mean_images(networks: Networks, codes: Tensor, features: int) -> None:
    model = networks.model
    with _calling(model, "mean_images", codes=codes):
        found = model.mean_images(networks.theta.leaves(), codes)
    if tuple(found.shape) != (len(codes), features):
        raise ValueError(
            f"{_name(model)}.mean_images must return (n, X) = {(len(codes), features)}, "
            f"got {tuple(found.shape)}"
        )


def _check_gradients(name: str, outputs: Sequence[Tensor], trained: Mapping[str, Tensor]) -> None:
    total = sum(each.sum() for each in outputs)
    if not isinstance(total, Tensor) or not total.requires_grad:
        raise ValueError(f"{name} must be differentiable, its result has no graph (detached?)")
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    unused = [part for part, each in zip(trained, gradients, strict=True) if each is None]
    if unused:
        raise ValueError(
            f"{name} does not depend on {', '.join(unused)}: use or remove them"
            + (", or freeze them by requires_grad_(False)" if not name.endswith("hood") else "")
        )


@contextmanager
def _calling(part: Any, method: str, **given: Tensor) -> Iterator[None]:
    try:
        yield
    except FAULTS as error:
        shapes = ", ".join(f"{name} {tuple(each.shape)}" for name, each in given.items())
        raise ValueError(
            f"{_name(part)}.{method} failed, given {shapes}: {type(error).__name__}: {error}"
        ) from error


def _name(part: Any) -> str:
    return type(part).__name__


def _shown(parameters: Sequence[Any]) -> str:
    return ", ".join(f"{each.name} {tuple(each.shape)}" for each in parameters)
