"""The divergence of the direction and its backward on packed clouds, d up to 128.

With e_ij = g_i . (y_j - x_i), t_ij = c d - c^2 r2_ij - c e_ij and q_ij = w_i k_ij v_j the pair's
derivatives are dL/de = -c q and dL/dr2 = -q (t/h + c^2); ``reference`` has the legend. The pair
(i, i) has t = c d and no derivative but those of its weight and of h; it is added here.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from torch import Tensor

from stein_kernels.gpu.packing import mean, pack, pack_vector, source_weights, splits
from stein_kernels.gpu.pairs import Gradients, gradients, pair_sums, total


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
    """The divergence at every target, (B, N)."""
    centre = mean(x)
    xs, score = pack(x, centre), pack(grad)
    ys = xs if query is None else pack(query, centre)
    w, same = source_weights(x, weights, leave_one_out), query is None
    b, n, d = (x if query is None else query).shape
    s = splits(b, n, x.shape[1])
    out = ys.new_empty(s, b, ys.shape[2])
    kernels.divergence(
        *(ys, xs, score, (score * xs).sum(1), w, bandwidth, out),
        *(n, x.shape[1], same, precision),
    )
    divergence = total(out, n)
    if same and not leave_one_out:
        divergence = divergence + w[:, :n] * (2 * d / bandwidth)[:, None]
    return x.new_empty(divergence.shape).copy_(divergence)


class Side(NamedTuple):
    """The particles at one end of the pairs, packed; what a role does not read is None."""

    x: Tensor
    score: Tensor | None  # of sources
    along: Tensor | None  # g . x, of sources
    weight: Tensor | None  # of sources
    cotangent: Tensor | None  # v (B, ld), of targets


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

    The divergence scales with s^-2 where x scales with s, g with 1/s and h with s^2, so
    2 h dh = g.dg - x.dx - y.dy - 2 w.dw needs no pairs.
    """
    same = query is None
    centre = mean(x)
    xs, score, cotangent = pack(x, centre), pack(grad), pack_vector(v)
    ys = xs if query is None else pack(query, centre)
    w, c = source_weights(x, weights, leave_one_out), (2 / bandwidth)[:, None, None]
    along = (score * xs).sum(1)
    sources, targets = Side(xs, score, along, w, None), Side(ys, None, None, None, cotangent)
    both = Side(xs, score, along, w, cotangent)
    m, n = counts = x.shape[1], v.shape[1]

    sums = functools.partial(
        pair_sums, kernels.divergence_backward, bandwidth=bandwidth, slots=3, precision=precision
    )
    if same:
        (moved, scored, carried), (row, mass, dw) = sums(both, both, (True, True), counts=counts)
    else:
        (moved, scored, carried), (row, mass, dw) = sums(
            sources, targets, (True, False), counts=counts
        )
    xs, score, w = (value[..., : counts[0]] for value in (xs, score, w))
    ys, cotangent = ys[..., : counts[1]], cotangent[:, : counts[1]]
    dx = xs * row[:, None] - moved + c * mass[:, None] * score
    if same:
        dx -= c * scored
        if not leave_one_out:
            dw = dw + cotangent * c[:, 0] * x.shape[2]
    dg = c * (xs * mass[:, None] - carried)
    scaling = (score * dg - xs * dx).sum((1, 2)) - 2 * (w * dw).sum(1)
    dy = None
    if not same:
        (moved, scored, _), (row, _, _) = sums(targets, sources, (False, True), counts=(n, m))
        dy = ys * row[:, None] - moved - c * scored
        scaling -= (ys * dy).sum((1, 2))
    return gradients(x, weights, query, bandwidth, (dx, dg, dw, dy), scaling)
