"""Which data: the settings under `data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steinvae.config._checks import require

Binarization = Literal["fixed", "dynamic", "none"]
COUNTS = ("20news", "nyt", "rcv1", "bag_of_words")
"""Data sets of documents as counts of words."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images or documents are modelled."""

    name: Literal["digits", "mnist", "binarized_mnist", "20news", "nyt", "rcv1", "bag_of_words"] = (
        "digits"
    )
    """Data set: scikit-learn's 8x8 digits (offline), MNIST, or Larochelle's binarised MNIST; counts
    of words: 20 Newsgroups, New York Times, RCV1, or files of one's own (bag_of_words)."""

    root: str | None = None
    """Directory that holds the data files; not used by digits."""

    binarization: Binarization = "fixed"
    """fixed: one draw for ever; dynamic: a new draw at every visit; none: grey levels in [0, 1].
    Nothing binarises counts."""

    bad_records: Literal["raise", "skip"] = "raise"
    """A bad line of a file of counts: an error that names it, or left out and counted."""

    def __post_init__(self) -> None:
        only_fixed = self.name == "binarized_mnist"
        require(
            not only_fixed or self.binarization == "fixed",
            "data.binarization",
            "'fixed' for data.name binarized_mnist, whose grey levels are not distributed",
            self.binarization,
        )
