"""Puts a drawn table into a Markdown file, between the markers that name the experiment."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

NOT_YET = "Not measured yet."
"""In place of a table without records, beside others."""


def join(parts: Iterable[str]) -> str:
    """The parts of a table; empty where each ends with NOT_YET."""
    found = list(parts)
    return "" if all(part.endswith(NOT_YET) for part in found) else "\n\n".join(found)


def insert(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->` in a file.

    Errors: ValueError where the file has not exactly one such pair.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before = Path(path).read_text(encoding="utf-8")
    if (
        before.count(begin) != 1
        or before.count(end) != 1
        or before.index(begin) > before.index(end)
    ):
        raise ValueError(f"{path}: expected one {begin} and one {end} after it")
    head, rest = before.split(begin)
    tail = rest.split(end)[1]
    Path(path).write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")


def further(picture: Path) -> Path:
    """Where the pictures of the paper's appendix E go, beside a figure."""
    return picture.with_stem(f"{picture.stem}_more")
