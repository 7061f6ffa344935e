"""Torch kernels of every op, for devices without a compiled one (CompositeExplicitAutograd).

They run in float64, centred, in the matrix-product form (the median by differences) and in chunks
of targets: right to the last float32 digit and O((M + N) d + CHUNK) memory, but without the speed
of the compiled kernels.

Shapes: x, grad (B, M, d); query (B, N, d); weights (B, M); bandwidth (B,). Legend: ``reference``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stein_kernels import reference
from stein_kernels._checks import accumulation_dtype

CHUNK = 2**22  # kernel values or distances held at a time: 32 MB in float64
DIGIT = 11  # bits of a distance counted in a pass of the median


class Tile(NamedTuple):
    """Pairs of all sources with a run of targets."""

    targets: slice
    y: Tensor  # (B, n, d)
    squared: Tensor  # (B, M, n)
    kernel: Tensor  # (B, M, n), 0 at the pairs left out


class Problem(NamedTuple):
    """The arguments in float64, centred on the mean of the sources."""

    x: Tensor
    y: Tensor
    weights: Tensor
    h: Tensor  # (B, 1, 1)
    leave_one_out: bool

    def tiles(self) -> Iterator[Tile]:
        batch, m, n = *self.x.shape[:2], self.y.shape[1]
        step = max(1, CHUNK // max(1, batch * m))
        x_norm = self.x.square().sum(-1)[:, :, None]
        for start in range(0, n, step):
            targets = slice(start, min(n, start + step))
            y = self.y[:, targets]
            squared = x_norm + y.square().sum(-1)[:, None] - 2 * self.x @ y.mT
            squared.clamp_(min=0)
            kernel = torch.exp(-squared / self.h)
            if self.leave_one_out:
                kernel.diagonal(-start, 1, 2).zero_()
            yield Tile(targets, y, squared, kernel)


def _problem(x, y, weights, bandwidth, leave_one_out) -> Problem:
    x64 = x.double()
    m = x.shape[1]
    centre = x64.mean(1, keepdim=True) if m else 0.0
    uniform = 1.0 / max(1, m - leave_one_out)
    w = x64.new_full(x.shape[:2], uniform) if weights is None else weights.double()
    y64 = x64 if y is None else y.double()
    return Problem(x64 - centre, y64 - centre, w, bandwidth.double()[:, None, None], leave_one_out)


def _optional(value: Tensor | None, result: Tensor, like: Tensor) -> Tensor:
    """The gradient of an optional argument; empty where it was not given."""
    return like.new_empty(0) if value is None else result.to(value.dtype)


def _gradients(
    x: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    dx: Tensor,
    dg: Tensor,
    dw: Tensor,
    dy: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, grad, weights, query; where the targets are the sources dx includes dy."""
    dx = dx + dy if query is None else dx
    return dx.to(x.dtype), dg.to(x.dtype), _optional(weights, dw, x), _optional(query, dy, x)


