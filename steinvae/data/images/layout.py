"""Which split and class a folder of images stands for: the trees in which ImageNet is found.

train/<class>/*.JPEG, val/<class>/*.JPEG; the same inside tars, cut into shards in any way; val flat
with a list of classes; Tiny ImageNet's train/<class>/images; ILSVRC2012_img_train.tar, whose
members are a tar a class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from steinvae.data.images.faults import (
    ABSENT,
    STRANGE,
    UNKNOWN,
    UNLABELLED,
    VACANT,
    Faults,
)
from steinvae.data.images.ground_truth import KNOWN, META, read_ground_truth
from steinvae.data.images.listing import Folder, Member, Part, read_bytes, walk
from steinvae.data.images.places import Places, places

ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
"""Of the names of images, in any case. What an image is its content decides."""

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
IGNORED = re.compile(r".*_boxes\.txt|Thumbs\.db|.*\.xml")
"""Files that belong among images: Tiny ImageNet's boxes, thumbnails, annotations."""

_SPLITS: dict[str, str] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True, eq=False)
class Listed:
    """The images of one split."""

    places: Places
    labels: np.ndarray
    """(N,) int64: positions in the classes."""


File = tuple[Folder, Member]


def list_images(
    root: Path, faults: Faults, ground_truth: Path | None = None
) -> tuple[tuple[str, ...], dict[str, Listed]]:
    """The sorted classes below `root`, a directory or a tar, and the images of every split.

    Images are in the order of class and name, on every machine. Classes are the folders of the
    training split, numbered even where a class has no image, so that what is skipped never moves
    the number of another. A test split without classes is left out.

    Errors: FileNotFoundError where `root` does not exist; ValueError for trees of another form, for
    two trees, for the same image twice, and for what the policy of `faults` does not let pass.
    """
    labelled: dict[str, dict[str, list[File]]] = {"train": {}, "val": {}, "test": {}}
    flat: dict[str, list[File]] = {"train": [], "val": [], "test": []}
    folders, above = walk(root, faults), {}
    for folder in folders:
        split, label = describe(folder)
        _check_compressed(folder)
        if split is None:
            continue
        _check_one_tree(root, folder, split, above)
        if label is None:
            flat[split].extend((folder, m) for m in folder.members if is_image(m.name))
        else:
            images = [(folder, m) for m in folder.members if _wanted(folder, m, faults)]
            labelled[split].setdefault(label, []).extend(images)
    classes = tuple(sorted(labelled["train"]))
    if not classes:
        raise ValueError(f"data.root={root}: expected images in train/<class>/, found none")
    truth = _find_truth(folders, ground_truth) if flat["val"] else {}
    if flat["val"] and not truth:
        raise ValueError(
            f"data.root={root}: the images of val lie flat in one folder, and none of "
            f"{', '.join(KNOWN)} says which class they have; give ground_truth"
        )
    _add_flat(labelled["val"], flat["val"], truth, faults)
    for folder, member in flat["train"]:
        faults.add(f"{folder.title}/{member.name}", UNLABELLED)
    found = {split: _listed(classes, labelled[split], faults) for split in labelled}
    for index in np.flatnonzero(np.bincount(found["train"].labels, minlength=len(classes)) == 0):
        faults.add(f"{root}: train/{classes[index]}", VACANT)
    return classes, {split: each for split, each in found.items() if len(each.labels)}


def is_image(name: str) -> bool:
    """By the ending of its name."""
    return name.lower().endswith(ENDINGS)


def describe(folder: Folder) -> tuple[str | None, str | None]:
    """(split, class) of a folder; None for what it does not say.

    The split is the first part of the path that names one: a folder by its whole name, a tar by a
    word of it (imagenet-train-0007.tar). A tar is a class where ImageNet's are: where the names of
    all its members begin with its own. Errors: ValueError for a folder within a class.
    """
    first = _place_of_split(folder)
    if first is None:
        return None, None
    below = list(folder.parts[first + 1 :])
    if below and below[-1] == Part("images", False):  # Tiny ImageNet
        below.pop()
    own = bool(folder.members) and all(
        member.name.startswith(f"{folder.parts[-1].name}_") for member in folder.members
    )
    labels = [part.name for part in below if not part.is_tar or (part is below[-1] and own)]
    if len(labels) > 1:
        raise ValueError(
            f"{folder.title}: expected {folder.parts[first].name}/<class>/<image>, "
            "got a folder within a class"
        )
    return _split(folder.parts[first]), labels[0] if labels else None


