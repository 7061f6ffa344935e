"""The six launches on packed clouds as float64 formulas, pair by pair, with nothing padded.

Names as in the launches; clouds come as (B, D, count), vectors as (B, count). Rows are the first
index of every matrix of pairs, (B, rows, columns).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def differences(rows: Tensor, columns: Tensor) -> Tensor:
    """row_r - column_c, (B, D, rows, columns)."""
    return rows[..., :, None] - columns[..., None, :]


def squared(rows: Tensor, columns: Tensor) -> Tensor:
    return differences(rows, columns).square().sum(1)


def kernel(rows: Tensor, columns: Tensor, h: Tensor, same: bool) -> Tensor:
    """exp(-r2/h) of every pair, 0 at the pairs left out."""
    k = torch.exp(-squared(rows, columns) / h[:, None, None])
    if same:
        k.diagonal(0, 1, 2).zero_()
    return k


def inner(rows: Tensor, columns: Tensor) -> Tensor:
    """a_r . b_c, (B, rows, columns)."""
    return rows.mT @ columns


def pull(pairs: Tensor, columns: Tensor) -> Tensor:
    """sum_c s_rc b_c, (B, D, rows)."""
    return columns @ pairs.mT


def direction(
    y: Tensor, x: Tensor, u: Tensor, w: Tensor, h: Tensor, same: bool, direct: bool
) -> tuple[Tensor, Tensor]:
    """The field (B, D, N) and the mass (B, N)."""
    k = kernel(y, x, h, same) * w[:, None, :]
    field = pull(k, u)
    if direct:
        c = (2 / h)[:, None, None]
        field = field + c * (differences(y, x) * k[:, None]).sum(-1)
    return field, k.sum(-1)


class Side(NamedTuple):
    """Everything that a particle can carry in a backward."""

    x: Tensor
    drive: Tensor  # u, or the score g
    cotangent: Tensor  # v: (B, D, n) of the direction, (B, n) of the divergence
    scalar: Tensor  # shift = y . v of targets, or along = g . x of sources
    weight: Tensor


def direction_backward(
    row: Side, column: Side, h: Tensor, same: bool, as_source: bool, as_target: bool
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The slots of ``out`` and of ``scalars`` that the roles write."""
    k = kernel(row.x, column.x, h, same)
    c = (2 / h)[:, None, None]
    pairs, out, scalars = torch.zeros_like(k), {}, {}
    if as_target:
        a = inner(row.cotangent, column.drive) + c * row.scalar[:, :, None]
        weighted = k * column.weight[:, None, :]
        pairs = pairs + weighted * a
        scalars[1] = weighted.sum(-1)
    if as_source:
        a = inner(row.drive, column.cotangent) + c * column.scalar[:, None, :]
        pairs = pairs + row.weight[:, :, None] * k * a
        scalars[2] = (k * a).sum(-1)
        out[1] = pull(k, column.cotangent)
    return {0: pull(pairs, column.x), **out}, {0: pairs.sum(-1), **scalars}


def _trace(r2: Tensor, e: Tensor, h: Tensor, features: int) -> Tensor:
    c = (2 / h)[:, None, None]
    return c * features - c.square() * r2 - c * e


def divergence(
    y: Tensor, x: Tensor, g: Tensor, along: Tensor, w: Tensor, h: Tensor, same: bool
) -> Tensor:
    e = inner(y, g) - along[:, None, :]
    trace = _trace(squared(y, x), e, h, y.shape[1])
    return (kernel(y, x, h, same) * w[:, None, :] * trace).sum(-1)


def divergence_backward(
    row: Side, column: Side, h: Tensor, same: bool, as_source: bool, as_target: bool
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The slots of ``out`` and of ``scalars`` that the roles write."""
    k, r2 = kernel(row.x, column.x, h, same), squared(row.x, column.x)
    c, width = (2 / h)[:, None, None], h[:, None, None]
    radial, out, scalars = torch.zeros_like(k), {}, {}
    if as_target:
        t = _trace(r2, inner(row.x, column.drive) - column.scalar[:, None, :], h, row.x.shape[1])
        q = column.weight[:, None, :] * k * row.cotangent[:, :, None]
        radial = radial - 2 * q * (t / width + c.square())
        out[1] = pull(q, column.drive)
    if as_source:
        t = _trace(r2, inner(row.drive, column.x) - row.scalar[:, :, None], h, row.x.shape[1])
        q = row.weight[:, :, None] * k * column.cotangent[:, None, :]
        radial = radial - 2 * q * (t / width + c.square())
        out[2] = pull(q, column.x)
        scalars[1], scalars[2] = q.sum(-1), (k * column.cotangent[:, None, :] * t).sum(-1)
    return {0: pull(radial, column.x), **out}, {0: radial.sum(-1), **scalars}


def gram(x: Tensor, y: Tensor, h: Tensor) -> Tensor:
    return kernel(x, y, h, same=False)


def gram_backward(row: Tensor, column: Tensor, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    pairs = kernel(row, column, h, same=False) * v
    return pull(pairs, column), pairs.sum(-1)


# --- packed problems -----------------------------------------------------------------------------


def packed(value: Tensor, dtype: torch.dtype, spare: int = 0) -> Tensor:
    """(..., count) of float64 in the least leading dimension and ``spare`` times 128 more."""
    count = value.shape[-1]
    out = value.new_zeros(*value.shape[:-1], 128 * (-(-count // 128) + spare), dtype=dtype)
    out[..., :count] = value
    return out


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """What the kernel is given, in float64: the formulas must not see more digits than it does."""
    return value.to(dtype).double()


def side(
    generator: torch.Generator, shape: tuple[int, int, int], dtype: torch.dtype, v: int
) -> Side:
    """Random particles (B, D, count); ``v`` is 3 for cotangents (B, D, count), 2 for (B, count)."""
    b, _, count = shape

    def draw(*size: int) -> Tensor:
        return rounded(torch.randn(size, generator=generator, dtype=torch.float64), dtype)

    weight = rounded(torch.rand(b, count, generator=generator, dtype=torch.float64), dtype)
    cotangent = draw(*shape) if v == 3 else draw(b, count)
    return Side(draw(*shape), draw(*shape), cotangent, draw(b, count), weight)


def bandwidth(batch: int, features: int, dtype: torch.dtype) -> Tensor:
    """Bandwidths (B,) at which kernel values spread over (0, 1), each set its own."""
    return rounded((1.0 + 0.5 * torch.arange(batch, dtype=torch.float64)) * features, dtype)


def splits_of(value: Tensor, count: int) -> Tensor:
    """The sum over splits in float64, without what is beyond the count."""
    return value.double().sum(0)[..., :count]


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Within 2e-6 of the largest value in float32, 1e-14 in float64; NaN is never within."""
    limit = 2e-6 if dtype == torch.float32 else 1e-14
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= limit, f"relative error {error:.2e} > {limit:.0e}"


def assert_slots(
    actual: Tensor, expected: dict[int, Tensor], count: int, dtype: torch.dtype
) -> None:
    """Slots of (S, slots, B, ..., ld), summed over splits; the others must be as they were, NaN."""
    for slot in range(actual.shape[1]):
        if slot in expected:
            assert_close(splits_of(actual[:, slot], count), expected[slot], dtype)
        else:
            assert actual[:, slot].isnan().all()
