"""Packed clouds for the tests of single launches, and the pairs' formulas in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def width(count: int) -> int:
    return -(-count // 128) * 128


def pack(values: Tensor) -> Tensor:
    """(B, count, d) -> (B, d, ld), or (B, count) -> (B, ld), zero beyond the count."""
    if values.dim() == 2:
        return pack(values[..., None])[:, 0].contiguous()
    packed = values.new_zeros(values.shape[0], values.shape[2], width(values.shape[1]))
    packed[..., : values.shape[1]] = values.mT
    return packed


def unpack(packed: Tensor, count: int) -> Tensor:
    """The sum over splits (S, ..., ld) -> (..., count) in float64."""
    return packed[..., :count].double().sum(0)


def poisoned(like: Tensor, *shape: int) -> Tensor:
    return like.new_full(shape, float("nan"))


class Pairs(NamedTuple):
    """Rows and columns of one launch, float64: k (B, rows, columns) with the diagonal left out."""

    r2: Tensor
    k: Tensor
    c: Tensor  # 2/h, (B, 1, 1)
    h: Tensor  # (B, 1, 1)


def pairs(rows: Tensor, columns: Tensor, h: Tensor, same: bool) -> Pairs:
    rows, columns, h = rows.double(), columns.double(), h.double()[:, None, None]
    r2 = (rows[:, :, None] - columns[:, None]).square().sum(-1)
    k = (-r2 / h).exp()
    if same:
        k = k * (1 - torch.eye(k.shape[1], dtype=k.dtype))
    return Pairs(r2, k, 2 / h, h)


def sum_columns(coefficients: Tensor, features: Tensor) -> Tensor:
    """sum_c coefficients[r, c] features[c, f] as (B, f, rows): the layout of packed outputs."""
    return (coefficients @ features.double()).mT


def check(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """The largest error, as a share of the largest value of each slot."""
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    scale = expected.abs().max().clamp_min(1e-30)
    assert (actual - expected).abs().max() <= tolerance * scale
