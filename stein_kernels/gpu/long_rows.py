"""The ops on long rows, d > 128: few particles with many features, the regime of weights.

Formulas and legend: ``stein_kernels.reference`` and ``_composite``. x and grad are read where they
lie. The M x N matrices are small beside them, and are stored; the contractions of the backward
passes with them are torch's, in the precision that torch is set to.

``precision`` of the launches' matrix products: "ieee", "tf32x3" or "tf32".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stein_kernels import reference
from stein_kernels._checks import accumulation_dtype
from stein_kernels.gpu import median
from stein_kernels.gpu.long_pairs import (
    Problem,
    is_whole,
    mean,
    median_of,
    products,
    rows,
    source_weights,
    squared_distances,
)

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def direction(
    kernels: Any,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor | None,
    rule: str,
    leave_one_out: bool,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """phi (B, N, d) and the bandwidth (B,), by a rule where none is given.

    A set that is whole (``is_whole``) is read once for its distances, and with grad once for phi.
    """
    x, grad, query = rows(x), rows(grad), None if query is None else rows(query)
    problem = prepare(kernels, x, query, bandwidth, rule, precision)
    w = source_weights(x, weights, leave_one_out)
    phi = torch.empty_like(problem.y, memory_format=torch.contiguous_format)
    for tile in problem.tiles():
        coefficients, mass = weighted(tile.kernel, w)
        origin, own = -1, mass
        if query is None:
            origin = tile.targets.start
            own = torch.zeros_like(mass) if leave_one_out else w[:, tile.targets].contiguous()
        kernels.long_direction(
            *(coefficients, mass, own, x, grad, tile.y, problem.h),
            *(phi[:, tile.targets], origin, precision),
        )
    return phi, problem.h


def fuses(x: Tensor, first: Tensor, second: Tensor) -> bool:
    """Whether ``adam_step`` takes particles and moments: it changes them where they lie."""
    small = x.dtype in (torch.float32, torch.bfloat16) and x.shape[1] <= 128
    return small and rows(x) is x and first.is_contiguous() and second.is_contiguous()


def adam_step(
    kernels: Any,
    x: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    factors: Tensor,
    bandwidth: Tensor | None,
    rule: str,
    leave_one_out: bool,
    precision: str = "ieee",
) -> None:
    """One step of Adam along the direction, which is never written; see ``_optim_ops``."""
    problem = prepare(kernels, x, None, bandwidth, rule, precision)
    w = source_weights(x, None, leave_one_out)
    (tile,) = problem.tiles()
    coefficients, mass = weighted(tile.kernel, w)
    own = torch.zeros_like(w) if leave_one_out else w
    kernels.long_direction_adam(
        *(coefficients, mass, own, x, rows(grad), problem.h, first, second, factors, precision)
    )


def prepare(
    kernels: Any,
    x: Tensor,
    query: Tensor | None,
    bandwidth: Tensor | None,
    rule: str,
    precision: str,
) -> Problem:
    """The pairs of a direction, and the bandwidth that a rule makes of them."""
    b, m, d = x.shape
    if query is None and is_whole(x):  # its launches centre it: no kernel reads this
        centre = x.new_empty(b, d, dtype=accumulation_dtype(x.dtype))
    else:
        centre = mean(x)
    squared = None
    if m <= 2 * d and (query is None or bandwidth is None):
        squared = squared_distances(kernels, x, centre, precision)
    if bandwidth is None:
        if squared is None:
            found = median.median_distance(kernels, x)
        else:
            found = median_of(kernels, squared)
        bandwidth = reference.apply_rule(found, m, rule)
    return Problem(kernels, x, query, centre, bandwidth, precision, squared)


def weighted(kernel: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """w_i k_ij and its sum over the sources, (B, M, n) and (B, n)."""
    coefficients = kernel * w[:, :, None]
    return coefficients, coefficients.sum(1)


def direction_backward(
    kernels: Any,
    v: Tensor,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
    precision: str = "ieee",
) -> Gradients:
    """Gradients of x, grad, weights, query (empty where not given) and bandwidth."""
    problem, g, v = _wide(kernels, x, grad, v, query, bandwidth, precision)
    xs, c, w = problem.x, 2 / bandwidth[:, None, None], source_weights(x, weights, leave_one_out)
    zero = problem.centre
    moved, carried, dy = torch.zeros_like(xs), torch.zeros_like(xs), torch.empty_like(problem.y)
    row, dw, dh = torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(bandwidth)
    for targets, y, squared, kernel in problem.tiles():
        vt = v[:, targets]
        shift = (y * vt).sum(-1)[:, None]
        e = shift - products(kernels, xs, vt, zero, zero, False, precision)
        a = products(kernels, g, vt, zero, zero, False, precision) + c * e
        weight = kernel * w[:, :, None]
        b = weight * a
        carried.baddbmm_(kernel, vt)
        moved.baddbmm_(b, y)
        row += b.sum(2)
        dw += (kernel * a).sum(2)
        column, mass = b.sum(1)[..., None], weight.sum(1)[..., None]
        dy[:, targets] = c * (b.mT @ xs - column * y + mass * vt)
        dh += (b * squared - 2 * weight * e).sum((1, 2))
    dx = c * (moved - row[..., None] * xs - w[..., None] * carried)
    if query is None and not leave_one_out:  # the pair (i, i): its x and y cancel
        carried += v
        dw += (g * v).sum(-1)
    dg, dh = w[..., None] * carried, dh / bandwidth.square()
    return _gradients(x, weights, query, dx, dg, dw, dy, dh)


def divergence(
    kernels: Any,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
    precision: str = "ieee",
) -> Tensor:
    """The divergence at every target, (B, N)."""
    problem, g, _ = _wide(kernels, x, grad, None, query, bandwidth, precision)
    zero, w = problem.centre, source_weights(x, weights, leave_one_out)
    c, d = 2 / bandwidth[:, None, None], x.shape[2]
    along = (g * problem.x).sum(-1)[..., None]
    out = x.new_empty(problem.y.shape[:2])
    for targets, y, squared, kernel in problem.tiles():
        e = products(kernels, g, y, zero, zero, False, precision) - along
        trace = c * d - c.square() * squared - c * e
        value = (w[..., None] * kernel * trace).sum(1)
        if query is None and not leave_one_out:
            value += w[:, targets] * c[:, 0] * d
        out[:, targets] = value
    return out


def divergence_backward(
    kernels: Any,
    v: Tensor,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
    precision: str = "ieee",
) -> Gradients:
    """With t = c d - c^2 r2 - c e and q = v w k: dL/de = -c q, dL/dr2 = -q (t/h + c^2)."""
    problem, g, _ = _wide(kernels, x, grad, None, query, bandwidth, precision)
    xs, zero, h = problem.x, problem.centre, bandwidth[:, None, None]
    c, d, w = 2 / h, x.shape[2], source_weights(x, weights, leave_one_out)
    v = v.to(xs.dtype)
    along = (g * xs).sum(-1)[..., None]
    moved, carried, dy = torch.zeros_like(xs), torch.zeros_like(xs), torch.empty_like(problem.y)
    row, mass, dw = torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(w)
    dh = torch.zeros_like(bandwidth)
    for targets, y, squared, kernel in problem.tiles():
        e = products(kernels, g, y, zero, zero, False, precision) - along
        trace = c * d - c.square() * squared - c * e
        kv = kernel * v[:, None, targets]
        q = w[..., None] * kv
        radial = -2 * q * (trace / h + c.square())
        row += radial.sum(2)
        mass += q.sum(2)
        dw += (kv * trace).sum(2)
        carried.baddbmm_(q, y)
        moved.baddbmm_(radial, y)
        column = radial.sum(1)[..., None]
        dy[:, targets] = column * y - radial.mT @ xs - c * (q.mT @ g)
        slope = squared / h * trace - c * d + 2 * c.square() * squared + c * e
        dh += (q * slope).sum((1, 2))
    dg = c * (mass[..., None] * xs - carried)
    dx = row[..., None] * xs - moved + c * mass[..., None] * g
    if query is None and not leave_one_out:  # the pair (i, i): w_i v_i c d
        dw += v * c[:, 0] * d
        dh -= (w * v).sum(1) * c[:, 0, 0] * d
    return _gradients(x, weights, query, dx, dg, dw, dy, dh / bandwidth)


def gram(
    kernels: Any, x: Tensor, y: Tensor | None, bandwidth: Tensor, precision: str = "ieee"
) -> Tensor:
    """k (B, M, N) in the dtype of x, exactly 1 on the diagonal of a set with itself."""
    x, y = rows(x), None if y is None else rows(y)
    problem = Problem(kernels, x, y, mean(x), bandwidth, precision)
    out = x.new_empty(x.shape[0], x.shape[1], problem.y.shape[1])
    for tile in problem.tiles():
        if y is None:  # 1, or NaN where the kernel is
            own = torch.exp(0 * tile.y.sum(-1, dtype=bandwidth.dtype))
            tile.kernel.diagonal(-tile.targets.start, 1, 2).copy_(own)
        out[:, :, tile.targets] = tile.kernel
    return out


def gram_backward(
    kernels: Any,
    v: Tensor,
    x: Tensor,
    y: Tensor | None,
    bandwidth: Tensor,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y (empty where not given) and bandwidth, given that of k (B, M, N)."""
    problem, _, _ = _wide(kernels, x, None, None, y, bandwidth, precision)
    xs, c = problem.x, 2 / bandwidth[:, None, None]
    dx, dy = torch.zeros_like(xs), torch.empty_like(problem.y)
    row, dh = xs.new_zeros(x.shape[:2]), torch.zeros_like(bandwidth)
    for targets, ys, squared, kernel in problem.tiles():
        b = kernel * v[:, :, targets].to(kernel.dtype)
        if y is None:  # the pair (i, i) has no gradient, and k = 1: see gpu/gram.py
            b.diagonal(-targets.start, 1, 2).zero_()
        dx.baddbmm_(b, ys)
        row += b.sum(2)
        dy[:, targets] = c * (b.mT @ xs - b.sum(1)[..., None] * ys)
        dh += (b * squared).sum((1, 2))
    dx = c * (dx - row[..., None] * xs)
    if y is None:
        dx += dy
    dh = dh / bandwidth.square()
    return dx.to(x.dtype), x.new_empty(0) if y is None else dy.to(y.dtype), dh


