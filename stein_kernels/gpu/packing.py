"""Packed clouds: how the flows of this package hand particles to the kernels of either backend.

A cloud is (B, d, ld) in the accumulation dtype: feature-major, ld a multiple of ``PAD`` and zero
beyond the last particle. So every tile load is aligned, contiguous and without a mask, and a padded
source, whose weight is zero too, adds nothing. What is summed by products is centred; differences
are of the coordinates as given, so that far-off particles cost the others no digit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stein_kernels._checks import accumulation_dtype

PAD = 128  # particles; the widest tile of any kernel
TILE = 64  # particles of the tiles that the splits are counted in
PROGRAMS = 264  # programs that fill 132 multiprocessors twice; a constant keeps the bits the same


def padded(count: int) -> int:
    return max(1, -(-count // PAD)) * PAD


def pack(rows: Tensor, centre: Tensor | None = None) -> Tensor:
    """(B, M, d) of any strides and dtype to a cloud (B, d, ld), less ``centre`` (B, 1, d)."""
    b, m, d = rows.shape
    cloud = rows.new_zeros(b, d, padded(m), dtype=accumulation_dtype(rows.dtype))
    columns = cloud[:, :, :m]
    if centre is None:
        columns.copy_(rows.mT)
    else:
        torch.sub(rows.to(cloud.dtype).mT, centre.mT, out=columns)
    return cloud


def pack_vector(values: Tensor) -> Tensor:
    """(B, M) to (B, ld)."""
    b, m = values.shape
    packed = values.new_zeros(b, padded(m), dtype=accumulation_dtype(values.dtype))
    packed[:, :m] = values
    return packed


def unpack(cloud: Tensor, like: Tensor) -> Tensor:
    """Columns (B, d, M) to contiguous rows of the shape and dtype of ``like`` (B, M, d)."""
    out = torch.empty_like(like, memory_format=torch.contiguous_format)
    return out.copy_(cloud.mT)


def mean(rows: Tensor) -> Tensor:
    """The centre of the particles, (B, 1, d), in the accumulation dtype, whatever the strides."""
    return rows.contiguous().mean(1, keepdim=True, dtype=accumulation_dtype(rows.dtype))


def source_weights(x: Tensor, weights: Tensor | None, leave_one_out: bool) -> Tensor:
    """w_i as a packed vector; 1/M, or 1/(M - 1) with leave-one-out, where none are given."""
    if weights is not None:
        return pack_vector(weights)
    b, m, _ = x.shape
    packed = x.new_zeros(b, padded(m), dtype=accumulation_dtype(x.dtype))
    packed[:, :m] = 1.0 / max(1, m - leave_one_out)
    return packed


def splits(batch: int, rows: int, columns: int) -> int:
    """How many programs share the columns of one row tile, so that few rows fill a device too."""
    row_tiles, column_tiles = -(-rows // TILE), -(-columns // TILE)
    wanted = PROGRAMS // max(1, batch * row_tiles)
    return max(1, min(wanted, column_tiles))