def _place_of_split(folder: Folder) -> int | None:
    """Of the first part of its path that names one."""
    named = enumerate(map(_split, folder.parts))
    return next((place for place, split in named if split is not None), None)


def _check_one_tree(root: Path, folder: Folder, split: str, above: dict[str, Folder]) -> None:
    """Of two data sets the test images of one may be training images of the other.

    Tars above a split are shards of one tree; annotations beside it have the folders of a split and
    no image. `above` has the first folder of each split. Errors: ValueError naming both places.
    """
    if not any(is_image(member.name) for member in folder.members):
        return
    before, now = _above_split(above.setdefault(split, folder)), _above_split(folder)
    if before != now:
        places = " and ".join("/".join((*names, "")) or "./" for names in sorted((before, now)))
        raise ValueError(
            f"data.root={root}: {split} images lie below both {places}: two data sets; "
            "give the folder of one of them"
        )


def _above_split(folder: Folder) -> list[str]:
    parts = folder.parts[: _place_of_split(folder)]
    return [part.name for part in parts if not part.is_tar]


def _split(part: Part) -> str | None:
    words = re.split(r"[-_.]", part.name.lower()) if part.is_tar else [part.name.lower()]
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def _check_compressed(folder: Folder) -> None:
    """A shard that cannot be read in place must not be left out in silence."""
    for member in folder.members:
        if member.name.endswith(COMPRESSED):
            part = Part(member.name.partition(".")[0], True)
            if describe(Folder(folder.container, (*folder.parts, part)))[0] is not None:
                raise ValueError(
                    f"{folder.title}/{member.name}: expected an uncompressed tar, which can be "
                    "read in place"
                )


def _wanted(folder: Folder, member: Member, faults: Faults) -> bool:
    if is_image(member.name):
        return True
    if not IGNORED.fullmatch(member.name):
        faults.add(f"{folder.title}/{member.name}", STRANGE)
    return False


def _find_truth(folders: Sequence[Folder], given: Path | None) -> dict[str, str]:
    """Of the file that was given, or of the first one with a known name."""
    if given is not None:
        meta = given.with_name(META)
        content = meta.read_bytes() if meta.is_file() else None
        return read_ground_truth(str(given), given.read_bytes(), content)
    for name in KNOWN:
        for folder in folders:
            files = {member.name: member for member in folder.members}
            if name in files:
                content = read_bytes(folder.container, files[META]) if META in files else None
                data = read_bytes(folder.container, files[name])
                return read_ground_truth(f"{folder.title}/{name}", data, content)
    return {}


def _add_flat(
    labelled: dict[str, list[File]],
    flat: Sequence[File],
    truth: Mapping[str, str],
    faults: Faults,
) -> None:
    """Put flat images where the list says; every line must have met an image."""
    met = set()
    for folder, member in flat:
        stem = member.name.rpartition(".")[0]
        key = member.name if member.name in truth else stem
        if key not in truth:
            faults.add(f"{folder.title}/{member.name}", UNLABELLED)
            continue
        met.add(key)
        labelled.setdefault(truth[key], []).append((folder, member))
    for name in truth if flat else ():
        if name not in met:
            faults.add(f"val: {name}", ABSENT)


def _listed(
    classes: Sequence[str], labelled: Mapping[str, Sequence[File]], faults: Faults
) -> Listed:
    number = {name: index for index, name in enumerate(classes)}
    files: list[File] = []
    labels: list[int] = []
    for name in sorted(labelled):
        images = sorted(labelled[name], key=lambda file: file[1].name)
        for (first, member), (second, other) in pairwise(images):
            if member.name == other.name:
                raise ValueError(
                    f"{second.title}/{other.name}: the same image as in {first.title}; "
                    "expected every image once below data.root"
                )
        if name in number:
            files.extend(images)
            labels.extend([number[name]] * len(images))
            continue
        for folder, member in images:
            faults.add(f"{folder.title}/{member.name}", UNKNOWN, name)
    return Listed(places(files), np.array(labels, dtype=np.int64))
