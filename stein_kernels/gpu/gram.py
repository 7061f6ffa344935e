"""The Gram matrix and its backward on packed clouds, d up to 128."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stein_kernels.gpu.packing import mean, pack, splits, unpack
from stein_kernels.gpu.pairs import total


def forward(kernels: Any, x: Tensor, y: Tensor | None, bandwidth: Tensor) -> Tensor:
    """k(x_i, y_j), (B, M, N), in the dtype of x; distances are of the coordinates as given."""
    sources = pack(x)
    targets = sources if y is None else pack(y)
    out = x.new_empty(x.shape[0], x.shape[1], (x if y is None else y).shape[1])
    kernels.gram(sources, targets, bandwidth, out, y is None)
    return out


def backward(
    kernels: Any, v: Tensor, x: Tensor, y: Tensor | None, bandwidth: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """With b = k v: dx_i = c sum_j b_ij (y_j - x_i), and 2 h dh = -x.dx - y.dy.

    Of a set with itself both roles of a particle are one: b = k (v + v^T), and the pair (i, i),
    whose k = 1 would leave the rounding of x_i - x_i, is none.
    """
    centre = mean(x)
    sources = pack(x, centre)
    targets = sources if y is None else pack(y, centre)
    v = v.to(sources.dtype)
    counts = x.shape[1], (x if y is None else y).shape[1]
    if y is None:
        v = v + v.mT
        v.diagonal(0, 1, 2).zero_()
    dx = _pull(kernels, sources, targets, v, bandwidth, *counts, precision)
    scaling, dy = (sources[..., : counts[0]] * dx).sum((1, 2)), x.new_empty(0)
    if y is not None:
        pull = _pull(kernels, targets, sources, v.mT, bandwidth, counts[1], counts[0], precision)
        scaling, dy = scaling + (targets[..., : counts[1]] * pull).sum((1, 2)), unpack(pull, y)
    return unpack(dx, x), dy, (-scaling / (2 * bandwidth)).to(bandwidth.dtype)


def _pull(
    kernels: Any,
    rows: Tensor,
    columns: Tensor,
    v: Tensor,
    bandwidth: Tensor,
    row_count: int,
    column_count: int,
    precision: str,
) -> Tensor:
    """c sum_c k_rc v_rc (x_c - x_r) of every row, (B, d, rows)."""
    b, d, ld = rows.shape
    s = splits(b, row_count, column_count)
    out, sums = rows.new_empty(s, b, d, ld), rows.new_empty(s, b, ld)
    kernels.gram_backward(
        rows, columns, v, bandwidth, out, sums, row_count, column_count, precision
    )
    rows, sums = rows[..., :row_count], total(sums, row_count)[:, None]
    return (2 / bandwidth)[:, None, None] * (total(out, row_count) - rows * sums)
