"""Jacobians of tanh networks in one forward pass."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steinvae.models.mlp import TanhMlp


def through(
    network: TanhMlp, mixed: Float[Tensor, "B S H"], first: Float[Tensor, "H d"]
) -> tuple[Tensor, Tensor]:
    """network(tanh(mixed)) and its transposed Jacobian in xi, where d mixed / d xi = `first`.

    Tangents are rows (B, S, d, width): every layer is one matrix product over all of them.
    """
    value = mixed.tanh()
    tangents = (1 - value.square())[..., None, :] * first.T
    for layer in network.hidden:
        value = layer(value).tanh()
        slope = (1 - value.square())[..., None, :]
        tangents = slope * F.linear(tangents, layer.weight)  # type: ignore[arg-type]
    return network.last(value), F.linear(tangents, network.last.weight)
