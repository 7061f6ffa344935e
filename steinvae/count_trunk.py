"""The first layers of recognition networks on counts: tanh of linear maps of log(1 + n).

A count of 50 says little more than one of 10; on 20 Newsgroups log(1 + n) and raw counts differ by
less than 2 % in perplexity, and log(1 + n) is safe for long documents.

A document has 1 to 3 % of the vocabulary, so the first product goes over its words alone, as an
embedding bag (`python -m bench.documents` has what that saves).

Shapes: B documents over V words, H features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from steinvae.models.mlp import TanhMlp
from steinvae.sparse_rows import entries


class CountTrunk(TanhMlp):
    """`TanhMlp` on log(1 + n); takes counts."""

    def __init__(self, widths: Sequence[int], generator: torch.Generator) -> None:
        """widths are V, then those of the hidden layers."""
        super().__init__(widths, generator)
        first = self.first
        # (H, V) as ever, but a word's H weights lie side by side in memory, as the bag reads them.
        first.weight = nn.Parameter(first.weight.detach().T.contiguous().T)

    @property
    def first(self) -> nn.Linear:
        """The layer that sees words."""
        return self.hidden[0] if len(self.hidden) else self.last  # type: ignore[return-value]

    def forward(self, x: Float[Tensor, "B V"]) -> Float[Tensor, "B H"]:
        """Counts (B, V) -> (B, H), before the last layer's tanh."""
        rows, words, counts = entries(x)
        number = torch.bincount(rows, minlength=len(x))
        found = F.embedding_bag(
            words,
            self.first.weight.T,
            number.cumsum(0) - number,
            mode="sum",
            per_sample_weights=counts.log1p(),
        )
        found = found + self.first.bias
        for layer in [*self.hidden, self.last][1:]:
            found = layer(found.tanh())
        return found
