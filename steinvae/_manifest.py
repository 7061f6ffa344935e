"""The manifest of a directory: size and SHA-256 of its files, and a digest of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
"""Version of the checkpoint layout. A reader accepts its own version and refuses newer ones."""

MANIFEST = "manifest.json"
_MAX_BYTES = 2**16  # a checkpoint's has about 400; a larger one is not read


def write_manifest(folder: Path, step: int, names: Sequence[str]) -> None:
    """Write `folder`/manifest.json over the files `names`."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in names
    }
    body = {"format": FORMAT, "step": step, "files": files}
    text = json.dumps({**body, "sha256": digest_of(body)}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def verify(folder: Path, names: Sequence[str], *, contents: bool = True) -> int:
    """The step of a directory whose files `names` are as the manifest says.

    `contents=False` compares sizes alone, which finds truncation without reading the files.

    Errors: FileNotFoundError where there is nothing; ValueError naming the file and the fault.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: there is no such checkpoint")
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a checkpoint directory, got a file; "
            "single files (torch.save, pickle) are never opened"
        )
    manifest = read_manifest(folder / MANIFEST, "checkpoint", FORMAT, _MAX_BYTES)
    if not isinstance(manifest.get("step"), int):
        raise ValueError(f"{folder / MANIFEST}: expected an integer step")
    files = manifest.get("files")
    if not isinstance(files, dict) or sorted(files) != sorted(names):
        raise ValueError(f"{folder / MANIFEST}: expected the files {sorted(names)}, got {files}")
    for name in names:
        check_file(folder / name, files[name], contents)
    return manifest["step"]


def read_manifest(path: Path, what: str, version: int, max_bytes: int) -> dict[str, Any]:
    """A JSON object with a "format" up to `version` that fits its own "sha256", which it loses.

    Errors: ValueError naming the fault; `what` it describes is named where its format is newer.
    """
    if not path.is_file():
        raise ValueError(f"{path}: the manifest is missing")
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{path}: expected a manifest, got {path.stat().st_size} bytes")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise ValueError(f"{path}: expected a JSON object with an integer 'format'")
    if manifest["format"] > version:
        raise ValueError(
            f"{path}: the {what} has format {manifest['format']}, this version of steinvae "
            f"reads up to {version}; install a newer version to read it"
        )
    digest = manifest.pop("sha256", None)
    if digest != digest_of(manifest):
        raise ValueError(f"{path}: the manifest does not match its own checksum (damaged)")
    return manifest


def check_file(path: Path, entry: Any, contents: bool) -> None:
    """Compare a file with {"bytes", "sha256"}; ValueError naming the fault."""
    if not isinstance(entry, dict) or entry.keys() != {"bytes", "sha256"}:
        raise ValueError(f"{path}: expected size and checksum in the manifest, got {entry}")
    if not path.is_file():
        raise ValueError(f"{path}: the file is missing")
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(f"{path}: expected {entry['bytes']} bytes, got {path.stat().st_size}")
    if contents and sha256_file(path) != entry["sha256"]:
        raise ValueError(f"{path}: the content does not match its SHA-256 (damaged)")


def sha256_file(path: Path) -> str:
    """In hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and numbers, in hexadecimal; the order does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of(body: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a manifest without its own "sha256"."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
