"""The direction and its backward on packed clouds: up to 128 features, any number of particles.

Legend and formulas: ``stein_kernels.reference`` and ``csrc/cpu/svgd_direction_backward.cpp``.
The pair (i, i) is left out of every kernel's sums: its kernel value is 1 and its difference 0, so
it is added here, exactly.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from torch import Tensor

from stein_kernels.gpu.packing import mean, pack, source_weights, splits, unpack
from stein_kernels.gpu.pairs import Gradients, gradients, pair_sums, total

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
    like = x if query is None else query
    b, n, d = like.shape
    m, direct = x.shape[1], d <= DIRECT
    centre = None if direct else mean(x)  # differences are of the coordinates as given
    sources, score = pack(x, centre), pack(grad)
    targets = sources if query is None else pack(query, centre)
    w, c = source_weights(x, weights, leave_one_out), (2 / bandwidth)[:, None, None]
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
        phi.addcmul_(c * mass[:, None], targets[..., :n])
    if query is None and not leave_one_out:
        phi.addcmul_(w[:, None, :n], score[..., :n])
    del out, sources, targets, drive, score  # three clouds are the most that is held at once
    return unpack(phi, like)


class Side(NamedTuple):
    """The particles at one end of the pairs, packed; what a role does not read is None."""

    x: Tensor
    drive: Tensor | None  # g - c x, of sources
    cotangent: Tensor | None  # v, of targets
    shift: Tensor | None  # y . v, of targets
    weight: Tensor | None  # w, of sources


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
) -> Gradients:
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
    m, n = counts = x.shape[1], v.shape[1]

    sums = functools.partial(
        pair_sums, kernels.direction_backward, bandwidth=bandwidth, slots=2, precision=precision
    )
    if same:
        (moved, carried), (row, mass, dw) = sums(both, both, (True, True), counts=counts)
    else:
        (moved, carried), (row, mass, dw) = sums(sources, targets, (True, False), counts=counts)
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
    if not same:
        (moved, _), (row, mass, _) = sums(targets, sources, (False, True), counts=(n, m))
        dy = c * (moved - ys * row[:, None] + mass[:, None] * cotangent)
        scaling -= (ys * dy).sum((1, 2))
    return gradients(x, weights, query, bandwidth, (dx, dg, dw, dy), scaling)
