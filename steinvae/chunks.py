"""Minibatches whose encoder would keep too much for its backward pass, in chunks of images.

(Decoders have chunks of their own: `pairs`.) Results are those of the whole minibatch to rounding.

Shapes: B images, S codes an image, d code dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steinvae.config import MethodConfig
from steinvae.gradients import ROOTS, Batch, Gradients, Objective, encoder_gradients
from steinvae.networks import Networks
from steinvae.recognition import StochasticEncoder

CODES_AT_ONCE = 2**27
"""Numbers that an encoder keeps for its backward pass, 0.5 GB in float32, or one image's."""


def numbers_of_a_code(encoder: StochasticEncoder, *, jacobian: bool = False) -> int:
    """What a backward pass keeps for a code, at most: the outputs of all layers of the encoder, or
    what an encoder of convolutions says itself (`kept_per_code`).

    With a Jacobian there is a tangent of each for every noise dimension.
    """
    dense = sum(len(weight) for weight in encoder.parameters() if weight.ndim > 1)
    outputs: int = getattr(encoder, "kept_per_code", dense)
    return outputs * (1 + encoder.codes) if jacobian else outputs


def image_chunks(encoder: StochasticEncoder, images: int, numbers: int) -> list[slice]:
    """`chunks` of images, or one of all where an encoder has statistics of the whole minibatch
    (batch normalisation: those of a part are others)."""
    whole = getattr(encoder, "whole_minibatch", False)
    return [slice(0, images)] if whole else chunks(images, numbers)


def chunks(count: int, numbers: int) -> list[slice]:
    """Slices of `count` images (or codes) that keep `numbers` each: CODES_AT_ONCE together."""
    size = max(1, CODES_AT_ONCE // max(1, numbers))
    return [slice(start, start + size) for start in range(0, count, size)]


class Drawn:
    """The codes of a minibatch, and the way back from a direction of theirs to the encoder.

    Where one graph would keep more than CODES_AT_ONCE numbers, codes are drawn without any, and
    once more, chunk by chunk, on the way back.
    """

    def __init__(self, networks: Networks, batch: Batch) -> None:
        self._networks, self._batch = networks, batch
        one_image = batch.noise.shape[1] * numbers_of_a_code(networks.encoder)
        self._chunks = image_chunks(networks.encoder, len(batch.pixels), one_image)
        with torch.set_grad_enabled(len(self._chunks) == 1):
            parts = [self._draw(rows) for rows in self._chunks]
        self._graph = parts[0]
        self.codes = parts[0].detach() if len(parts) == 1 else torch.cat(parts)
        """(B, S, d), detached."""

    def _draw(self, rows: slice) -> Tensor:
        part = self._batch.images(rows)
        return self._networks.encoder.draw(part.shown, part.noise)

    def pull_back(self, direction: Tensor) -> list[Tensor]:
        """`encoder_gradients` of a direction (B, S, d)."""
        if len(self._chunks) == 1:
            return encoder_gradients(self._networks, self._graph, direction)
        total = [torch.zeros_like(parameter) for parameter in self._networks.eta()]
        for rows in self._chunks:
            share = len(direction[rows]) / len(direction)
            parts = encoder_gradients(self._networks, self._draw(rows), direction[rows])
            for own, part in zip(total, parts, strict=True):
                own.add_(part, alpha=share)
        return total


def in_chunks(objective: Objective) -> Objective:
    """An objective that is a mean over images, in as many passes as its encoder needs.

    Statistics are means too, or the roots of means.
    """

    def chunked(
        networks: Networks, batch: Batch, method: MethodConfig, data_size: int
    ) -> Gradients:
        # a determinant that is a product needs no tangents
        jacobian = method.name == "flow_elbo" and not networks.encoder.orientation_known
        one_code = numbers_of_a_code(networks.encoder, jacobian=jacobian)
        one_image = batch.noise.shape[1] * one_code
        slices = image_chunks(networks.encoder, len(batch.pixels), one_image)
        if len(slices) == 1:
            return objective(networks, batch, method, data_size)
        parts, shares = [], []
        for rows in slices:
            part = batch.images(rows)
            parts.append(objective(networks, part, method, data_size))
            shares.append(len(part.pixels) / len(batch.pixels))
        return _mean(parts, shares)

    return chunked


def _mean(parts: list[Gradients], shares: list[float]) -> Gradients:
    def mean(tensors: list[Tensor]) -> Tensor:
        return sum(
            (item * share for item, share in zip(tensors[1:], shares[1:], strict=True)),
            tensors[0] * shares[0],
        )

    stats = {name: mean([part.stats[name] for part in parts]) for name in parts[0].stats}
    for name in stats.keys() & ROOTS:
        stats[name] = mean([part.stats[name].square() for part in parts]).sqrt()
    return Gradients(
        theta=mean([part.theta for part in parts]),
        eta=[mean([part.eta[i] for part in parts]) for i in range(len(parts[0].eta))],
        stats=stats,
    )
