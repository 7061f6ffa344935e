"""The rows of a minibatch that a process has, and random numbers of those rows alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from steinvae.data import step_generator
from steinvae.sparse_rows import some_rows

BLOCK = 2**16
"""Numbers that one generator draws, at the most, where a row has fewer."""

ALL = (slice(None),)
"""The rows of a process that shares with no other."""


def own_rows(images: int, labelled: int, rank: int, ranks: int) -> list[slice]:
    """The rows of a minibatch that one of `ranks` processes has: of the images without a label, and
    of the last ones, that have one."""
    first, last = images - labelled, _part(labelled, rank, ranks)
    own = [_part(first, rank, ranks), slice(first + last.start, first + last.stop)]
    return own if labelled else own[:1]


def pick(batch: Tensor, rows: Sequence[slice]) -> Tensor:
    """Those rows of (B, ...), in their order; `batch` may be `sparse_rows`."""
    parts = [some_rows(batch, part) for part in rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Draws:
    """Random numbers of some rows of update `step`: of a row the same ones, whoever else's are
    drawn.

    A generator of its own for every `BLOCK` numbers of a stream: a process draws the blocks that
    its rows lie in.
    """

    def __init__(self, seed: int, step: int, rows: Sequence[slice]) -> None:
        self._seed, self._step, self._rows = seed, step, rows

    def normal(self, stream: str, shape: Sequence[int]) -> Tensor:
        """(b, ...) standard normal, those of own rows of `shape` (B, ...); all where B is 1."""
        return self._draw(stream, shape, Tensor.normal_)

    def uniform(self, stream: str, shape: Sequence[int]) -> Tensor:
        """(b, ...) uniform on [0, 1), as `normal`."""
        return self._draw(stream, shape, Tensor.uniform_)

    def order(self, stream: str, count: int) -> Tensor:
        """A permutation of 0..count-1: (count,) int64, the same for every process."""
        return torch.randperm(count, generator=self._generator(stream))

    def _draw(self, stream: str, shape: Sequence[int], fill: Callable[..., Tensor]) -> Tensor:
        count, *row = shape
        at_once = max(1, BLOCK // prod(row))
        parts = []
        for rows in self._rows if count > 1 else ALL:
            start, stop, _ = rows.indices(count)
            for first in range(start - start % at_once, stop, at_once):
                block = torch.empty(min(at_once, count - first), *row)
                name = f"{stream} {first // at_once}" if first else stream
                fill(block, generator=self._generator(name))
                parts.append(block[max(start - first, 0) : stop - first])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _generator(self, stream: str) -> torch.Generator:
        return step_generator(self._seed, self._step, stream)


def _part(count: int, rank: int, ranks: int) -> slice:
    size = count // ranks
    return slice(rank * size, (rank + 1) * size)
