"""Torch kernels of every op, for devices without a compiled one (CompositeExplicitAutograd).

They run in float64, centred, in the matrix-product form and in chunks of targets: right to the last
float32 digit and O((M + N) d + CHUNK) memory, but without the speed of the compiled kernels.

Shapes: x, grad (B, M, d); query (B, N, d); weights (B, M); bandwidth (B,). Legend: ``reference``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stein_kernels import reference
from stein_kernels._checks import accumulation_dtype

CHUNK = 2**22  # kernel values held at a time: 32 MB in float64


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
    wide = x.double()
    centre = wide.mean(1, keepdim=True) if x.shape[1] else 0.0
    return reference.median_distance(wide - centre).to(accumulation_dtype(x.dtype))


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
