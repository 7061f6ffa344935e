"""The direction and its backward on packed clouds: up to 128 features, any number of particles.

Legend and formulas: ``stein_kernels.reference`` and ``csrc/cpu/svgd_direction_backward.cpp``.
The pair (i, i) is left out of every kernel's sums: its kernel value is 1 and its difference 0, so
it is added here, exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from stein_kernels.gpu.packing import mean, pack, source_weights, splits, unpack

DIRECT = 16  # features up to which the field is summed over differences: the split form cancels


def forward(
    kernels: Any,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
    precision: str,
) -> Tensor:
    """phi (B, N, d) at a bandwidth (B,)."""
    centre = mean(x)
    sources, score = pack(x, centre), pack(grad)
    targets = sources if query is None else pack(query, centre)
    w, c = source_weights(x, weights, leave_one_out), (2 / bandwidth)[:, None, None]
    like = x if query is None else query
    b, n, d = like.shape
    m, direct = x.shape[1], d <= DIRECT
    drive = score if direct else score - c * sources
    s = splits(b, n, m)
    out = targets.new_empty(s, *targets.shape)
    mass = targets.new_empty(s, b, targets.shape[2])
    kernels.direction(
        *(targets, sources, drive, w, bandwidth, out, mass),
        *(n, m, query is None, direct, precision),
    )
    phi, mass = total(out, n), total(mass, n)
    if not direct:
        phi = phi + c * mass[:, None] * targets[..., :n]
    if query is None and not leave_one_out:
        phi = phi + w[:, None, :n] * score[..., :n]
    return unpack(phi, like)


class Side(NamedTuple):
    """The particles at one end of the pairs, packed; what a role does not read is None."""

    x: Tensor
    drive: Tensor | None  # g - c x, of sources
    cotangent: Tensor | None  # v, of targets
    shift: Tensor | None  # y . v, of targets
    weight: Tensor | None  # w, of sources

    def filled(self) -> list[Tensor]:
        """A kernel takes five pointers; those it does not read are the cloud itself."""
        return [self.x if value is None else value for value in self]


def backward(
    kernels: Any,
    v: Tensor,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, grad, weights, query (empty where not given) and bandwidth.

    phi(s x, g/s, s^2 h) = phi(x, g, h)/s, so 2 h dh = g.dg - x.dx - y.dy - w.dw needs no pairs.
    """
    same = query is None
    centre = mean(x)
    xs, score, cotangent = pack(x, centre), pack(grad), pack(v)
    ys = xs if query is None else pack(query, centre)
    w, c = source_weights(x, weights, leave_one_out), (2 / bandwidth)[:, None, None]
    shift = (ys * cotangent).sum(1)
    sources = Side(xs, score - c * xs, None, None, w)
    targets = Side(ys, None, cotangent, shift, None)
    both = Side(xs, sources.drive, cotangent, shift, w)
    counts = x.shape[1], v.shape[1]

    ends = (both, both) if same else (sources, targets)
    (moved, carried), (row, mass, dw) = _pairs(kernels, *ends, bandwidth, *counts, precision)
    xs, score, w = (value[..., : counts[0]] for value in (xs, score, w))
    ys, cotangent = ys[..., : counts[1]], cotangent[..., : counts[1]]
    dx = moved - xs * row[:, None] - w[:, None] * carried
    if same:
        dx += mass[:, None] * cotangent
        if not leave_one_out:
            carried = carried + cotangent
            dw = dw + (score * cotangent).sum(1)
    dx, dg = c * dx, w[:, None] * carried
    scaling = (score * dg - xs * dx).sum((1, 2)) - (w * dw).sum(1)
    dy = None
    if query is not None:
        ends = targets, sources
        (moved, _), (row, mass, _) = _pairs(
            kernels, *ends, bandwidth, counts[1], counts[0], precision
        )
        dy = c * (moved - ys * row[:, None] + mass[:, None] * cotangent)
        scaling -= (ys * dy).sum((1, 2))
    return (
        unpack(dx, x),
        unpack(dg, x),
        x.new_empty(0) if weights is None else dw.to(weights.dtype).contiguous(),
        x.new_empty(0) if query is None or dy is None else unpack(dy, query),
        (scaling / (2 * bandwidth)).to(bandwidth.dtype),
    )


def _pairs(
    kernels: Any,
    rows: Side,
    columns: Side,
    bandwidth: Tensor,
    row_count: int,
    column_count: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """One launch over all pairs: sums (2, B, d, ld) and scalars (3, B, ld) of the rows.

    A slot that belongs to a role which the rows do not have comes back unwritten.
    """
    b, d, ld = rows.x.shape
    s = splits(b, row_count, column_count)
    out, scalars = rows.x.new_empty(s, 2, b, d, ld), rows.x.new_empty(s, 3, b, ld)
    kernels.direction_backward(
        *(*rows.filled(), *columns.filled(), bandwidth, out, scalars),
        *(row_count, column_count, rows.x is columns.x),
        *(rows.weight is not None, rows.cotangent is not None, precision),
    )
    return total(out, row_count), total(scalars, row_count)


def total(partial: Tensor, count: int) -> Tensor:
    """The sum over splits, in their order, of the first ``count`` rows: the rest is unwritten."""
    partial = partial[..., :count]
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)
