"""What people write without this package: the direction and its bandwidth in torch and in KeOps.

Shapes: x, grad (..., M, d); h the bandwidth of k = exp(-r^2 / h), a tensor of the batch shape.
All of them return phi_j = (1/M) sum_i k_ij [g_i + (2/h)(x_j - x_i)] (Liu & Wang 2016, eq. 8).
"""

from __future__ import annotations

import importlib.util
import math

import torch
from torch import Tensor

from bench.shapes import FLOAT_BYTES, Shape

MEMORY_LIMIT = 2.5e9  # bytes of one intermediate; beyond it users run out of memory on a laptop


def difference_direction(x: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    """The formula as printed: all differences, M x M x d numbers."""
    difference = x[..., None, :, :] - x[..., :, None, :]
    h = h[..., None, None]
    kernel = torch.exp(-difference.square().sum(-1) / h)
    terms = grad[..., :, None, :] + 2 / h[..., None] * difference
    return (kernel[..., None] * terms).sum(-3) / x.shape[-2]


def gemm_gram(x: Tensor, h: Tensor) -> Tensor:
    """k_ij from |x|^2 + |y|^2 - 2 x.y."""
    norm = x.square().sum(-1)
    squared = norm[..., :, None] + norm[..., None, :] - 2 * x @ x.mT
    return torch.exp(-squared / h[..., None, None])


def gemm_direction(x: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    """The usual matrix form: M x M numbers and three matrix products."""
    kernel = gemm_gram(x, h)
    repulsion = kernel.sum(-1, keepdim=True) * x - kernel @ x
    return (kernel @ grad + 2 / h[..., None, None] * repulsion) / x.shape[-2]


def cdist_gram(x: Tensor, h: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(x, x).square() / h[..., None, None])


def keops_direction(x: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    """Symbolic pairs, reduced over the sources."""
    from pykeops.torch import LazyTensor  # pyright: ignore[reportMissingImports]

    source, score = LazyTensor(x[..., :, None, :]), LazyTensor(grad[..., :, None, :])
    target = LazyTensor(x[..., None, :, :])
    width = LazyTensor(h[..., None, None, None] if h.dim() else h)
    difference = target - source
    kernel = (-(difference**2).sum(-1) / width).exp()
    return (kernel * (score + 2 / width * difference)).sum(dim=x.dim() - 2) / x.shape[-2]


def triu_bandwidth(x: Tensor) -> Tensor:
    """Distances above the diagonal, gathered and put in order."""
    particles = x.shape[-2]
    i, j = torch.triu_indices(particles, particles, offset=1, device=x.device)
    median = torch.cdist(x, x)[..., i, j].median(-1).values
    return median.square() / math.log(particles + 1)


def pdist_bandwidth(x: Tensor) -> Tensor:
    """One set only: torch.pdist has no batch."""
    return torch.pdist(x).median().square() / math.log(x.shape[-2] + 1)


def skip_difference(shape: Shape) -> str | None:
    return _too_big("M x M x d floats", shape.pairs * shape.features * FLOAT_BYTES)


def skip_triu(shape: Shape) -> str | None:
    """M x M distances; for a pair above the diagonal two int64 indices and two floats."""
    pairs = shape.particles * (shape.particles - 1) // 2
    index_bytes = 16 * pairs
    needed = (shape.pairs + 2 * shape.sets * pairs) * FLOAT_BYTES + index_bytes
    return _too_big("distances, indices and gathered pairs", needed)


def skip_pdist(shape: Shape) -> str | None:
    return "torch.pdist takes one set, not a batch" if shape.batch else None


def skip_keops(shape: Shape) -> str | None:
    if importlib.util.find_spec("pykeops") is None:
        return "pykeops is not installed: pip install pykeops"
    return None


def _too_big(what: str, needed: float) -> str | None:
    if needed <= MEMORY_LIMIT:
        return None
    return f"{what} need {needed / 1e9:.1f} GB, over the limit of {MEMORY_LIMIT / 1e9:.1f} GB"
