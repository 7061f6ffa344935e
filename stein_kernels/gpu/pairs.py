"""What the backward passes over packed pairs share: one launch, and the gradients it leads to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from stein_kernels.gpu.packing import splits, unpack

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def total(partial: Tensor, count: int) -> Tensor:
    """The sum over splits, in their order, of the first ``count`` rows: the rest is unwritten."""
    partial = partial[..., :count]
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)


def pair_sums(
    launch: Callable[..., Any],
    rows: tuple[Tensor | None, ...],
    columns: tuple[Tensor | None, ...],
    roles: tuple[bool, bool],
    bandwidth: Tensor,
    counts: tuple[int, int],
    slots: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """One launch over all pairs: sums (slots, B, d, rows) and scalars (3, B, rows).

    ``rows`` and ``columns`` are what a launch reads of either end, the cloud first; None where a
    role (as source, as target) does not read it. Its slots then come back unwritten.
    """
    x, y = rows[0], columns[0]
    if x is None or y is None:
        raise ValueError("pair_sums: both ends of the pairs need a cloud")
    b, d, ld = x.shape
    s = splits(b, *counts)
    out, scalars = x.new_empty(s, slots, b, d, ld), x.new_empty(s, 3, b, ld)
    launch(
        *(x if value is None else value for value in rows),
        *(y if value is None else value for value in columns),
        *(bandwidth, out, scalars, *counts, x is y, *roles, precision),
    )
    return total(out, counts[0]), total(scalars, counts[0])


def gradients(
    x: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    found: tuple[Tensor, Tensor, Tensor, Tensor | None],
    scaling: Tensor,
) -> Gradients:
    """Gradients as the op returns them, from clouds of dx, dg, dy, from dw, and from 2 h dh."""
    dx, dg, dw, dy = found
    return (
        unpack(dx, x),
        unpack(dg, x),
        x.new_empty(0) if weights is None else weights.new_empty(dw.shape).copy_(dw),
        x.new_empty(0) if query is None or dy is None else unpack(dy, query),
        (scaling / (2 * bandwidth)).to(bandwidth.dtype),
    )
