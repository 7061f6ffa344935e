"""The public functions where every rank holds a slice of the features.

What is summed over features is made of the slice and added up over the ranks, before anything that
is not linear: one sum of M x N numbers, of which every rank then has the same bits, so all have one
median and one bandwidth. The rest is every feature's own. Nothing of size M x d is moved; a matrix
of M x N is stored.

``ranks`` adds up: ``sum(partial)`` is the sum over the ranks, and its gradient is each partial's;
``spread(value)`` is the value that all ranks have, and its gradient the sum of theirs. Arguments
have been checked; ``features`` is d, of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from stein_kernels import _backends, _slice_ops, reference
from stein_kernels._checks import accumulation_dtype, check_bandwidth, fold_batch

_library = _slice_ops.NAMESPACE  # importing _slice_ops registers the ops


class Ranks(Protocol):
    """Those that hold the other slices."""

    def sum(self, partial: Tensor) -> Tensor: ...

    def spread(self, value: Tensor) -> Tensor: ...


class Pairs(NamedTuple):
    """What all ranks know of the pairs; M x N matrices of all features."""

    squared: Tensor  # |y_j - x_i|^2, (B, M, N)
    h: Tensor  # (B,)

    def weighted(self, weights: Tensor | None, leave_one_out: bool) -> Tensor:
        """w_i k_ij, (B, M, N)."""
        return reference.pair_weights(self.squared, self.h, weights, leave_one_out)

    def divergence(self, weighted: Tensor, along: Tensor, features: int) -> Tensor:
        """(B, N), with the products g_i . (y_j - x_i) along (B, M, N)."""
        return reference.divergence_of(weighted, self.squared, along, self.h, features)


class _Slice:
    """Arguments in the features of this rank, their leading dimensions folded into one."""

    def __init__(
        self,
        op: str,
        ranks: Ranks,
        x: Tensor,
        grad: Tensor | None = None,
        weights: Tensor | None = None,
        query: Tensor | None = None,
    ) -> None:
        batch, wide = x.shape[:-2], accumulation_dtype(x.dtype)
        self.op, self.ranks, self.given = op, ranks, x
        if query is not None:
            query = query.expand(*batch, *query.shape[-2:])
        if weights is not None:
            weights = weights.to(wide).expand(*batch, weights.shape[-1])
        backend = _backends.active_backend()
        self.ops: Any = torch.ops.stein_kernels
        self.options = {"backend": backend}
        if backend == "reference":
            self.ops, self.options = reference, {}  # which has no half types here
            x = x.to(wide)
            grad, query = (v if v is None else v.to(wide) for v in (grad, query))
        else:
            _backends.require(op, x)
        self.x, self.grad = fold_batch(x, 2), fold_batch(grad, 2)
        self.weights, self.query = fold_batch(weights, 1), fold_batch(query, 2)

    def pairs(self, bandwidth: float | str | Tensor) -> Pairs:
        """All pairs, by one sum over the ranks."""
        pairs, _ = self._summed(bandwidth, [])
        return pairs

    def pairs_along(self, bandwidth: float | str | Tensor) -> tuple[Pairs, Tensor]:
        """The same and g_i . (y_j - x_i), (B, M, N), still by one sum."""
        given = self.x, self.grad, self.query
        pairs, (along,) = self._summed(
            bandwidth, [self.ops.displaced_products(*given, **self.options)]
        )
        return pairs, along

    def _summed(
        self, bandwidth: float | str | Tensor, further: list[Tensor]
    ) -> tuple[Pairs, Sequence[Tensor]]:
        """The pairs, and the sums of `further` matrices; a rule reads the distances within x."""
        h = check_bandwidth(self.op, bandwidth, self.given)
        parts = [self.ops.squared_distances(self.x, self.query, **self.options), *further]
        if isinstance(h, str) and self.query is not None:
            parts.append(self.ops.squared_distances(self.x.detach(), None, **self.options))
        total = self.ranks.sum(parts[0] if len(parts) == 1 else torch.cat(parts, 2))
        sums = total.split([part.shape[2] for part in parts], 2)
        if isinstance(h, str):
            within = sums[0] if self.query is None else sums[-1]
            median = self.ops.median_of_squared(within.detach(), **self.options)
            h = reference.apply_rule(median, self.given.shape[-2], h)
        return Pairs(sums[0], fold_batch(h, 0)), sums[1 : 1 + len(further)]

    def direction(self, weighted: Tensor, h: Tensor) -> Tensor:
        """phi (B, N, slice), given w_i k_ij (B, M, N)."""
        weighted, h = self.ranks.spread(weighted), self.ranks.spread(h)
        given = weighted, self.x, self.grad, self.query, h
        return self.ops.weighted_direction(*given, **self.options)

    def unfold(self, value: Tensor) -> Tensor:
        """The leading dimensions back, and the dtype of x."""
        return value.to(self.given.dtype).reshape(self.given.shape[:-2] + value.shape[1:])


def svgd_direction(
    ranks: Ranks,
    features: int,
    *,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None = None,
    query: Tensor | None = None,
    bandwidth: float | str | Tensor = "liu_wang",
    leave_one_out: bool = False,
) -> Tensor:
    """The direction in the features of this slice, (..., N, slice)."""
    s = _Slice("svgd_direction", ranks, x, grad, weights, query)
    pairs = s.pairs(bandwidth)
    return s.unfold(s.direction(pairs.weighted(s.weights, leave_one_out), pairs.h))


def rbf_gram(
    ranks: Ranks,
    features: int,
    *,
    x: Tensor,
    y: Tensor | None = None,
    bandwidth: float | str | Tensor = "liu_wang",
) -> Tensor:
    """The whole matrix, (..., M, N)."""
    s = _Slice("rbf_gram", ranks, x, query=y)
    pairs = s.pairs(bandwidth)
    return s.unfold(torch.exp(-pairs.squared / pairs.h[:, None, None]))


def median_bandwidth(ranks: Ranks, features: int, *, x: Tensor, rule: str = "liu_wang") -> Tensor:
    """h, (...), in the accumulation dtype."""
    s = _Slice("median_bandwidth", ranks, x.detach())
    return s.pairs(rule).h.reshape(s.given.shape[:-2])


def stein_divergence(
    ranks: Ranks,
    features: int,
    *,
    x: Tensor,
    grad: Tensor,
    weights: Tensor | None = None,
    query: Tensor | None = None,
    bandwidth: float | str | Tensor = "liu_wang",
    leave_one_out: bool = False,
) -> Tensor:
    """The divergence over all features, (..., N)."""
    s = _Slice("stein_divergence", ranks, x, grad, weights, query)
    pairs, along = s.pairs_along(bandwidth)
    return s.unfold(pairs.divergence(pairs.weighted(s.weights, leave_one_out), along, features))


def kernel_stein_discrepancy(
    ranks: Ranks,
    features: int,
    *,
    x: Tensor,
    score: Tensor,
    weights: Tensor | None = None,
    bandwidth: float | str | Tensor = "liu_wang",
    statistic: str = "u",
    leave_one_out: bool = False,
) -> Tensor:
    """The discrepancy over all features, (...); the products g_j . phi_j are a second sum, of M."""
    dtype, wide = x.dtype, accumulation_dtype(x.dtype)  # its two terms nearly cancel
    score = score.to(wide)
    s = _Slice("kernel_stein_discrepancy", ranks, x.to(wide), score, weights)
    h = bandwidth.to(wide) if isinstance(bandwidth, Tensor) else bandwidth
    pairs, along = s.pairs_along(h)
    weighted = pairs.weighted(s.weights, leave_one_out or statistic == "u")
    divergence = pairs.divergence(weighted, along, features)
    phi = s.direction(weighted, pairs.h)
    driven = ranks.sum((phi * fold_batch(score, 2)).sum(-1))
    return s.unfold(reference.average(driven + divergence, s.weights)).to(dtype)
