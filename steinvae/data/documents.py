"""Documents as bags of words, kept as compressed rows: what a split of counts is.

Shapes: N documents over V words, batches of B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.data.count_files import Bags
from steinvae.data.dataset import Dataset
from steinvae.sparse_rows import sparse_rows

SPLIT_SEED = 0
VALIDATION_SHARE, LARGEST_VALIDATION = 20, 10_000
"""One training document of 20 is for validation, 10,000 at most."""

_AT_ONCE = 2**16
"""Documents counted together: the temporaries of a million would be as large as they."""


@dataclass(frozen=True, eq=False)
class Documents:
    """One split of a bag-of-words data set; 8 bytes an entry, whatever the vocabulary is."""

    bags: Bags
    """Rows that may be shared with another split."""

    vocabulary_size: int

    chosen: np.ndarray
    """(N,) int64: the row of each document."""

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def features(self) -> int:
        """V, words in the vocabulary."""
        return self.vocabulary_size

    @property
    def lengths(self) -> Float[Tensor, " N"]:
        """Words in each document, repetitions counted; float64."""
        every = np.add.reduceat(self.bags.counts, self.bags.start[:-1], dtype=np.int64)
        return torch.from_numpy(every[self.chosen]).double()

    @property
    def totals(self) -> Float[Tensor, " V"]:
        """How often each word occurs in the split; float64."""
        total = torch.zeros(self.vocabulary_size, dtype=torch.float64)
        for part in torch.arange(len(self)).split(_AT_ONCE):
            _, words, counts = self.entries(part)
            total.index_add_(0, words, counts.double())
        return total

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Counts of the documents at `indices`, (B,) int64 -> (B, V) float32 on the CPU.

        Sparse (`sparse_rows`). Errors: TypeError for other index dtypes; ValueError for indices out
        of range.
        """
        shape = torch.Size((len(indices), self.vocabulary_size))
        return sparse_rows(*self.entries(indices), shape)

    def entries(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same as (row of the batch, word, count) of every entry: int64, int64, float32."""
        if indices.dtype != torch.int64 or indices.ndim != 1:
            raise TypeError(f"Documents: indices must be (B,) int64, got {indices.dtype}")
        wanted = indices.numpy()
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            low, high = wanted.min(), wanted.max()
            raise ValueError(
                f"Documents: indices must lie in 0..{len(self) - 1}, got {low}..{high}"
            )
        first = self.bags.start[self.chosen[wanted]]
        lengths = self.bags.start[self.chosen[wanted] + 1] - first
        before = np.cumsum(lengths) - lengths
        at = np.repeat(first - before, lengths) + np.arange(int(lengths.sum()))
        return (
            torch.from_numpy(np.repeat(np.arange(len(wanted)), lengths)),
            torch.from_numpy(self.bags.words[at].astype(np.int64)),
            torch.from_numpy(self.bags.counts[at].astype(np.float32)),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class CountDataset(Dataset[Documents]):
    """Three splits of documents over one vocabulary."""

    vocabulary: tuple[str, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Lines left out, by reason."""

    @property
    def title(self) -> str:
        """Name for reports."""
        return self.name


def split(
    name: str,
    train: Bags,
    test: Bags,
    vocabulary: tuple[str, ...],
    skipped: Mapping[str, int],
) -> CountDataset:
    """The data set with validation documents cut from the training ones, the same for ever."""
    whole, last = len(train.start) - 1, len(test.start) - 1
    if whole < 2 or last < 1:
        raise ValueError(f"data.name {name}: needs two training documents and one for testing")
    count = min(LARGEST_VALIDATION, max(1, whole // VALIDATION_SHARE))
    order = np.random.RandomState(SPLIT_SEED).permutation(whole)  # frozen stream (NEP 19)
    return CountDataset(
        name=name,
        binarization="none",
        binarization_seed=None,
        image_shape=None,
        train=Documents(train, len(vocabulary), np.sort(order[count:])),
        validation=Documents(train, len(vocabulary), np.sort(order[:count])),
        test=Documents(test, len(vocabulary), np.arange(last)),
        vocabulary=vocabulary,
        skipped=dict(skipped),
    )
