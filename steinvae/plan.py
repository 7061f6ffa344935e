"""`--plan`: what one update will cost, by arithmetic alone, before anything is allocated.

Units: bytes (float32 throughout), decoder passes (one code through one decoder, forward and
backward), floating-point operations (two for each multiply-add).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from steinvae.chunks import CODES_AT_ONCE
from steinvae.config import COUNTS, Config, ModelConfig
from steinvae.layered_recognition import CONTEXT
from steinvae.models.closed_form import NUMBERS_AT_ONCE
from steinvae.models.conv import KERNEL, BernoulliConv, coarsest
from steinvae.pairs import PAIRS_AT_ONCE
from steinvae.recognition.conv import NOISE_UNITS, kept_planes
from steinvae.weights import NUMBERS_AT_ONCE as JACOBIANS_AT_ONCE

PIXELS = {
    "digits": 64,
    "mnist": 784,
    "binarized_mnist": 784,
    "20news": 2000,
    "nyt": 10_000,
    "rcv1": 10_000,
}
"""X of every data set whose size is known without its files."""

WORDS_OF_A_DOCUMENT = {"20news": 65, "nyt": 121, "rcv1": 75}
"""T, different words of a training document, in the mean: what the work of deep_poisson goes with.
"""

BYTES = 4
_CODE_COPIES = 6  # noise, codes, their scores from the decoders and in all, direction, cotangent
_DRAWN_COPIES = 2  # noise and codes


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
    validation_passes: int | None
    """Decoder passes, forward alone, of one estimate on the validation images, where there are as
    many; None: on all of them."""

    flops: int
    """Of the decoder passes."""

    images_at_once: int
    """Images that are decoded together; a backward pass for each chunk of them."""

    decoding_bytes: int
    """Activations of one chunk and their gradient."""

    encoder_images_at_once: int
    """Images whose activations the encoder keeps; fewer than all are drawn a second time."""

    encoder_bytes: int
    """Activations of the encoder, kept until the directions are known."""

    density_bytes: int
    """Jacobians of one chunk of codes, for an exact log q in the weights."""

    code_bytes: int
    """One array of all codes."""

    decoder_bytes: int
    """One array of all decoders' parameters."""

    state_bytes: int
    """Decoders and encoder with Adam's moments and, without labels, the best copy: for the whole
    run."""

    @property
    def step_bytes(self) -> int:
        """The most that an update holds at once, beside the state: densities, decoding, or the
        scores and directions of decoders and codes.
        """
        density = self.density_bytes + _DRAWN_COPIES * self.code_bytes
        decoding = self.decoding_bytes + self.decoder_bytes + _DRAWN_COPIES * self.code_bytes
        moved = 2 * self.decoder_bytes + BYTES * self.encoder_parameters
        directions = moved + _CODE_COPIES * self.code_bytes
        return self.encoder_bytes + max(density, decoding, directions)

    @property
    def total_bytes(self) -> int:
        """What must fit at the same time, without the libraries (0.2 to 0.3 GB) and the data."""
        return self.state_bytes + self.step_bytes

    def _validation(self) -> str:
        if self.validation_passes is None:
            return "of all validation images, forward alone"
        return f"{self.validation_passes:,} at most, forward alone"

    def report(self) -> str:
        """As it is printed."""
        lines = [
            ("decoders", f"{self.decoders:,} of {self.decoder_parameters:,} parameters"),
            ("codes", f"{self.codes:,} for each of {self.images:,} images"),
            ("decoder passes a step", f"{self.decoder_passes:,} ({self.flops:.1e} FLOP)"),
            ("decoder passes a validation", self._validation()),
            ("images decoded at once", f"{self.images_at_once:,}"),
            ("memory: state of the run", _size(self.state_bytes)),
            ("memory: decoding", _size(self.decoding_bytes)),
            ("memory: scores, directions", _size(2 * self.decoder_bytes)),
            ("memory: encoder", _size(self.encoder_bytes)),
            ("memory: an update", _size(self.step_bytes)),
            ("memory: in all, about", _size(self.total_bytes)),
        ]
        return "\n".join(f"{name + ':':<32} {value}" for name, value in lines)


def state_copies(config: Config) -> int:
    """Parameters, both moments of Adam, and the best parameters so far where a run selects them."""
    return 3 if config.data.labelled else 4


