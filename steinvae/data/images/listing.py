"""Every file below a root as one tree, whether it lies in a folder or in a tar.

Tars are read in place: their headers give the offset of each member, and nothing is unpacked. A tar
may hold tars, as ImageNet's own training archive does. Compressed ones have no offsets.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from steinvae.data.images.faults import LINK, Faults

DEPTH = 6
"""Folders below the root, those in tars included. Deeper trees are not ImageNet's."""

_DISK = -1  # the offset of a file that is a file


class Part(NamedTuple):
    """One step of a path below the root."""

    name: str
    """A folder, or a tar without its ending."""

    is_tar: bool


class Member(NamedTuple):
    """A file of a folder."""

    name: str
    offset: int
    """First byte within the tar; -1 on the disk."""

    size: int
    """Bytes; -1 on the disk, where asking would cost a call each."""


@dataclass
class Folder:
    """The files of one folder, on the disk or in a tar."""

    container: str
    """The folder on the disk, or the tar that holds the files."""

    parts: tuple[Part, ...]
    """From the root to here."""

    members: list[Member] = field(default_factory=list)

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.container}:{self.path}" if self.in_tar else self.container

    @property
    def path(self) -> str:
        """Below the root, tars taken as folders."""
        return "/".join(part.name for part in self.parts)

    @property
    def in_tar(self) -> bool:
        """Whether the container is a tar."""
        return any(part.is_tar for part in self.parts)


def walk(root: Path, faults: Faults) -> list[Folder]:
    """Every folder below `root`, a directory or a tar, by rising path; empty ones too.

    Names that begin with a dot are left out. Symbolic links on the disk are followed; in a tar a
    link is a fault, since the file that it stands for has no offset of its own.

    Errors: FileNotFoundError naming data.root; ValueError for a damaged tar and for folders deeper
    than `DEPTH`.
    """
    if root.is_file():
        return sorted(_tar(root, (), faults), key=_path)
    if not root.is_dir():
        raise FileNotFoundError(f"data.root={root}: expected a directory or a tar of images")
    return sorted(_disk(root, (), faults), key=_path)


def read_bytes(container: str, member: Member) -> bytes:
    """The content of a file. Errors: ValueError where its tar has been cut off since."""
    if member.offset == _DISK:
        with open(os.path.join(container, member.name), "rb", buffering=0) as file:
            return file.readall()
    with open(container, "rb", buffering=0) as file:
        file.seek(member.offset)
        data = file.read(member.size)
    if len(data) != member.size:
        raise ValueError(f"{container}: expected {member.size} bytes of {member.name}, it ends")
    return data


def _path(folder: Folder) -> tuple[tuple[Part, ...], str]:
    return folder.parts, folder.container


def _disk(place: Path, parts: tuple[Part, ...], faults: Faults) -> Iterator[Folder]:
    folder = Folder(str(place), parts)
    yield folder
    with os.scandir(place) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = entry.name
        if name.startswith("."):
            continue
        if entry.is_dir():
            _check_depth(entry.path, parts)
            yield from _disk(Path(entry.path), (*parts, Part(name, False)), faults)
        elif name.endswith(".tar"):
            yield from _tar(Path(entry.path), parts, faults)
        else:
            folder.members.append(Member(name, _DISK, -1))


def _tar(path: Path, parts: tuple[Part, ...], faults: Faults) -> Iterator[Folder]:
    try:
        with path.open("rb") as file:
            yield from _members(file, str(path), 0, (*parts, Part(path.stem, True)), faults)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: expected a complete, uncompressed tar, got: {error}") from error


def _members(
    file: BinaryIO, container: str, start: int, parts: tuple[Part, ...], faults: Faults
) -> Iterator[Folder]:
    """Folders of a tar whose first byte is at `start` of the container."""
    folders: dict[tuple[str, ...], Folder] = {}
    inner: list[Folder] = []
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # not a TarInfo for each image
            path = tuple(part for part in member.name.split("/") if part not in ("", "."))
            if not path or any(part.startswith(".") for part in path):
                continue
            place, name, where = path[:-1], path[-1], "/".join(path)
            place = path if member.isdir() else place
            if place not in folders:
                _check_depth(f"{container}:{where}", (*parts, *place))
                here = (*parts, *(Part(part, False) for part in place))
                folders[place] = Folder(container, here)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                faults.add(f"{container}:{where}", LINK)
            elif name.endswith(".tar"):
                nested = cast("BinaryIO", archive.extractfile(member))
                below = (*folders[place].parts, Part(name.removesuffix(".tar"), True))
                offset = start + member.offset_data
                inner.extend(_members(nested, container, offset, below, faults))
            else:
                at = Member(name, start + member.offset_data, member.size)
                folders[place].members.append(at)
        file.seek(archive.offset)
        # tarfile takes a damaged header, and the end of the file, for the end of the archive
        end = file.read(tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE or any(end):
            raise tarfile.ReadError(f"no end of the archive, byte {archive.offset}")
        while rest := file.read(2**20):
            if rest.strip(b"\0"):
                raise tarfile.ReadError(f"an end at byte {archive.offset}, and more after it")
    yield from folders.values()
    yield from inner


def _check_depth(shown: str, parts: tuple[object, ...]) -> None:
    if len(parts) >= DEPTH:
        raise ValueError(f"{shown}: expected at most {DEPTH} folders below data.root")
