"""Class probabilities, averaged over label decoders and codes, and how good they are.

    p(y | x) = (1/K) sum_k (1/S) sum_s p(y | f(x, xi_s), theta~_k)

Shapes: B images of X pixels, K label decoders, S codes an image, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steinvae.data import Examples
from steinvae.density.likelihood import image_noise, noise_dimension
from steinvae.device import at_once
from steinvae.networks import Networks

BINS = 15
"""Bins of confidence in the calibration error (Guo et al. 2017)."""

Images = Tensor | Examples
"""(B, X), or a split, whose images are read as they are needed."""

_ROWS_AT_ONCE, _NUMBERS_AT_ONCE = 2**14, 2**23
"""Codes that are classified together, and numbers of their images and noise: 32 MB."""


@dataclass(frozen=True)
class LabelQuality:
    """How good class probabilities are, over a set of images."""

    error: float
    """Fraction of images whose most probable class is wrong."""

    error_stderr: float
    """Binomial standard error of `error`."""

    nll: float
    """Mean of -log p(y | x), nats an image."""

    ece: float
    """Expected calibration error: mean over images of |accuracy - confidence| of the image's bin,
    15 bins of the highest probability of equal width."""

    images: int


@torch.no_grad()
def member_probabilities(
    networks: Networks, images: Images, *, seed: int, samples: int
) -> Float[Tensor, "K B C"]:
    """p_k(y | x) = (1/S) sum_s p(y | f(x, xi_s), theta~_k), of every label decoder, on the CPU.

    The noise of image b depends on (seed, b) alone.
    """
    model = networks.labels
    if model is None:
        raise ValueError("class_probabilities: the networks have no model of labels")
    parts = [
        model.log_probabilities(codes).exp().mean(2).cpu()
        for codes in _drawn(networks, images, seed, samples)
    ]
    return torch.cat(parts, dim=1)


def class_probabilities(
    networks: Networks, images: Images, *, seed: int, samples: int
) -> Float[Tensor, "B C"]:
    """p(y | x), averaged over label decoders and S codes: rows sum to 1."""
    return member_probabilities(networks, images, seed=seed, samples=samples).mean(0)


def scores(probabilities: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> LabelQuality:
    """Error, NLL and calibration error of class probabilities.

    A probability that float32 rounds to 0 counts as its smallest normal number, 87 nats.
    """
    confidence, predicted = probabilities.max(-1)
    right = predicted == labels
    images = len(labels)
    error = 1 - right.double().mean().item()
    tiny = torch.finfo(probabilities.dtype).tiny
    of_label = probabilities.gather(1, labels[:, None]).clamp_min(tiny)
    return LabelQuality(
        error=error,
        error_stderr=(error * (1 - error) / images) ** 0.5,
        nll=-of_label.log().double().mean().item(),
        ece=calibration_error(confidence, right),
        images=images,
    )


def calibration_error(confidence: Float[Tensor, " B"], right: Tensor, bins: int = BINS) -> float:
    """sum over bins of (images in it / B) |accuracy - mean confidence|; Guo et al. 2017, eq. 3.

    Bins are ((i - 1)/bins, i/bins]. Shapes: confidence (B,) in (0, 1], right (B,) bool.
    """
    index = (confidence.double() * bins).ceil().clamp(1, bins).long() - 1
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, index, right.double() - confidence.double())
    return gap.abs().sum().item() / len(confidence)


def fit_temperature(probabilities: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> float:
    """T that minimises the NLL of p^(1/T), normalised: temperature scaling (Guo et al. 2017).

    The NLL is convex in 1/T; bisection of its derivative between T = e^-5 and e^5.
    """
    log_p = probabilities.double().clamp_min(torch.finfo(probabilities.dtype).tiny).log()
    of_label = log_p.gather(1, labels[:, None]).mean().item()
    low, high = -5.0, 5.0
    for _ in range(50):
        middle = (low + high) / 2
        tempered = (log_p * exp(middle)).softmax(1)
        flatter = (tempered * log_p).sum(1).mean().item() > of_label
        low, high = (low, middle) if flatter else (middle, high)
    return exp(-(low + high) / 2)


def temper(probabilities: Float[Tensor, "B C"], temperature: float) -> Float[Tensor, "B C"]:
    """p^(1/T), normalised; the order of classes stays."""
    log_p = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
    return (log_p / temperature).softmax(1)


@torch.no_grad()
def mean_codes(
    networks: Networks, images: Images, *, seed: int, samples: int
) -> Float[Tensor, "B d"]:
    """Mean over S codes of every image, on the CPU."""
    return torch.cat([codes.mean(1).cpu() for codes in _drawn(networks, images, seed, samples)])


def _drawn(networks: Networks, images: Images, seed: int, samples: int) -> Iterator[Tensor]:
    """Codes (b, S, d) of as many images at a time as memory allows; noise by (seed, image)."""
    wide = noise_dimension(networks.encoder)
    width = images.shape[1] if isinstance(images, Tensor) else images.features
    numbers = at_once(_NUMBERS_AT_ONCE, networks.device)
    codes = min(at_once(_ROWS_AT_ONCE, networks.device), numbers // (width + wide))
    for rows in torch.arange(len(images)).split(max(1, codes // samples)):
        pixels = images[rows] if isinstance(images, Tensor) else images.batch(rows)
        noise = image_noise(seed, rows.tolist(), (samples, wide), networks.device, "classes")
        yield networks.encoder(pixels.to(networks.device), noise)


def nearest_neighbour_error(
    codes: Float[Tensor, "B d"],
    labels: Int[Tensor, " B"],
    known: Float[Tensor, "n d"],
    known_labels: Int[Tensor, " n"],
) -> float:
    """Fraction of images whose nearest labelled image in code space is of another class."""
    nearest = torch.cdist(codes, known).argmin(1)
    return (known_labels[nearest] != labels).double().mean().item()
