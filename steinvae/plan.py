"""`--plan`: what one update will cost, by arithmetic alone, before anything is allocated.

Units: bytes (float32 throughout), decoder passes (one code through one decoder, forward and
backward), floating-point operations (two for each multiply-add).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from steinvae.config import COUNTS, Config, ModelConfig
from steinvae.models.closed_form import NUMBERS_AT_ONCE
from steinvae.pairs import PAIRS_AT_ONCE

PIXELS = {
    "digits": 64,
    "mnist": 784,
    "binarized_mnist": 784,
    "20news": 2000,
    "nyt": 10_000,
    "rcv1": 10_000,
}
"""X of every data set whose size is known without its files."""

_FLOAT = 4
_STATE_COPIES = 4  # parameters, both moments of Adam, and the best parameters so far
_UPDATE_COPIES = 2  # score and direction
_CODE_COPIES = 6  # noise, codes, their scores from the decoders and in all, direction, cotangent


@dataclass(frozen=True)
class Plan:
    """One update of a configuration."""

    decoders: int
    decoder_parameters: int
    """P, of one decoder."""

    encoder_parameters: int
    codes: int
    """S, codes an image."""

    images: int
    decoder_passes: int
    validation_passes: int
    """Decoder passes, forward alone, of one estimate on the validation images."""

    flops: int
    """Of the decoder passes."""

    images_at_once: int
    """Images that are decoded together; a backward pass for each chunk of them."""

    decoding_bytes: int
    """Activations of one chunk and their gradient."""

    code_bytes: int
    encoder_bytes: int
    """Activations of the encoder, kept until the directions are known."""

    state_bytes: int
    """Decoders and encoder with Adam's moments and the best copy, for the whole run."""

    update_bytes: int
    """Score and direction of all parameters, within an update."""

    @property
    def total_bytes(self) -> int:
        """What must fit at the same time."""
        passing = self.decoding_bytes + self.code_bytes + self.encoder_bytes
        return self.state_bytes + self.update_bytes + passing

    def report(self) -> str:
        """As it is printed."""
        lines = [
            ("decoders", f"{self.decoders:,} of {self.decoder_parameters:,} parameters"),
            ("codes", f"{self.codes:,} for each of {self.images:,} images"),
            ("decoder passes a step", f"{self.decoder_passes:,} ({self.flops:.1e} FLOP)"),
            ("decoder passes a validation", f"{self.validation_passes:,}, forward alone"),
            ("images decoded at once", f"{self.images_at_once:,}"),
            ("memory: parameters, Adam, best", _size(self.state_bytes)),
            ("memory: score and direction", _size(self.update_bytes)),
            ("memory: decoding", _size(self.decoding_bytes)),
            ("memory: encoder", _size(self.encoder_bytes)),
            ("memory: codes", _size(self.code_bytes)),
            ("memory: in all, about", _size(self.total_bytes)),
        ]
        return "\n".join(f"{name + ':':<32} {value}" for name, value in lines)


def make_plan(config: Config) -> Plan:
    """The plan of one update; nothing is drawn, loaded or allocated."""
    model, method, settings = config.model, config.method, config.trainer
    if config.data.name not in PIXELS:
        raise ValueError(f"--plan: data.name must be one of {sorted(PIXELS)}; others are not read")
    pixels, images = PIXELS[config.data.name], settings.batch_size
    kind = method.encoder_kind(model)
    between = () if config.data.name in COUNTS else tuple(reversed(model.hidden))
    widths = (model.codes, *between, pixels)
    decoder, encoder = _dense(widths), _encoder_parameters(kind, model, pixels)
    every = method.is_stein and method.pairing == "full"
    pairs = method.codes_per_image * (method.theta_particles if every else 1)
    closed = config.data.name not in COUNTS
    at_once = min(images, max(1, PAIRS_AT_ONCE // (pairs * (model.codes if closed else pixels))))
    parameters = method.decoders * decoder + encoder
    a_code = sum(_widths_of_a_code(kind, model))
    validation = config.evaluation.validation_images * config.evaluation.validation_samples
    return Plan(
        decoders=method.decoders,
        decoder_parameters=decoder,
        encoder_parameters=encoder,
        codes=method.codes_per_image,
        images=images,
        decoder_passes=images * pairs,
        validation_passes=validation * method.decoders,
        flops=3 * 2 * images * pairs * sum(a * b for a, b in pairwise(widths)),
        images_at_once=at_once,
        decoding_bytes=_FLOAT * (_closed_form if closed else _graph)(widths, at_once * pairs),
        code_bytes=_FLOAT * _CODE_COPIES * images * method.codes_per_image * model.codes,
        encoder_bytes=_FLOAT * images * method.codes_per_image * a_code,
        state_bytes=_FLOAT * _STATE_COPIES * parameters,
        update_bytes=_FLOAT * _UPDATE_COPIES * parameters,
    )


def _graph(widths: Sequence[int], pairs: int) -> int:
    """Numbers that autograd keeps: inputs of layers and logits, then loss and gradient of those."""
    return pairs * (sum(widths[:-1]) + 3 * widths[-1])


def _closed_form(widths: Sequence[int], pairs: int) -> int:
    """Numbers of a pass in closed form: a pair's gradient in its code (dealt, and collected again),
    log-likelihood, weight and ratio; a block's activations, a spare for the logits, and
    for every layer its input with weights and the gradient in it.
    """
    block = min(pairs, NUMBERS_AT_ONCE["cpu"] // max(widths))
    return pairs * (3 * widths[0] + 3) + block * (3 * sum(widths) - widths[-1])


def _dense(widths: Sequence[int]) -> int:
    """Weights and biases of a fully connected network."""
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))


def _encoder_parameters(kind: str, model: ModelConfig, pixels: int) -> int:
    hidden, codes, last = model.hidden, model.codes, model.hidden[-1]
    if kind == "concat":
        first = _dense((pixels, hidden[0])) + _dense((codes, hidden[0]))
        return first + _dense((*hidden, codes))
    gaussian = _dense((pixels, *hidden)) + _dense((last, 2 * codes))
    block = _dense((last, last)) + _dense((codes, last)) + _dense((last, last, codes))
    blocks = {"flow": model.flow_blocks, "residual": 1}.get(kind, 0)
    planar = _dense((last, model.planar_layers * (2 * codes + 1))) if kind == "planar" else 0
    return gaussian + blocks * block + planar


def _widths_of_a_code(kind: str, model: ModelConfig) -> list[int]:
    """Numbers that the backward pass through the encoder keeps for every code."""
    last, codes = model.hidden[-1], model.codes
    if kind == "concat":
        return [codes, *model.hidden, codes]
    blocks = {"flow": model.flow_blocks, "residual": 1}.get(kind, 0)
    layers = model.planar_layers if kind == "planar" else 0
    return [2 * codes, blocks * (2 * last + 2 * codes), layers * (2 * codes + 2)]


def _size(count: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1000:.1f} kB"
