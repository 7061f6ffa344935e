"""Packed images: shards of uint8 squares with labels and a manifest, read through memory maps.

OUT/manifest.json  classes, sides, counts, the mean, what was skipped; size and SHA-256 of each file
OUT/train-00000.npy ...  (n, side, side, 3) uint8, as any NumPy reads it
OUT/train-labels.npy  (N,) int64;  OUT/train-names.txt  where each image came from, a line each
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steinvae._manifest import MANIFEST, check_file, read_manifest
from steinvae.data.images.faults import BadRecords
from steinvae.data.images.load import assemble, load_image_folder
from steinvae.data.images.split import IMAGENET_MEAN, ImageDataset

FORMAT = 1
"""Version of this layout. A reader accepts its own version and refuses newer ones."""

KIND = "images"
PLAN = "plan.json"
"""What decides the bytes of a pack, written when it is begun."""

_MAX_BYTES = 2**26  # of a manifest; that of ImageNet at 256 x 256 has 0.6 MB


@dataclass(eq=False)
class PackedStore:
    """Squares in memory-mapped shards; a map holds no file open and is made at first use."""

    folder: Path
    shards: Sequence[tuple[str, int, int]]
    """(file, images, bytes)."""

    side: int
    _maps: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._ends = np.cumsum([images for _, images, _ in self.shards])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": {}}  # another process makes its own

    def read(self, index: int) -> np.ndarray:
        """(side, side, 3) uint8, a view of the map."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        if shard not in self._maps:
            self._maps[shard] = self._map(shard)
        return self._maps[shard][index - self._ends[shard]]

    def _map(self, shard: int) -> np.ndarray:
        name, images, size = self.shards[shard]
        path = self.folder / name
        # torch closes the file behind the map; numpy would keep one open for each of 4,000 shards
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        pixels = data[size - images * self.side**2 * 3 :]
        return pixels.view(images, self.side, self.side, 3).numpy()


def load_packed(
    root: str | Path,
    *,
    crop: int = 224,
    mean: tuple[float, float, float] | None = None,
    verify: bool = False,
) -> ImageDataset:
    """The data set that `python -m steinvae.data.pack` wrote into `root`.

    It gives the same batches as `load_image_folder` of the packed tree, bit for bit, where sides,
    crop and mean are the same; there is nothing left to decode.

    Args:
        crop: of the model's input, in pixels, at most the side that was packed.
        mean: what `ImageSplit.batch` subtracts, in grey levels; by default that of the packed
            training images.
        verify: compare every file with its SHA-256; else its size alone.

    Errors: ValueError naming the file that is missing or differs from the manifest.
    """
    folder = Path(root)
    manifest = read_packed_manifest(folder)
    check_packed(folder, manifest, contents=verify)
    splits: Mapping[str, Any] = manifest["splits"]
    labels = {}
    for name, split in splits.items():
        check_file(folder / f"{name}-labels.npy", split["files"][f"{name}-labels.npy"], True)
        rows = np.load(folder / f"{name}-labels.npy", allow_pickle=False)
        labels[name] = torch.from_numpy(rows.astype(np.int64))
    stores = {
        name: PackedStore(
            folder,
            [(file, n, split["files"][file]["bytes"]) for file, n in split["shards"]],
            manifest["side"],
        )
        for name, split in splits.items()
    }
    for name, store in stores.items():
        if len(store) != len(labels[name]):
            raise ValueError(
                f"{folder}: expected {len(store)} labels of {name}, got {len(labels[name])}"
            )
    red, green, blue = manifest["mean"]
    return assemble(
        stores,
        labels,
        classes=tuple(manifest["classes"]),
        crop=crop,
        mean=(red, green, blue) if mean is None else mean,
        skipped=manifest["skipped"],
    )


def load_images(
    root: str | Path | None,
    *,
    side: int,
    crop: int,
    bad_records: BadRecords = "raise",
    workers: int = 0,
) -> ImageDataset:
    """Images below `root`, packed ones where it holds a pack, else as `load_image_folder`; the same
    batches of both.

    Errors: ValueError where there is no root, or where `side` is not that of packed images.
    """
    if root is None:
        raise ValueError("data.root must be given for data.name image_folder: a tree or a tar")
    if not is_packed(Path(root)):
        arguments: dict[str, Any] = {"bad_records": bad_records, "workers": workers}
        return load_image_folder(root, side=side, crop=crop, **arguments)
    packed = read_packed_manifest(Path(root))["side"]
    if packed != side:
        raise ValueError(f"data.side must be {packed}, that of the packed images, got {side}")
    return load_packed(root, crop=crop, mean=IMAGENET_MEAN)


def is_packed(root: Path) -> bool:
    """Whether a pack lies there; a tree may have a manifest.json of another make."""
    path = root / MANIFEST
    if not path.is_file() or (root / PLAN).is_file():
        return path.is_file()
    if path.stat().st_size > _MAX_BYTES:
        return False
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("kind") == KIND


def read_packed_manifest(folder: Path) -> dict[str, Any]:
    """Errors: FileNotFoundError and ValueError naming what is wrong with it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"data.root={folder}: expected a directory of packed images")
    manifest = read_manifest(folder / MANIFEST, "pack", FORMAT, _MAX_BYTES)
    if manifest.get("kind") != KIND:
        raise ValueError(f"{folder / MANIFEST}: expected packed images, got another manifest")
    return manifest


def check_packed(folder: Path, manifest: Mapping[str, Any], *, contents: bool) -> int:
    """Compare all files with the manifest; returns how many there are."""
    files = {name: entry for s in manifest["splits"].values() for name, entry in s["files"].items()}
    for name, entry in files.items():
        check_file(folder / name, entry, contents)
    return len(files)
