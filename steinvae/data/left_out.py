"""What a data set was made without, so that no run is silent about it."""

from __future__ import annotations

from typing import Any

import torch

from steinvae.data.dataset import Dataset

SHOWN = 5
"""Names of classes in a line at most."""


def skipped(dataset: Dataset[Any]) -> dict[str, int]:
    """Files, lines and labels that `data.bad_records skip` left out, by reason."""
    return dict(getattr(dataset, "skipped", {}))


def lost_classes(dataset: Dataset[Any]) -> dict[str, list[str]]:
    """By split, the classes that have no image in it; splits that lack none are not there.

    Of classes with names. A validation split that is cut from the training images may be smaller
    than the number of classes, and is not looked at.
    """
    classes = getattr(dataset, "classes", None)
    if classes is None:
        return {}
    stores = [getattr(split, "store", split) for split in (dataset.train, dataset.validation)]
    cut = stores[0] is stores[1]
    lost = {}
    for part in ("train", "test") if cut else ("train", "validation", "test"):
        labels = getattr(getattr(dataset, part), "labels", None)
        if labels is None:
            continue  # a data set of one's own
        counts = torch.bincount(labels, minlength=len(classes))
        names = [classes[label] for label in (counts == 0).nonzero().flatten().tolist()]
        if names:
            lost[part] = names
    return lost


def shown(counts: dict[str, int]) -> str:
    """`skipped` in a line."""
    return ", ".join(f"{count} x {reason}" for reason, count in counts.items())


def names_shown(classes: list[str]) -> str:
    """The first of the classes, and how many more there are."""
    more = len(classes) - SHOWN
    return ", ".join(classes[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def warnings(dataset: Dataset[Any]) -> list[str]:
    """Lines to print when the data set is loaded; none where nothing is missing."""
    counts = skipped(dataset)
    lines = [f"data: left out {shown(counts)}"] if counts else []
    for part, classes in lost_classes(dataset).items():
        lines.append(
            f"warning: data: the {part} split has no image of {names_shown(classes)} "
            f"({len(classes)} of {len(dataset.classes)} classes)"  # type: ignore[attr-defined]
        )
    return lines