def make_plan(config: Config) -> Plan:
    """The plan of one update; nothing is drawn, loaded or allocated."""
    model, method, settings = config.model, config.method, config.trainer
    if model.network == "residual":
        from steinvae.image_plan import make_image_plan  # which needs this module

        return make_image_plan(config)
    if config.data.name not in PIXELS:
        raise ValueError(f"--plan: data.name must be one of {sorted(PIXELS)}; others are not read")
    pixels, images = PIXELS[config.data.name], settings.batch_size
    kind = method.encoder_kind(model)
    shape = _decoder_shape(config, pixels)
    layers = _encoder_layers(kind, model, pixels)
    encoder = sum((fan_in + 1) * fan_out for fan_in, fan_out in layers)
    samples = method.codes_per_image
    pairs = samples
    if method.is_stein and method.pairing == "full":
        pairs *= method.theta_particles
    passes = images * pairs * (2 if method.move_codes else 1)
    if method.name == "supervised":  # by label decoders alone
        passes = 0
    at_once = min(images, max(1, PAIRS_AT_ONCE // (pairs * shape.of_pair)))
    tangents = method.name == "flow_elbo" and kind in ("flow", "residual")
    outputs = sum(fan_out for _, fan_out in layers)  # as `chunks.numbers_of_a_code` has it
    if model.network == "conv" and kind == "concat":
        outputs = _kept(kind, model, pixels, tangents)
    kept = samples * outputs * (1 + model.codes if tangents else 1)
    drawn_at_once = min(images, max(1, CODES_AT_ONCE // kept))
    of_image = _kept_of_image(kind, model, pixels, samples, tangents)
    exact = method.name == "stein_viwae" and method.log_q == "jac" and kind == "flow"
    parameters = method.decoders * shape.parameters + encoder
    validation = config.evaluation.validation_images * config.evaluation.validation_samples
    return Plan(
        decoders=method.decoders,
        decoder_parameters=shape.parameters,
        encoder_parameters=encoder,
        codes=samples,
        images=images,
        decoder_passes=passes,
        validation_passes=validation * method.decoders or None,
        flops=3 * 2 * passes * shape.products,
        images_at_once=at_once,
        decoding_bytes=BYTES * shape.activations(at_once, pairs) if passes else 0,
        encoder_images_at_once=drawn_at_once,
        encoder_bytes=BYTES * drawn_at_once * of_image,
        density_bytes=BYTES * _tangents(model, images * samples) if exact else 0,
        code_bytes=BYTES * images * samples * model.codes,
        decoder_bytes=BYTES * method.decoders * shape.parameters,
        state_bytes=BYTES * state_copies(config) * parameters,
    )


@dataclass(frozen=True)
class _DecoderShape:
    """What one decoder is and does."""

    parameters: int
    products: int
    """Multiply-adds of a forward pass of one code."""

    of_pair: int
    """Numbers that a pair holds until its chunk is done, as `pairs.numbers_of_a_pair` has it."""

    activations: Callable[[int, int], int]
    """Images of a chunk, and pairs of each -> numbers that decoding them holds."""


def _decoder_shape(config: Config, pixels: int) -> _DecoderShape:
    model, counts = config.model, config.data.name in COUNTS
    if config.decoder == "deep_poisson":
        words = WORDS_OF_A_DOCUMENT[config.data.name]
        between = sum(a * b for a, b in pairwise(model.layers))
        parameters = between + (model.layers[0] + 1) * pixels
        products = between + model.layers[0] * words

        def gammas(images: int, pairs: int) -> int:
            return _gammas(model, pixels, images, pairs, config.method.decoders, words)

        return _DecoderShape(parameters, products, pixels, gammas)
    if model.network == "conv":
        network = BernoulliConv(model.codes, tuple(reversed(model.hidden)), pixels)
        parameters = sum(prod(item.shape) for item in network.parameters)
        kept = network.kept_per_pair
        return _DecoderShape(
            parameters, network.products, kept, lambda images, pairs: images * pairs * kept
        )
    between = () if counts else tuple(reversed(model.hidden))
    widths = (model.codes, *between, pixels)
    parameters = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))
    products = sum(a * b for a, b in pairwise(widths))
    if counts:
        return _DecoderShape(parameters, products, pixels, lambda n, each: _graph(widths, n * each))
    at_once = NUMBERS_AT_ONCE["cuda" if config.trainer.device == "cuda" else "cpu"]
    return _DecoderShape(
        parameters, products, model.codes, lambda n, each: _closed_form(widths, n * each, at_once)
    )


def _graph(widths: Sequence[int], pairs: int) -> int:
    """Numbers that autograd keeps: inputs of layers and logits, then loss and gradient of those."""
    return pairs * (sum(widths[:-1]) + 3 * widths[-1])


def _gammas(
    model: ModelConfig, words: int, documents: int, pairs: int, decoders: int, own: int
) -> int:
    """Numbers of deep_poisson, the more of two moments: the quantiles of all weights of words, with
    what their cubics take; and the end of the forward pass, which has those weights, slopes and
    probabilities, of a pair its gammas layer by layer and the likelihood of the document's `own`
    words, and the topics' probabilities of those.
    """
    weights = decoders * model.layers[0] * words
    of_pairs = documents * pairs * (6 * model.codes + 3 * own)
    return max(14 * weights, 5 * weights + of_pairs + documents * own * model.layers[0])


def _closed_form(widths: Sequence[int], pairs: int, at_once: int) -> int:
    """Numbers of a pass in closed form, with blocks of `at_once`: a pair's gradient in its code, as
    it was dealt and as it is collected, with log-likelihood, weight and ratio; of a block the
    activations, a spare for the logits, and for every layer its weighted input and the gradient in
    it.
    """
    block = min(pairs, at_once // max(widths))
    return pairs * (2 * widths[0] + 3) + block * (3 * sum(widths) - widths[-1])


def _encoder_layers(kind: str, model: ModelConfig, pixels: int) -> list[tuple[int, int]]:
    """(in, out) of every layer; a convolution has its planes times 5 x 5 going in."""
    hidden, codes, last = model.hidden, model.codes, model.hidden[-1]
    width = _noise_units(model)
    if model.network == "conv":
        trunk = [(KERNEL**2 * planes, out) for planes, out in pairwise((1, *hidden))]
        last *= coarsest(pixels, len(hidden)) ** 2
        if kind == "concat":
            return [trunk[0], *trunk, (last, codes)]
    elif kind == "concat":
        return [(pixels, hidden[0]), (codes, hidden[0]), *pairwise((*hidden, codes))]
    else:
        trunk = list(pairwise((pixels, *hidden)))
    if kind == "layered":
        heads = [(last, 2 * width) for width in model.layers]
        above = [sum(model.layers[number:]) for number in range(1, len(model.layers))]
        widths = [(size, CONTEXT, 2 * own) for size, own in zip(above, model.layers, strict=False)]
        return [*trunk, *heads, *(layer for each in widths for layer in pairwise(each))]
    gaussian = [*trunk, (last, 2 * codes)]
    blocks = {"flow": model.flow_blocks, "residual": 1}.get(kind, 0)
    block = [(last, width), (codes, width), (width, width), (width, codes)]
    planar = [(last, model.planar_layers * (2 * codes + 1))] if kind == "planar" else []
    below = [(last, codes * (codes - 1) // 2)] if kind == "triangular" else []
    return [*gaussian, *blocks * block, *planar, *below]


def _noise_units(model: ModelConfig) -> int:
    return model.noise_hidden or (NOISE_UNITS if model.network == "conv" else model.hidden[-1])


def _kept_of_image(kind: str, model: ModelConfig, pixels: int, samples: int, tangents: bool) -> int:
    """Numbers that the way back through the encoder keeps for an image and its codes: of
    convolutions that run once an image the planes too, of others the planes of noise.
    """
    of_codes = samples * _kept(kind, model, pixels, tangents)
    if model.network == "mlp":
        return of_codes
    if kind == "concat":
        return of_codes + samples * pixels
    return of_codes + kept_planes(pixels, model.hidden)


def _kept(kind: str, model: ModelConfig, pixels: int, tangents: bool) -> int:
    """Numbers that the way back through the encoder keeps for every code."""
    codes = model.codes
    if kind == "concat":
        conv = model.network == "conv"
        return codes + (kept_planes(pixels, model.hidden) if conv else sum(model.hidden) + codes)
    if kind == "layered":
        return 3 * codes  # with mean and log sigma, which the codes above decide
    blocks = {"flow": model.flow_blocks, "residual": 1}.get(kind, 0)
    layers = model.planar_layers if kind == "planar" else 0
    width = _noise_units(model)
    own = codes + blocks * (2 * width + codes) + layers * (codes + 4)
    return own + codes * blocks * (4 * width + 6 * codes) if tangents else own


def _tangents(model: ModelConfig, codes: int) -> int:
    """Numbers of the largest chunk of Jacobians: a layer's tangents, its slope, and the next's."""
    last = _noise_units(model)
    at_once = max(1, JACOBIANS_AT_ONCE // (model.codes * max(last, model.codes)))
    return 3 * min(codes, at_once) * model.codes * last


def _size(count: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1000:.1f} kB"
