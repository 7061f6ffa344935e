"""Minibatches of counts as sparse rows: the words that occur, document by document.

A document has 1 to 3 % of the vocabulary. A batch of documents is a coalesced COO tensor until a
network asks for more; images are dense. These functions take either.

Shapes: B examples of X numbers, n entries that are not zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sparse_rows(
    rows: Int[Tensor, " n"],
    columns: Int[Tensor, " n"],
    values: Float[Tensor, " n"],
    shape: Sequence[int],
) -> Float[Tensor, "B X"]:
    """A batch of `shape` (B, X) from its entries: by rows, no place twice."""
    place = torch.stack([rows, columns])
    size = torch.Size(shape)
    return torch.sparse_coo_tensor(place, values, size, is_coalesced=True, check_invariants=False)


def entries(
    batch: Float[Tensor, "B X"],
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Row, column and value of what is not zero, by rows. A dense batch is searched for it."""
    if batch.is_sparse:
        rows, columns = batch.indices()
        return rows, columns, batch.values()
    rows, columns = batch.nonzero(as_tuple=True)
    return rows, columns, batch[rows, columns]


def some_rows(batch: Float[Tensor, "B X"], wanted: slice) -> Float[Tensor, "b X"]:
    """batch[wanted], consecutive examples; sparse tensors have no slices."""
    if not batch.is_sparse:
        return batch[wanted]
    first, last, _ = wanted.indices(len(batch))
    if (first, last) == (0, len(batch)):
        return batch
    rows, columns = batch.indices()
    ends = torch.tensor([first, last], device=rows.device)
    own = slice(*torch.searchsorted(rows, ends).tolist())
    shape = (last - first, batch.shape[1])
    return sparse_rows(rows[own] - first, columns[own], batch.values()[own], shape)
