"""Decoding a tree of images once, into shards that need no decoding: see `packed`.

A shard is the images of a fixed range of the listing, written whole or not at all, with a record
beside it. A pack that was killed goes on with the shards that have no valid record.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import torch
from torch.utils.data import Dataset

from steinvae._atomic import remove_unfinished, replacing, write_text
from steinvae._manifest import MANIFEST, check_file, digest_of, sha256_file
from steinvae.checkpoint import lock_run_dir
from steinvae.data.images.decode import square
from steinvae.data.images.faults import BadImage, BadRecords, Faults
from steinvae.data.images.layout import Listed, list_images
from steinvae.data.images.packed import (
    FORMAT,
    KIND,
    PLAN,
    check_packed,
    read_packed_manifest,
)
from steinvae.data.images.places import Places
from steinvae.data.images.processes import Results
from steinvae.logging import Progress

SHARD_BYTES = 2**26
"""A shard is as many images as fit: a second of work at 256 x 256, and what a kill can cost."""

PARTS = "parts"
_RESERVE = 2**27  # bytes left free beside what is packed


@dataclass(frozen=True)
class Shard:
    """Images `first` to `stop` - 1 of the listing of a split."""

    split: str
    number: int
    first: int
    stop: int

    @property
    def file(self) -> str:
        """Its pixels."""
        return f"{self.split}-{self.number:05d}.npy"

    @property
    def record(self) -> str:
        """What is known of it, below OUT, while OUT is being packed."""
        return f"{PARTS}/{self.split}-{self.number:05d}.json"


def pack(
    root: Path,
    out: Path,
    *,
    side: int = 256,
    bad_records: BadRecords = "raise",
    ground_truth: Path | None = None,
    workers: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Pack the images below `root` into the directory `out`; returns the manifest.

    Arguments as for `load_image_folder`. An `out` that is packed already is verified. The result
    does not depend on the number of workers, nor on how often packing was killed and begun again.

    Errors: as `load_image_folder`; ValueError where `out` holds the beginning of another pack;
    OSError where the disk is too small; RuntimeError where another process packs into `out`.
    """
    faults = Faults(bad_records)
    classes, listed = list_images(root, faults, ground_truth)
    rows = max(1, shard_bytes // (side * side * 3))
    shards = [
        Shard(split, first // rows, first, min(first + rows, len(each.labels)))
        for split, each in listed.items()
        for first in range(0, len(each.labels), rows)
    ]
    with lock_run_dir(out, "OUT"):
        plan = _plan(classes, listed, side, rows)
        _begin(out, plan)
        if (out / MANIFEST).exists():
            manifest = read_packed_manifest(out)
            check_packed(out, manifest, contents=True)
            return manifest
        records = _pack_shards(out, shards, listed, side, faults, workers)
        manifest = _finish(out, plan, classes, listed, shards, records, faults)
    return manifest


def _plan(
    classes: Sequence[str], listed: Mapping[str, Listed], side: int, rows: int
) -> dict[str, Any]:
    """What decides every byte of a pack, the sizes of files in place of what is in them, so that
    two packs are never mixed."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split, each in sorted(listed.items()):
        places = each.places
        digest.update(json.dumps([split, len(each.labels), places.paths]).encode())
        for array in (each.labels, places.which, places.names, places.stored_sizes()):
            digest.update(np.ascontiguousarray(array).tobytes())
    versions = {"pillow": PIL.__version__, "torch": torch.__version__}
    return {"listing": digest.hexdigest(), "side": side, "rows": rows, "versions": versions}


def _begin(out: Path, plan: Mapping[str, Any]) -> None:
    """Refuse an OUT of other content, and remove what a kill left half-written."""
    path = out / PLAN
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        begun = [name for name in plan if name != "versions" or not (out / MANIFEST).exists()]
        differs = [name for name in begun if found.get(name) != plan[name]]
        if differs:
            raise ValueError(
                f"OUT={out} holds another pack, which differs in {', '.join(differs)}: "
                f"{found.get(differs[0])} where this one has {plan[differs[0]]}; "
                "remove it or choose another OUT"
            )
    elif any(entry.name != ".lock" for entry in out.iterdir()):
        raise ValueError(f"OUT={out}: expected a new or empty directory, or one begun by pack")
    else:
        write_text(path, json.dumps(plan, indent=1) + "\n")
    remove_unfinished(out / PARTS)


def _pack_shards(
    out: Path,
    shards: Sequence[Shard],
    listed: Mapping[str, Listed],
    side: int,
    faults: Faults,
    workers: int,
) -> list[dict[str, Any]]:
    """The records of all shards, those of an earlier start included where they are sound."""
    known = {shard: record for shard in shards if (record := _sound(out, shard)) is not None}
    missing = [shard for shard in shards if shard not in known]
    total = sum(shard.stop - shard.first for shard in shards)
    done = sum(shard.stop - shard.first for shard in known)
    _check_space(out, sum(shard.stop - shard.first for shard in missing) * side * side * 3)
    with Progress(total, start=done, label="pack", unit="images") as progress:
        if done:
            progress.print(f"pack: {done} of {total} images are there from before, verified")
        work = _Work(out, missing, {split: each.places for split, each in listed.items()}, side)
        packed = Results(work, range(len(missing)), workers)
        for shard, record in zip(missing, packed, strict=True):
            _judge(record, shard, listed, faults)
            known[shard] = record
            done += shard.stop - shard.first
            progress.update(done)
    for shard in shards:
        if shard not in missing:
            _judge(known[shard], shard, listed, faults)
    return [known[shard] for shard in shards]


def _judge(
    record: Mapping[str, Any], shard: Shard, listed: Mapping[str, Listed], faults: Faults
) -> None:
    """The bad images of a shard, under the policy."""
    for row, reason, detail in record["bad"]:
        title = listed[shard.split].places.title(row)
        faults.add(title, reason, f"{detail}; --bad_records skip leaves such files out")


def _sound(out: Path, shard: Shard) -> dict[str, Any] | None:
    """The record of a shard that was packed before, if the shard is what it says."""
    try:
        record = json.loads((out / shard.record).read_bytes())
        check_file(out / shard.file, record["file"], True)
    except (OSError, ValueError, KeyError):
        return None  # it is packed again
    return record


def _check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed + _RESERVE:
        raise OSError(
            f"OUT={out}: expected {(needed + _RESERVE) / 1e9:.1f} GB of free disk, "
            f"got {free / 1e9:.1f} GB"
        )


class _Work(Dataset[dict[str, Any]]):
    """Shard by shard: decode, write, and say what was written."""

    def __init__(
        self, out: Path, shards: Sequence[Shard], places: Mapping[str, Places], side: int
    ) -> None:
        self._out, self._shards, self._places, self._side = out, shards, places, side

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, number: int) -> dict[str, Any]:
        shard, side = self._shards[number], self._side
        pixels = np.empty((shard.stop - shard.first, side, side, 3), dtype=np.uint8)
        bad: list[tuple[int, str, str]] = []
        filled = 0
        for row in range(shard.first, shard.stop):
            try:
                pixels[filled] = square(self._places[shard.split].read(row), side)
            except BadImage as error:
                bad.append((row, error.reason, error.detail))
            else:
                filled += 1
        pixels = pixels[:filled]
        with replacing(self._out / shard.file) as temporary, temporary.open("wb") as file:
            hashing = _Hashing(file)
            np.lib.format.write_array(hashing, pixels)  # type: ignore[arg-type]
        written = {"bytes": hashing.size, "sha256": hashing.digest.hexdigest()}
        sums = pixels.sum(axis=(0, 1, 2), dtype=np.int64).tolist()
        record = {"file": written, "images": filled, "sums": sums, "bad": bad}
        write_text(self._out / shard.record, json.dumps(record))
        return record


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """To the file and into the digest."""
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


def _finish(
    out: Path,
    plan: Mapping[str, Any],
    classes: Sequence[str],
    listed: Mapping[str, Listed],
    shards: Sequence[Shard],
    records: Sequence[Mapping[str, Any]],
    faults: Faults,
) -> dict[str, Any]:
    """Labels, names and the manifest; the records of the shards are in it and go."""
    splits: dict[str, Any] = {}
    sums, pixels = np.zeros(3, dtype=np.int64), 0
    for split, each in listed.items():
        mine = [(s, r) for s, r in zip(shards, records, strict=True) if s.split == split]
        good = np.ones(len(each.labels), dtype=bool)
        good[[row for _, record in mine for row, *_ in record["bad"]]] = False
        rows = np.flatnonzero(good)
        with replacing(out / f"{split}-labels.npy") as path:
            np.save(path, each.labels[rows])
        paths = (each.places.path(int(row)).replace("\n", "\\n") for row in rows)
        with replacing(out / f"{split}-names.txt") as path:
            path.write_bytes(os.fsencode("".join(f"{name}\n" for name in paths)))
        files = {shard.file: record["file"] for shard, record in mine}
        for name in (f"{split}-labels.npy", f"{split}-names.txt"):
            path = out / name
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        counts = [(shard.file, record["images"]) for shard, record in mine]
        splits[split] = {"images": len(rows), "shards": counts, "files": files}
        if split == "train":
            sums = sum((np.array(record["sums"]) for _, record in mine), sums)
            pixels = max(1, len(rows) * plan["side"] ** 2)
    manifest = {
        "format": FORMAT,
        "kind": KIND,
        **plan,
        "classes": list(classes),
        "mean": (sums / pixels).tolist(),
        "splits": splits,
        "skipped": faults.skipped,
        "left_out": [list(each) for each in faults.found],
    }
    text = json.dumps({**manifest, "sha256": digest_of(manifest)}, indent=1)
    write_text(out / MANIFEST, text + "\n")
    shutil.rmtree(out / PARTS)
    return manifest
