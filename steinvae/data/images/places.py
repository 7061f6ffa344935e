"""Where the bytes of N images lie, as a few arrays: 40 MB for ImageNet, and quick to send."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from steinvae.data.images.listing import Folder, Member, read_bytes


@dataclass(frozen=True, eq=False)
class Places:
    """N files."""

    containers: tuple[str, ...]
    """Folders on the disk and tars."""

    titles: tuple[str, ...]
    """The same for messages, with the folder inside the tar."""

    paths: tuple[str, ...]
    """The same below the root, tars taken as folders."""

    which: np.ndarray
    """(N,) int32: the container of each."""

    names: np.ndarray
    """(N,) bytes: file names as the file system has them."""

    offsets: np.ndarray
    """(N,) int64: within the tar; -1 on the disk."""

    sizes: np.ndarray
    """(N,) int64: bytes; -1 on the disk."""

    def __len__(self) -> int:
        return len(self.which)

    def read(self, index: int) -> bytes:
        """The bytes of a file."""
        name = os.fsdecode(bytes(self.names[index]))
        member = Member(name, int(self.offsets[index]), int(self.sizes[index]))
        return read_bytes(self.containers[self.which[index]], member)

    def title(self, index: int) -> str:
        """What to call a file in a message."""
        return f"{self.titles[self.which[index]]}/{os.fsdecode(bytes(self.names[index]))}"

    def path(self, index: int) -> str:
        """Where a file is below the root, on any machine."""
        return f"{self.paths[self.which[index]]}/{os.fsdecode(bytes(self.names[index]))}"

    def stored_sizes(self) -> np.ndarray:
        """(N,) int64 bytes, those of files on the disk asked for; -1 where there is none now."""
        found = self.sizes.copy()
        for index in np.flatnonzero(self.offsets < 0):
            name = os.fsdecode(bytes(self.names[index]))
            with suppress(OSError):
                found[index] = os.stat(f"{self.containers[self.which[index]]}/{name}").st_size
        return found

    def __getitem__(self, rows: np.ndarray) -> Places:
        """Those at `rows`, (n,) int64."""
        arrays = (each[rows] for each in (self.which, self.names, self.offsets, self.sizes))
        return Places(self.containers, self.titles, self.paths, *arrays)


def places(files: Iterable[tuple[Folder, Member]]) -> Places:
    """In the given order."""
    folders: dict[int, int] = {}
    known: list[Folder] = []
    which, names, offsets, sizes = [], [], [], []
    for folder, member in files:
        if id(folder) not in folders:
            folders[id(folder)] = len(known)
            known.append(folder)
        which.append(folders[id(folder)])
        names.append(os.fsencode(member.name))
        offsets.append(member.offset)
        sizes.append(member.size)
    return Places(
        containers=tuple(folder.container for folder in known),
        titles=tuple(folder.title for folder in known),
        paths=tuple(folder.path for folder in known),
        which=np.array(which, dtype=np.int32),
        names=np.array(names, dtype=np.bytes_),
        offsets=np.array(offsets, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
    )
