"""Decoders by name: the generative model each stands for, and the encoder that goes with it.

A decoder of one's own is an entry in `FAMILIES`, with its name in `config.model.Decoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from steinvae.config import Decoder, ModelConfig
from steinvae.count_recognition import make_count_encoder
from steinvae.image_networks import (
    make_colour_encoder,
    make_colour_model,
    make_image_encoder,
    make_image_model,
)
from steinvae.layered_recognition import LayeredCountEncoder
from steinvae.models import GenerativeModel
from steinvae.models.deep_poisson import DeepPoisson
from steinvae.models.softmax_counts import SoftmaxCounts
from steinvae.recognition import GaussianEncoder, StochasticEncoder


@dataclass(frozen=True)
class Family:
    """How the networks of a decoder are made."""

    model: Callable[[ModelConfig, int], GenerativeModel]
    """From the settings and X, the numbers in an example."""

    encoder: Callable[[str, ModelConfig, int, torch.Generator], StochasticEncoder]
    """From the kind, the settings, X and the stream of its initial weights."""


def _of_counts(
    kind: str, shape: ModelConfig, words: int, generator: torch.Generator
) -> StochasticEncoder:
    depth = shape.planar_layers if kind == "planar" else shape.flow_blocks
    return make_count_encoder(kind, words, shape.hidden, shape.codes, generator, depth)


def _of_layers(
    kind: str, shape: ModelConfig, words: int, generator: torch.Generator
) -> StochasticEncoder:
    if kind == "layered":
        return LayeredCountEncoder(words, shape.hidden, shape.layers, generator)
    encoder = _of_counts(kind, shape, words, generator)
    if isinstance(encoder, GaussianEncoder):
        encoder.start_at_prior()
    return encoder


FAMILIES: dict[Decoder, Family] = {
    "bernoulli": Family(make_image_model, make_image_encoder),
    "gaussian": Family(make_colour_model, make_colour_encoder),
    "softmax": Family(lambda shape, words: SoftmaxCounts(shape.codes, words), _of_counts),
    "deep_poisson": Family(
        lambda shape, words: DeepPoisson(shape.layers, words, shape.gamma_shapes), _of_layers
    ),
}
