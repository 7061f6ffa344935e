"""Strict reader of the IDX format of the MNIST files, raw or gzip.

Layout: two zero bytes, a type code (0x08 = unsigned byte), the number of dimensions, the dimensions
as big-endian uint32, the values. Anything else is refused with the file's name.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

MAX_BYTES = 2**30
"""Refuse larger claims before allocating: the largest MNIST-like file (EMNIST) has 0.55 GB."""

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, ndim: int) -> Tensor:
    """The values of an IDX file of unsigned bytes, as uint8 with the dimensions in the header.

    gzip is recognised by its magic bytes, not by the name.

    Errors: ValueError naming the file, what was expected and what came, for a wrong magic number,
    type code, number of dimensions or length, trailing bytes and damaged gzip.
    """
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        stream = cast("BinaryIO", gzip.GzipFile(fileobj=raw)) if zipped else raw
        try:
            shape = _read_header(stream, path, ndim)
            return _read_values(stream, path, shape)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: expected a complete gzip file, got: {error}") from error


def _read_header(stream: BinaryIO, path: Path, ndim: int) -> tuple[int, ...]:
    magic = stream.read(4)
    if len(magic) < 4:
        raise ValueError(f"{path}: expected a 4-byte IDX magic number, got {len(magic)} bytes")
    if magic[:2] != b"\0\0":
        raise ValueError(f"{path}: expected an IDX magic number 00 00 .., got {magic.hex(' ')}")
    if magic[2] != _UNSIGNED_BYTE:
        raise ValueError(f"{path}: expected type code 0x08 (unsigned byte), got 0x{magic[2]:02x}")
    if magic[3] != ndim:
        raise ValueError(f"{path}: expected {ndim} dimension(s), got {magic[3]}")
    header = stream.read(4 * ndim)
    if len(header) < 4 * ndim:
        raise ValueError(f"{path}: expected {4 * ndim} bytes of dimensions, got {len(header)}")
    return struct.unpack(f">{ndim}I", header)


def _read_values(stream: BinaryIO, path: Path, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    if count > MAX_BYTES:
        raise ValueError(f"{path}: expected at most {MAX_BYTES} values, the header says {shape}")
    values = _read_up_to(stream, count)
    if len(values) < count:
        raise ValueError(
            f"{path}: expected {count} values for {shape}, got {len(values)}, truncated"
        )
    if stream.read(1):
        raise ValueError(f"{path}: expected {count} values for {shape}, got trailing bytes")
    if count == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.from_numpy(np.frombuffer(values, dtype=np.uint8)).view(shape)


def _read_up_to(stream: BinaryIO, count: int) -> bytearray:
    """The next `count` bytes or what there is. The buffer grows with what comes, so a header that
    promises a gigabyte costs nothing."""
    values = bytearray()
    while len(values) < count:
        piece = stream.read(min(2**20, count - len(values)))
        if not piece:
            break
        values += piece
    return values
