"""Which data: the settings under `data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steinvae.config._checks import require

Binarization = Literal["fixed", "dynamic", "none"]
COUNTS = ("20news", "nyt", "rcv1", "bag_of_words")
"""Data sets of documents as counts of words."""

CLASSES = {"digits": 10, "mnist": 10}
"""C, of every data set in memory whose images have labels. Binarised MNIST has none: its rows are
in an order of their own. Images in files say themselves which classes they have."""

IN_FILES = "image_folder"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images or documents are modelled."""

    name: Literal[
        "digits",
        "mnist",
        "binarized_mnist",
        "20news",
        "nyt",
        "rcv1",
        "bag_of_words",
        "image_folder",
    ] = "digits"
    """Data set: scikit-learn's 8x8 digits (offline), MNIST, or Larochelle's binarised MNIST; counts
    of words: 20 Newsgroups, New York Times, RCV1, or files of one's own (bag_of_words); colour
    images in files, ImageNet and its like (image_folder)."""

    root: str | None = None
    """Directory that holds the data files; not used by digits."""

    binarization: Binarization = "fixed"
    """fixed: one draw for ever; dynamic: a new draw at every visit; none: grey levels in [0, 1].
    Nothing binarises counts."""

    bad_records: Literal["raise", "skip"] = "raise"
    """A bad line of a file of counts, a bad file of image_folder: an error that names it, or left
    out and counted."""

    side: int = 256
    """Short side of the images of image_folder in pixels, of which the middle square is kept."""

    crop: int = 224
    """Side in pixels of what networks see of it: a random crop in training, else the middle."""

    workers: int = 0
    """Processes that prepare the next minibatches of image_folder; 0: the training process."""

    labels_per_class: int | None = None
    """Training images of each class whose label is used; the rest train without one."""

    label_fraction: float | None = None
    """The same as a fraction of each class, between 0 and 1."""

    split_seed: int = 0
    """Seed of the choice of labelled images, whatever the seed of the run."""

    def __post_init__(self) -> None:
        self._check_labels()
        require(self.workers >= 0, "data.workers", "0 or more", self.workers)
        within = 1 <= self.crop <= self.side
        require(within, "data.crop", f"between 1 and data.side ({self.side})", self.crop)
        only_fixed = self.name == "binarized_mnist"
        require(
            not only_fixed or self.binarization == "fixed",
            "data.binarization",
            "'fixed' for data.name binarized_mnist, whose grey levels are not distributed",
            self.binarization,
        )

    @property
    def labelled(self) -> bool:
        """Whether labels are in use."""
        return self.labels_per_class is not None or self.label_fraction is not None

    def _check_labels(self) -> None:
        count, fraction, seed = self.labels_per_class, self.label_fraction, self.split_seed
        require(count is None or count >= 1, "data.labels_per_class", "at least 1", count)
        between = fraction is None or 0 < fraction < 1
        require(between, "data.label_fraction", "between 0 and 1", fraction)
        both = "left out where data.labels_per_class is given"
        require(count is None or fraction is None, "data.label_fraction", both, fraction)
        require(0 <= seed < 2**32, "data.split_seed", "between 0 and 2**32 - 1", seed)
        unused = "0 where data.labels_per_class and data.label_fraction choose no labels"
        require(self.labelled or seed == 0, "data.split_seed", unused, seed)
        known = sorted([*CLASSES, IN_FILES])
        named = f"one of {known}, whose images have labels, for data.labels_per_class"
        require(not self.labelled or self.name in known, "data.name", named, self.name)
