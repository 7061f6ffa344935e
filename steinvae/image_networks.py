"""The networks of images: the decoder and the encoder that `model` asks for."""

from __future__ import annotations

import torch

from steinvae.config import ModelConfig
from steinvae.models import GenerativeModel
from steinvae.models.conv import BernoulliConv
from steinvae.models.mlp import ACTIVATIONS, BernoulliMlp, TanhMlp
from steinvae.models.residual import GaussianResidual
from steinvae.recognition import ConcatEncoder, GaussianEncoder, StochasticEncoder, make_encoder
from steinvae.recognition.conv import ConvPlaneEncoder, make_conv_encoder
from steinvae.recognition.planes import PLANES_ENCODERS, NoisePlaneEncoder


def make_image_model(shape: ModelConfig, pixels: int) -> GenerativeModel:
    """p(x | z, theta) with Bernoulli pixels; the decoder mirrors the encoder's hidden layers."""
    mirrored = tuple(reversed(shape.hidden))
    if shape.network == "conv":
        return BernoulliConv(shape.codes, mirrored, pixels)
    return BernoulliMlp(shape.codes, mirrored, pixels, shape.activation)


def make_image_encoder(
    kind: str, shape: ModelConfig, pixels: int, generator: torch.Generator
) -> StochasticEncoder:
    """The encoder called `kind`, with the widths, the activation and the scale of `shape`."""
    make = make_conv_encoder if shape.network == "conv" else make_encoder
    depth = shape.planar_layers if kind == "planar" else shape.flow_blocks
    encoder = make(
        *(kind, pixels, shape.hidden, shape.codes, generator, depth),
        noise_hidden=shape.noise_hidden,
    )
    if isinstance(encoder, ConcatEncoder | ConvPlaneEncoder):
        encoder.scale = shape.output_scale
    if isinstance(encoder, GaussianEncoder) and isinstance(encoder.trunk, TanhMlp):
        encoder.activation = encoder.trunk.activation = ACTIVATIONS[shape.activation]
    return encoder


STACK = 3
"""Default of model.stack, as printed."""


def make_colour_model(shape: ModelConfig, pixels: int) -> GenerativeModel:
    """p(x | z, theta) of colour images; the decoder mirrors the encoder's stages."""
    stack = STACK if shape.stack is None else shape.stack
    return GaussianResidual(shape.codes, shape.hidden, pixels, stack)


def make_colour_encoder(
    kind: str, shape: ModelConfig, pixels: int, generator: torch.Generator
) -> StochasticEncoder:
    """The encoder called `kind` of colour images."""
    stack = STACK if shape.stack is None else shape.stack
    encoder = PLANES_ENCODERS[kind](pixels, shape.hidden, shape.codes, generator, stack)
    if isinstance(encoder, NoisePlaneEncoder):
        encoder.scale = shape.output_scale
    return encoder
