"""Codes in blocks, each with a Stein kernel of its own.

In hundreds of dimensions all codes of a document are equally far apart, and a kernel on them no
longer says which are alike: leave-one-out signal falls as 1/d against the noise of the scores. One
kernel a block is the matrix-valued kernel diag(k_1, ..., k_L): its direction is phi_l(y) =
sum_i w_i [ k_l(x_i, y) g_i + grad k_l(x_i, y) ]_l, and its KSD is the sum of the blocks'.

Shapes: B images, S codes an image, d = sum of the blocks' sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Run(NamedTuple):
    """Neighbouring blocks of one size, which go through one call of an op."""

    start: int
    """First dimension."""

    size: int
    """Of a block."""

    count: int

    def fold(self, values: Float[Tensor, "B S d"]) -> Float[Tensor, "BC S n"]:
        """The run's dimensions, its blocks as sets of their own: b * count + block."""
        own = values[..., self.start : self.start + self.size * self.count]
        return own.unflatten(-1, (self.count, self.size)).movedim(2, 1).flatten(0, 1)

    def unfold(self, folded: Float[Tensor, "BC S n"]) -> Float[Tensor, "B S m"]:
        """The run's dimensions side by side again, m = size * count."""
        return folded.unflatten(0, (-1, self.count)).movedim(1, 2).flatten(-2)


def runs(blocks: Sequence[int]) -> list[Run]:
    """Blocks from the first dimension on, as runs of equal sizes."""
    found, start = [], 0
    for size, members in groupby(blocks):
        count = len(list(members))
        found.append(Run(start, size, count))
        start += size * count
    return found


def cut_blocks(blocks: Sequence[int], largest: int) -> tuple[int, ...]:
    """Every block cut into pieces of at most `largest`, as even as can be; 0 leaves them."""
    if largest == 0:
        return tuple(blocks)
    pieces: list[int] = []
    for size in blocks:
        count = -(-size // largest)
        pieces += [size // count + (number < size % count) for number in range(count)]
    return tuple(pieces)
