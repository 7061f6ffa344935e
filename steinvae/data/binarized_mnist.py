"""Larochelle's fixed binarisation of MNIST: 50,000 / 10,000 / 10,000 rows of 784 bits."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from steinvae.data.dataset import Binarization, Dataset, Split
from steinvae.data.files import find_files
from steinvae.data.registry import register

IMAGE_SHAPE = (28, 28)
PIXELS = 784
ROWS = {"train": 50_000, "valid": 10_000, "test": 10_000}
FOLDERS = (".", "binarized_mnist")
NPZ = "binarized_mnist.npz"
AMAT = tuple(f"binarized_mnist_{key}.amat" for key in ROWS)
_CHUNK = 4096  # rows checked at once
_NPY_HEADER = 4096  # bytes; the header NumPy writes for such an array has 128


@register("binarized_mnist")
def load(root: Path | None, binarization: Binarization, seed: int) -> Dataset:
    """The bits drawn once by Larochelle & Murray (2011), the set on which NLLs are compared.

    Files, in `root` or `root`/binarized_mnist: `binarized_mnist.npz` (keys train, valid, test: rows
    packed by `np.packbits`) or the three text files `binarized_mnist_{train,valid,test}.amat`. The
    rows are not in MNIST's order and carry no labels. `seed` is unused.

    Errors: ValueError for a binarisation other than "fixed", because the grey levels are not there.
    """
    if binarization != "fixed":
        raise ValueError(
            "data.binarization: binarized_mnist holds bits without the grey levels behind them, "
            f"so only 'fixed' is possible, got {binarization!r}; use data.name=mnist for that"
        )
    splits = [Split(pixels=bits, levels=1) for bits in _read_any(root)]
    return Dataset(
        name="binarized_mnist",
        binarization="fixed",
        binarization_seed=None,
        image_shape=IMAGE_SHAPE,
        train=splits[0],
        validation=splits[1],
        test=splits[2],
    )


def _read_any(root: Path | None) -> list[Tensor]:
    """Bits of the three splits, from whichever form of the files is there."""
    paths = find_files(root, "binarized MNIST", FOLDERS, [(NPZ,)], [(name,) for name in AMAT])
    if len(paths) == 1:
        return read_packed(paths[0])
    return [read_amat(path, rows) for path, rows in zip(paths, ROWS.values(), strict=True)]


def read_packed(path: Path) -> list[Tensor]:
    """The npz's three keys as (rows, 784) uint8 bits; object arrays are refused, not unpickled."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected an npz (zip) file, got something else")
    try:
        with zipfile.ZipFile(path) as members, np.load(path, allow_pickle=False) as archive:
            for key, rows in ROWS.items():
                _check_member(path, members, key, rows)
            return [_unpack(path, archive, key, rows) for key, rows in ROWS.items()]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path}: expected a complete npz file, got: {error}") from error


def _check_member(path: Path, members: zipfile.ZipFile, key: str, rows: int) -> None:
    """Refuse by name and size before anything is unpacked, so that a zip bomb stays small."""
    name, size = f"{key}.npy", rows * PIXELS // 8
    if name not in members.namelist():
        raise ValueError(f"{path}: expected the keys {list(ROWS)}, got {members.namelist()}")
    claimed = members.getinfo(name).file_size
    if claimed > size + _NPY_HEADER:
        raise ValueError(f"{path}: expected {key} to have {size} bytes, got {claimed}")


def _unpack(path: Path, archive: NpzFile, key: str, rows: int) -> Tensor:
    shape = (rows, PIXELS // 8)
    try:
        packed = archive[key]
    except ValueError as error:  # NumPy's refusal of object arrays and damaged headers
        raise ValueError(f"{path}: cannot read {key}: {error}") from error
    if packed.dtype != np.uint8 or packed.shape != shape:
        raise ValueError(
            f"{path}: expected {key} to be uint8 {shape}, got {packed.dtype} {packed.shape}"
        )
    return torch.from_numpy(np.unpackbits(packed, axis=1)[:, :PIXELS])


def read_amat(path: Path, rows: int) -> Tensor:
    """The text form: `rows` lines of 784 digits 0 or 1 between single spaces, as (rows, 784) uint8.

    The lines all have 1,568 bytes, so the file is checked and read as a byte matrix in pieces.
    """
    width, size = 2 * PIXELS, path.stat().st_size
    if size != (expected := rows * width):
        raise ValueError(
            f"{path}: expected {rows} text lines of {width} bytes ({expected}), got {size}"
        )
    text = np.memmap(path, dtype=np.uint8, mode="r", shape=(rows, width))
    bits = np.empty((rows, PIXELS), dtype=np.uint8)
    gaps = np.frombuffer(b" " * (PIXELS - 1) + b"\n", dtype=np.uint8)
    for start in range(0, rows, _CHUNK):
        lines = text[start : start + _CHUNK]
        bits[start : start + _CHUNK] = lines[:, ::2] - ord("0")  # other bytes wrap to above 1
        wrong = (bits[start : start + _CHUNK] > 1).any(1) | (lines[:, 1::2] != gaps).any(1)
        if wrong.any():
            line = start + int(wrong.argmax()) + 1
            raise ValueError(f"{path}: expected 784 digits 0 or 1 in line {line}, got other text")
    return torch.from_numpy(bits)