def _wide(
    kernels: Any,
    x: Tensor,
    grad: Tensor | None,
    v: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    precision: str,
) -> tuple[Problem, Tensor, Tensor]:
    """Pairs of centred copies in T, the scores and the cotangent in T: what torch contracts.

    The centre of the problem is zero then. What is not given comes back as the particles.
    """
    wide = accumulation_dtype(x.dtype)
    centre = mean(x)[:, None]
    xs = x.to(wide) - centre
    ys = None if query is None else rows(query.to(wide) - centre)
    problem = Problem(kernels, rows(xs), ys, torch.zeros_like(centre[:, 0]), bandwidth, precision)
    scores = problem.x if grad is None else rows(grad.to(wide))
    return problem, scores, problem.x if v is None else rows(v.to(wide))


def _gradients(
    x: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    dx: Tensor,
    dg: Tensor,
    dw: Tensor,
    dy: Tensor,
    dh: Tensor,
) -> Gradients:
    """In the dtypes of what they belong to; where the targets are the sources dx includes dy."""
    empty = x.new_empty(0)
    dx = dx + dy if query is None else dx
    return (
        dx.to(x.dtype),
        dg.to(x.dtype),
        empty if weights is None else dw.to(weights.dtype),
        empty.clone() if query is None else dy.to(query.dtype),
        dh,
    )
