"""A data set of images from a tree of files: ImageNet, Tiny ImageNet, or one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from steinvae.data.digits import stratified_split
from steinvae.data.images.decode import square
from steinvae.data.images.faults import BadImage, BadRecords, Faults
from steinvae.data.images.layout import Listed, list_images
from steinvae.data.images.places import Places
from steinvae.data.images.processes import Results
from steinvae.data.images.split import (
    IMAGENET_MEAN,
    FileStore,
    ImageDataset,
    ImageSplit,
    Store,
)
from steinvae.logging import Progress

VALIDATION_SHARE, LARGEST_VALIDATION = 20, 10_000
"""One training image of 20 is for validation, 10,000 at most."""

_AT_ONCE = 64  # images that a process checks before it answers


def load_image_folder(
    root: str | Path,
    *,
    side: int = 256,
    crop: int = 224,
    bad_records: BadRecords = "raise",
    ground_truth: str | Path | None = None,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    workers: int = 0,
) -> ImageDataset:
    """Images below `root`, as `steinvae.data.images.layout` describes; nothing is decoded yet.

    Test images are those of val/, or of test/ where it has classes and val/ is for validation; else
    validation images are cut from every training class alike, the same for ever. As the paper does
    after Krizhevsky et al. 2012, the short side becomes `side` pixels and the middle square is
    kept; training takes random crops of it, half of them mirrored, the rest the central crop.

    Args:
        root: a directory, or a tar.
        side: of the square, in pixels; Tiny ImageNet has 64.
        crop: of the model's input, in pixels, at most `side`.
        bad_records: what happens to a file that is no usable image and to a label that fits none.
            "raise" names the file, for an image when a batch asks for it. "skip" decodes every
            image once now, since none may vanish from an epoch that has begun, leaves the bad ones
            out and counts them in `ImageDataset.skipped`; `python -m steinvae.data.pack` does that
            once for all.
        ground_truth: the list of classes of a flat val/, where it has no known name.
        mean: what `ImageSplit.batch` subtracts, in grey levels.
        workers: processes that decode for "skip".

    Errors: FileNotFoundError and ValueError, see `list_images`.
    """
    if bad_records not in get_args(BadRecords):
        raise ValueError(f"data.bad_records: expected raise or skip; got {bad_records!r}")
    faults = Faults(bad_records)
    truth = None if ground_truth is None else Path(ground_truth)
    classes, listed = list_images(Path(root), faults, truth)
    if bad_records == "skip":
        listed = {name: _usable(name, each, side, faults, workers) for name, each in listed.items()}
    return assemble(
        {name: FileStore(each.places, side) for name, each in listed.items()},
        {name: torch.from_numpy(each.labels) for name, each in listed.items()},
        classes=classes,
        crop=crop,
        mean=mean,
        skipped=faults.skipped,
    )


def assemble(
    stores: Mapping[str, Store],
    labels: Mapping[str, Tensor],
    *,
    classes: tuple[str, ...],
    crop: int,
    mean: tuple[float, float, float],
    skipped: Mapping[str, int],
) -> ImageDataset:
    """The data set of what was found. Errors: ValueError where nothing is left to test on."""
    stores = {name: store for name, store in stores.items() if len(store)}
    if "train" not in stores:
        raise ValueError("data.root: expected training images, every one is bad")
    if len(stores) < 2:
        raise ValueError("data.root: expected images with classes in val/ or test/, found none")
    count = len(stores["train"])
    rows: dict[str, Tensor] = {"train": torch.arange(count)}
    names: dict[str, str] = {"validation": "val", "test": "test"}
    if len(stores) < 3:
        held = min(LARGEST_VALIDATION, max(1, count // VALIDATION_SHARE))
        kept, cut, _ = stratified_split(labels["train"].numpy(), held, 0)
        rows = {"train": kept.sort().values, "validation": cut.sort().values}
        names = {"validation": "train", "test": "val" if "val" in stores else "test"}
    parts = {}
    for part, name in {"train": "train", **names}.items():
        chosen = rows.get(part, torch.arange(len(stores[name])))
        parts[part] = ImageSplit(
            store=stores[name],
            chosen=chosen,
            labels=labels[name][chosen],
            crop=crop,
            random=part == "train",
            mean=mean,
        )
    return ImageDataset(
        name="image_folder",
        binarization="none",
        binarization_seed=None,
        image_shape=(3, crop, crop),
        classes=classes,
        skipped=skipped,
        **parts,
    )


def _usable(name: str, listed: Listed, side: int, faults: Faults, workers: int) -> Listed:
    """Without the images that cannot be decoded, each of which is counted."""
    check = _Check(listed.places, side)
    good = np.ones(len(listed.labels), dtype=bool)
    with Progress(len(good), label=f"checking {name}", unit="images") as progress:
        for number, bad in enumerate(Results(check, range(len(check)), workers)):
            for row, reason, detail in bad:
                good[row] = False
                faults.add(listed.places.title(row), reason, detail)
            progress.update(min(len(good), (number + 1) * _AT_ONCE))
    rows = np.flatnonzero(good)
    return Listed(listed.places[rows], listed.labels[rows])


class _Check(TorchDataset[list[tuple[int, str, str]]]):
    """The bad ones of every `_AT_ONCE` images."""

    def __init__(self, places: Places, side: int) -> None:
        self._places, self._side = places, side

    def __len__(self) -> int:
        return -(-len(self._places) // _AT_ONCE)

    def __getitem__(self, part: int) -> list[tuple[int, str, str]]:
        bad = []
        for row in range(part * _AT_ONCE, min(len(self._places), (part + 1) * _AT_ONCE)):
            try:
                square(self._places.read(row), self._side)
            except BadImage as error:
                bad.append((row, error.reason, error.detail))
        return bad
