"""Files that appear whole or not at all: write beside, fsync, rename."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InUseError(RuntimeError):
    """Another process holds the directory."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, with its suffix, that takes the place of `path` when the block ends.

    On an error the temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill within `replacing` left in the folder; nobody else may write there."""
    for path in folder.glob(".*-*"):
        if _UNFINISHED.fullmatch(path.name) and path.is_file():
            path.unlink()


_UNFINISHED = re.compile(r"\..+-[0-9a-f]{8}(\.\w+)?")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8): a reader sees the old file or the new one, never half."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold `path` for one process at a time, waiting for others (flock on a hidden file beside it).

    The file is locked and not `path`, which `replacing` makes another file every time. It goes
    again, so whoever has waited looks whether it is still the one that others see.
    """
    import fcntl  # POSIX only; the rest of this module is not

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                lock.unlink()
            return


def sync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
