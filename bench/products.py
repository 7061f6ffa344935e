"""The matrix products of a training step and nothing else: what no arrangement of it goes below.

Every layer takes three products, forward, to its weights and to its input, on the shapes of the
step; operands lie ready and results go into buffers. The first layer of an encoder needs no way
back to its input. Float32: fewer operations need fewer products.

Shapes: M decoders, B images, S codes an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from steinvae.networks import Networks

ROWS_AT_ONCE = 1024


class Layer(NamedTuple):
    batch: int
    rows: int
    fan_in: int
    fan_out: int
    back: bool
    """Whether the gradient in its input is wanted."""


def layers_of(networks: Networks, images: int, samples: int, seen: int) -> list[Layer]:
    """Those of the decoders, each of which sees `seen` codes of an image, and of the encoder."""
    found = []
    for name, weight in networks.theta.views(networks.theta.flat).items():
        if name.startswith("weight"):
            decoders, fan_in, fan_out = weight.shape
            found.append(Layer(decoders, images * seen, fan_in, fan_out, back=True))
    for name, module in networks.encoder.named_modules():
        if isinstance(module, nn.Linear):
            of_codes = "from_noise" in name or "rest" in name
            rows = images * (samples if of_codes else 1)
            back = "from_noise" not in name and module.in_features != _pixels(networks)
            found.append(Layer(1, rows, module.in_features, module.out_features, back))
    return found


def _pixels(networks: Networks) -> int:
    return networks.theta.parameters[-1].shape[-1]


def make_products(networks: Networks, images: int, samples: int, seen: int) -> Callable[[], None]:
    """One call makes them all."""
    ready = [_operands(layer) for layer in layers_of(networks, images, samples, seen)]

    def products() -> None:
        for layer, (x, weight, y, of_weight, of_x) in ready:
            for start in range(0, layer.rows, ROWS_AT_ONCE):
                rows = slice(0, min(ROWS_AT_ONCE, layer.rows - start))
                torch.bmm(x[:, rows], weight, out=y[:, rows])
                torch.bmm(x[:, rows].mT, y[:, rows], out=of_weight)
                if layer.back:
                    torch.bmm(y[:, rows], weight.mT, out=of_x[:, rows])

    return products


def _operands(layer: Layer) -> tuple[Layer, tuple[Tensor, ...]]:
    rows = min(ROWS_AT_ONCE, layer.rows)
    x = torch.randn(layer.batch, rows, layer.fan_in)
    weight = torch.randn(layer.batch, layer.fan_in, layer.fan_out) / layer.fan_in**0.5
    y = torch.empty(layer.batch, rows, layer.fan_out)
    return layer, (x, weight, y, torch.empty_like(weight), torch.empty_like(x))
