"""Classes of held-out images that lie flat in one folder, from the lists that come with them.

A list must name classes as the training folders do. Numbers alone are never taken for positions in
some order: ImageNet's own numbering is not that of the sorted folders.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping

import numpy as np

KNOWN = (
    "val_annotations.txt",
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt",
    "ground_truth.txt",
    "ground_truth.csv",
)
"""Names under which a list is found by itself: Tiny ImageNet, Kaggle, the ILSVRC development kit,
and one's own."""

META = "meta.mat"
"""Beside the development kit's list: which class has which number."""

_NUMBERS = re.compile(rb"\s*\d+\s*(\n\s*\d+\s*)*")


def read_ground_truth(title: str, data: bytes, meta: bytes | None = None) -> dict[str, str]:
    """{image: class} of a list, by what its lines look like; images with or without an ending.

    "name class ..." a line, between tabs or blanks (Tiny ImageNet's val_annotations.txt);
    "ImageId,PredictionString" (Kaggle's LOC_val_solution.csv), whose second column begins with the
    class; a number a line (the ILSVRC2012 development kit), line i for ILSVRC2012_val_<i>, with
    `meta` the content of its meta.mat.

    Errors: ValueError for other lines, for an image with two classes, and for numbers without meta.
    """
    if _NUMBERS.fullmatch(data):
        if meta is None:
            raise ValueError(
                f"{title}: expected classes by name, got numbers, and no {META} beside it says "
                "which class has which number"
            )
        names = _ilsvrc_classes(title, meta)
        pairs = [
            (f"ILSVRC2012_val_{line:08d}", _numbered(title, names, int(number)))
            for line, number in enumerate(data.split(), 1)
        ]
    else:
        pairs = _pairs(title, data.decode("utf-8-sig", "replace"))
    truth: dict[str, str] = {}
    for name, label in pairs:
        if truth.setdefault(name, label) != label:
            raise ValueError(f"{title}: {name} has two classes, {truth[name]} and {label}")
    return truth


def _pairs(title: str, text: str) -> list[tuple[str, str]]:
    lines = text.splitlines()
    if lines and lines[0].startswith("ImageId,"):
        rows = [(row[0], row[1].split()) for row in csv.reader(io.StringIO(text)) if len(row) > 1]
        return [(name, fields[0]) for name, fields in rows[1:] if fields]
    pairs = []
    for number, line in enumerate(lines, 1):
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) < 2:
            raise ValueError(f"{title}:{number}: expected an image and its class, got {line!r}")
        pairs.append((fields[0].strip(), fields[1].strip()))
    return pairs


def _numbered(title: str, names: Mapping[int, str], number: int) -> str:
    if number not in names:
        raise ValueError(f"{title}: {META} has no class of number {number}")
    return names[number]


def _ilsvrc_classes(title: str, meta: bytes) -> dict[int, str]:
    """{ILSVRC2012_ID: WNID} of the development kit's `synsets`."""
    from scipy.io import loadmat  # scikit-learn, of the extra `train`, brings it

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        numbers, names = np.atleast_1d(synsets["ILSVRC2012_ID"]), np.atleast_1d(synsets["WNID"])
        return {int(number): str(name) for number, name in zip(numbers, names, strict=True)}
    except Exception as error:  # other files make loadmat raise nearly anything
        raise ValueError(f"{title}: {META} is not the development kit's: {error}") from error
