"""Hidden working directories that name their owner, so that only dead owners' ones are cleaned."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = re.compile(r"\.(tmp|old|trash)-(\d+)-([0-9a-f]{8})-(\d+)-[0-9a-f]{32}")
_ours: set[str] = set()  # the directories this process is working on


@contextmanager
def hidden(folder: Path, kind: str, step: int) -> Iterator[Path]:
    """A path `.<kind>-<step>-<host>-<pid>-<uuid>`; what is there at the end is removed.

    Kinds: "tmp" is being written, "old" was moved aside to be replaced, "trash" is being deleted.
    """
    name = f".{kind}-{step}-{_host()}-{os.getpid()}-{uuid.uuid4().hex}"
    _ours.add(name)
    try:
        yield folder / name
    finally:
        shutil.rmtree(folder / name, ignore_errors=True)  # the next clean-up tries again
        _ours.discard(name)


def leftovers(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """(path, kind, step) of the hidden directories whose owner, a process of this host, is dead."""
    for path in sorted(folder.glob(".*-*")):
        match = _NAME.fullmatch(path.name)
        if match is None or path.name in _ours:
            continue
        kind, step, host, owner = match.groups()
        # A directory with our own process id that we do not know is from an earlier process.
        if host == _host() and (int(owner) == os.getpid() or not _is_alive(int(owner))):
            yield path, kind, int(step)


def _host() -> str:
    """Eight hexadecimal digits for this host, whose name may contain the separator."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists and belongs to somebody else
        return True
    return True