def median_distance(x: Tensor) -> Tensor:
    """Up to CHUNK pairs are held; beyond, every pass makes them anew and counts some bits."""
    batch, m, _ = x.shape
    wide = x.double()
    dtype, pairs = accumulation_dtype(x.dtype), m * (m - 1) // 2
    if batch * pairs < 1:
        return reference.median_distance(wide).to(dtype)
    finite = wide.isfinite().all(2).all(1)
    wide = torch.where(finite[:, None, None], wide, 0.0)
    if batch * pairs <= CHUNK:
        ordered = torch.cat(list(_distances(wide)), 1).sort(1).values
        low, high = ordered[:, (pairs - 1) // 2], ordered[:, pairs // 2]
    else:
        low, high = _middle_ranks(wide, pairs)
    median = (low + high) / 2
    from_first = wide - wide[:, :1]  # exactly 0 where all coincide
    total = m * from_first.square().sum((1, 2)) - from_first.sum(1).square().sum(1)
    median = torch.where(median > 0, median, (total.clamp(min=0) / pairs).sqrt())
    median = torch.where(median > 0, median, 1.0)
    return torch.where(finite, median, torch.nan).to(dtype)


def _distances(x: Tensor) -> Iterator[Tensor]:
    """|x_i - x_j| of the pairs i < j by sums of differences, (B, up to CHUNK / B) at a time."""
    batch, m, _ = x.shape
    step = max(1, CHUNK // (batch * m))
    for start in range(0, m - 1, step):
        rows = x[:, start : min(m - 1, start + step)]
        block = torch.cdist(rows, x[:, start:], compute_mode="donot_use_mm_for_euclid_dist")
        yield block[:, torch.ones(block.shape[1:], dtype=torch.bool, device=x.device).triu(1)]


def _middle_ranks(x: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """The distances of ranks (pairs - 1) // 2 and pairs // 2 of every set, bit by bit.

    A distance is not negative, so its bits order as its value.
    """
    batch, low, high = len(x), (pairs - 1) // 2, pairs // 2
    prefix = torch.zeros(batch, 1, dtype=torch.int64, device=x.device)
    rank = torch.full((batch, 1), low, dtype=torch.int64, device=x.device)
    first = torch.arange(batch, device=x.device)[:, None] << DIGIT  # of a set's counts
    for shift in range(64 - DIGIT + 1, -DIGIT, -DIGIT):
        lower, width = max(shift, 0), DIGIT + min(shift, 0)
        counts = torch.zeros(batch << DIGIT, dtype=torch.int64, device=x.device)
        for distances in _distances(x):
            bits = distances.view(torch.int64)
            inside = bits >> (lower + width) == prefix
            digit = (bits >> lower) & ((1 << width) - 1)
            counts += torch.bincount((digit + first)[inside], minlength=len(counts))
        below = counts.view(batch, -1).cumsum(1)
        found = (below <= rank).sum(1, keepdim=True)
        rank = rank - torch.where(found > 0, below.gather(1, (found - 1).clamp(min=0)), 0)
        prefix = (prefix << width) | found
    value = prefix.view(torch.float64)
    if low == high:
        return value[:, 0], value[:, 0]
    above, beyond = torch.zeros_like(rank), torch.full_like(value, torch.inf)
    for distances in _distances(x):
        more = distances > value
        above += more.sum(1, keepdim=True)
        smallest = torch.where(more, distances, torch.inf).amin(1, keepdim=True)
        beyond = torch.minimum(beyond, smallest)
    return value[:, 0], torch.where(pairs - above > high, value, beyond)[:, 0]


def rbf_gram(x: Tensor, y: Tensor | None, bandwidth: Tensor) -> Tensor:
    problem = _problem(x, y, None, bandwidth, False)
    out = x.new_empty(x.shape[0], x.shape[1], problem.y.shape[1])
    for tile in problem.tiles():
        out[:, :, tile.targets] = tile.kernel.to(x.dtype)
    return out


def rbf_gram_backward(
    v: Tensor, x: Tensor, y: Tensor | None, bandwidth: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    p = _problem(x, y, None, bandwidth, False)
    dx, dy, dh = torch.zeros_like(p.x), torch.zeros_like(p.y), torch.zeros_like(p.h)
    for tile in p.tiles():
        b = tile.kernel * v[:, :, tile.targets].double()
        dx += b @ tile.y - b.sum(2)[..., None] * p.x
        dy[:, tile.targets] = b.mT @ p.x - b.sum(1)[..., None] * tile.y
        dh += (b * tile.squared).sum((1, 2), keepdim=True)
    dx, dy, dh = 2 / p.h * dx, 2 / p.h * dy, (dh / p.h.square())[:, 0, 0]
    if y is None:
        dx = dx + dy
    return dx.to(x.dtype), _optional(y, dy, x), dh.to(bandwidth.dtype)


def svgd_direction(
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor | None,
    rule: str,
    leave_one_out: bool,
) -> tuple[Tensor, Tensor]:
    if bandwidth is None:
        bandwidth = reference.apply_rule(median_distance(x), x.shape[1], rule)
    else:
        bandwidth = bandwidth.clone()
    p = _problem(x, query, weights, bandwidth, leave_one_out)
    drive = grad.double() - 2 / p.h * p.x
    phi = x.new_empty(p.y.shape)
    for tile in p.tiles():
        kernel = tile.kernel * p.weights[..., None]
        mass = kernel.sum(1)[..., None]
        phi[:, tile.targets] = (kernel.mT @ drive + 2 / p.h * mass * tile.y).to(x.dtype)
    return phi, bandwidth


def svgd_direction_backward(
    v: Tensor,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    p = _problem(x, query, weights, bandwidth, leave_one_out)
    c, w, g = 2 / p.h, p.weights[..., None], grad.double()
    dx, dg, dw = torch.zeros_like(p.x), torch.zeros_like(p.x), torch.zeros_like(p.weights)
    dy, dh = torch.zeros_like(p.y), torch.zeros_like(p.h)
    for tile in p.tiles():
        vt = v[:, tile.targets].double()
        e = (vt * tile.y).sum(-1)[:, None] - p.x @ vt.mT
        a = g @ vt.mT + c * e
        b = w * tile.kernel * a
        drive = tile.kernel @ vt
        dg += w * drive
        dw += (tile.kernel * a).sum(2)
        dx += c * (b @ tile.y - b.sum(2)[..., None] * p.x - w * drive)
        mass = (w * tile.kernel).sum(1)[..., None]
        dy[:, tile.targets] = c * (b.mT @ p.x - b.sum(1)[..., None] * tile.y + mass * vt)
        dh += (b * tile.squared - 2 * w * tile.kernel * e).sum((1, 2), keepdim=True)
    dh = (dh / p.h.square())[:, 0, 0].to(bandwidth.dtype)
    return *_gradients(x, weights, query, dx, dg, dw, dy), dh


def stein_divergence(
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
) -> Tensor:
    p = _problem(x, query, weights, bandwidth, leave_one_out)
    c, g = 2 / p.h, grad.double()
    along_source = (g * p.x).sum(-1)[..., None]
    out = x.new_empty(p.y.shape[:2])
    for tile in p.tiles():
        e = g @ tile.y.mT - along_source
        trace = c * x.shape[2] - c.square() * tile.squared - c * e
        out[:, tile.targets] = (p.weights[..., None] * tile.kernel * trace).sum(1).to(x.dtype)
    return out


def stein_divergence_backward(
    v: Tensor,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None,
    query: Tensor | None,
    bandwidth: Tensor,
    leave_one_out: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """With t = c d - c^2 r2 - c e and q = v w k: dL/de = -c q, dL/dr2 = -q (t/h + c^2)."""
    p = _problem(x, query, weights, bandwidth, leave_one_out)
    c, w, g, d = 2 / p.h, p.weights[..., None], grad.double(), x.shape[2]
    along_source = (g * p.x).sum(-1)[..., None]
    dx, dg, dw = torch.zeros_like(p.x), torch.zeros_like(p.x), torch.zeros_like(p.weights)
    dy, dh = torch.zeros_like(p.y), torch.zeros_like(p.h)
    for tile in p.tiles():
        e = g @ tile.y.mT - along_source
        trace = c * d - c.square() * tile.squared - c * e
        kv = tile.kernel * v[:, None, tile.targets].double()
        q = w * kv
        radial = -2 * q * (trace / p.h + c.square())
        row, column = radial.sum(2)[..., None], radial.sum(1)[..., None]
        mass = q.sum(2)[..., None]
        dw += (kv * trace).sum(2)
        dg += -c * (q @ tile.y - mass * p.x)
        dx += row * p.x - radial @ tile.y + c * mass * g
        dy[:, tile.targets] = column * tile.y - radial.mT @ p.x - c * (q.mT @ g)
        slope = tile.squared / p.h * trace - c * d + 2 * c.square() * tile.squared + c * e
        dh += (q * slope).sum((1, 2), keepdim=True)
    dh = (dh / p.h)[:, 0, 0].to(bandwidth.dtype)
    return *_gradients(x, weights, query, dx, dg, dw, dy), dh
