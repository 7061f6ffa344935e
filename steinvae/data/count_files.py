"""Strict readers of bag-of-words files: NVDM's svmlight form, UCI docword, LDA-C and scipy's npz.

Every reader returns `Bags`, compressed rows of (word, count). What is wrong with a line (a row of
an npz) is an error with file and line, or, where asked, a skip that is counted by its reason.
Text is parsed in pieces of whole lines by array operations, at about 15 MB/s.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from steinvae.data.dataset import BadRecords

_PIECE = 2**23  # bytes of text parsed at once
_ROWS = 2**15  # of an npz, checked at once
_LONGEST = 9  # digits of a number: more would not fit 32 bits

CHARACTER = "a character that is no digit"
NEGATIVE = "a negative number"
FRACTIONAL = "a fractional number"
HUGE = "a number of more than nine digits"
FORM = "a line of another form"
OUTSIDE = "a word outside the vocabulary"
ZERO = "a count of 0"
TWICE = "a word twice in one document"
EMPTY = "an empty document"
LENGTH = "another number of words than it promises"
REASONS = ("", CHARACTER, NEGATIVE, FRACTIONAL, HUGE, FORM, OUTSIDE, ZERO, LENGTH, TWICE, EMPTY)
"""What can be wrong with a line; of several, the first is named."""


class Bags(NamedTuple):
    """N documents as compressed rows."""

    start: np.ndarray
    """(N + 1,) int64: document n has the entries start[n] .. start[n + 1] - 1."""

    words: np.ndarray
    """(entries,) int32 in 0..V-1, rising within a document."""

    counts: np.ndarray
    """(entries,) int32, at least 1."""


@dataclass
class Policy:
    """What happens to a bad line: it raises, or it is left out and counted."""

    on_bad: BadRecords = "raise"
    skipped: Counter[str] = field(default_factory=Counter)

    def judge(self, path: Path, codes: np.ndarray, first_line: int, text: list[bytes]) -> None:
        """codes (lines,) index REASONS. Errors: ValueError naming file, line and its content."""
        bad = np.flatnonzero(codes)
        if not len(bad):
            return
        if self.on_bad == "raise":
            row = int(bad[0])
            shown = f": {text[row][:60].decode('utf-8', 'replace')!r}" if text else ""
            raise ValueError(f"{path}:{first_line + row}: {REASONS[codes[row]]}{shown}")
        for code, count in zip(*np.unique(codes[bad], return_counts=True), strict=True):
            self.skipped[REASONS[code]] += int(count)


class _Numbers(NamedTuple):
    """The numbers of a piece of text."""

    values: np.ndarray
    line: np.ndarray
    place: np.ndarray
    """Position within its line."""

    before: np.ndarray
    after: np.ndarray
    """The bytes around it."""

    per_line: np.ndarray
    codes: np.ndarray
    """(lines,) reasons found so far."""


def read_feat(path: Path, vocabulary: int, policy: Policy) -> Bags:
    """NVDM's svmlight form: a line a document, "label id:count id:count ...", ids 1..V."""
    return _read_pairs(path, vocabulary, policy, first_id=1, promises=False)


def read_lda_c(path: Path, vocabulary: int, policy: Policy) -> Bags:
    """LDA-C: a line a document, "M id:count ...", M the number of pairs, ids 0..V-1."""
    return _read_pairs(path, vocabulary, policy, first_id=0, promises=True)


def read_docword(path: Path, vocabulary: int, policy: Policy) -> Bags:
    """UCI docword: lines D, W, NNZ, then NNZ lines "document word count", both ids from 1.

    A skipped line is an entry here, and an empty document is one of 1..D without a line.
    Errors: ValueError for a header that does not fit, whatever the policy.
    """
    documents, entries = _docword_header(path, vocabulary)
    rows, words, counts, lines, seen = [], [], [], [], 0
    for first, piece in _pieces(path, skip=3):
        numbers, text = _numbers(piece), piece.split(b"\n")
        _flag(numbers.codes, numbers.per_line != 3, FORM)
        _flag_at(numbers, numbers.after != np.where(numbers.place == 2, 10, 32), FORM)
        _flag_at(numbers, (numbers.place == 1) & _outside(numbers.values - 1, vocabulary), OUTSIDE)
        _flag_at(numbers, (numbers.place == 0) & _outside(numbers.values - 1, documents), FORM)
        _flag_at(numbers, (numbers.place == 2) & (numbers.values == 0), ZERO)
        policy.judge(path, numbers.codes, first, text)
        seen += len(numbers.codes)
        triples = numbers.values[numbers.codes[numbers.line] == 0].reshape(-1, 3)
        rows.append(triples[:, 0] - 1)
        words.append((triples[:, 1] - 1).astype(np.int32))
        counts.append(triples[:, 2].astype(np.int32))
        lines.append(first + np.flatnonzero(numbers.codes == 0))
    if seen != entries:
        raise ValueError(f"{path}: expected {entries} entries as the third line says, got {seen}")
    row, word, line = (_joined(each) for each in (rows, words, lines))
    order = np.lexsort((word, row))
    key = row[order] * vocabulary + word[order]
    again = np.flatnonzero(key[1:] == key[:-1]) + 1
    if len(again):
        if policy.on_bad == "raise":
            raise ValueError(f"{path}:{line[order[again]].min()}: {TWICE}")
        policy.skipped[TWICE] += len(again)
        order = np.delete(order, again)
    row = row[order]
    return _without_empty(
        path, Bags(_starts(row, documents), word[order], _joined(counts)[order]), policy
    )


def read_npz(path: Path, vocabulary: int, policy: Policy) -> Bags:
    """A `scipy.sparse.save_npz` file of a CSR matrix (N, V); "line" is the row, from 1.

    Errors: ValueError for a file that is no such matrix, whatever the policy.
    """
    start, words, values = _npz_arrays(path, vocabulary)
    lengths, filled = [], 0
    kept_words, kept_counts = (np.empty(len(words), dtype=np.int32) for _ in range(2))
    for first in range(0, len(start) - 1, _ROWS):
        part = start[first : first + _ROWS + 1]
        entries = slice(int(part[0]), int(part[-1]))
        bags, codes = _npz_rows(part - part[0], words[entries], values[entries], vocabulary)
        policy.judge(path, codes, first + 1, [])
        lengths.append(np.diff(bags.start)[codes == 0])
        here = slice(filled, filled + len(bags.words))
        kept_words[here], kept_counts[here] = bags.words, bags.counts
        filled = here.stop
    start = np.r_[0, np.cumsum(_joined(lengths))].astype(np.int64)
    return Bags(start, kept_words[:filled], kept_counts[:filled])


def _npz_rows(
    start: np.ndarray, words: np.ndarray, values: np.ndarray, vocabulary: int
) -> tuple[Bags, np.ndarray]:
    """Some rows of an npz and what is wrong with each; bad rows give nothing."""
    rows = len(start) - 1
    row = np.repeat(np.arange(rows), np.diff(start))
    order = np.lexsort((words, row))
    words, values = words[order], values[order]
    codes = np.zeros(rows, dtype=np.int8)
    finite = np.isfinite(values)
    whole = finite & (np.floor(np.where(finite, values, 0)) == values)
    for wrong, reason in (
        (~finite, CHARACTER),
        (values < 0, NEGATIVE),
        (~whole, FRACTIONAL),
        (values >= 10**_LONGEST, HUGE),
        (_outside(words, vocabulary), OUTSIDE),
        (values == 0, ZERO),
        (np.r_[False, (words[1:] == words[:-1]) & (row[1:] == row[:-1])][: len(words)], TWICE),
    ):
        _flag(codes, np.bincount(row[wrong], minlength=rows) > 0, reason)
    _flag(codes, np.diff(start) == 0, EMPTY)
    keep = codes[row] == 0
    counts = values[keep].astype(np.int32)
    return Bags(_starts(row[keep], rows), words[keep].astype(np.int32), counts), codes


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """The first field of each line, "word" or "word count", in UTF-8. Errors: ValueError for blank
    or repeated words, and for lines that are neither."""
    words = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got: {error}") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, 1):  # no splitlines: other breaks may be part of a word
        word, *count = re.split("[ \t]+", line.strip(" \t\r"))
        if not word:
            raise ValueError(f"{path}:{number}: expected a word, got a blank line")
        if len(count) > 1 or not all(map(str.isdecimal, count)):
            raise ValueError(f'{path}:{number}: expected "word" or "word count", got {line!r}')
        words.append(word)
    again = [word for word, count in Counter(words).items() if count > 1]
    if again or not words:
        what = f"{again[0]!r} more than once" if again else "no word"
        raise ValueError(f"{path}: expected different words, one a line, got {what}")
    return tuple(words)


def _read_pairs(
    path: Path, vocabulary: int, policy: Policy, *, first_id: int, promises: bool
) -> Bags:
    parts = []
    for first, piece in _pieces(path):
        numbers = _numbers(piece)
        parts.append(_pairs(numbers, vocabulary, first_id, promises))
        policy.judge(path, numbers.codes, first, piece.split(b"\n"))
        parts[-1] = _rows(parts[-1], numbers.codes == 0)
    lengths = _joined([np.diff(part.start) for part in parts])
    words, counts = (_joined([part[i] for part in parts]).astype(np.int32) for i in (1, 2))
    return Bags(np.r_[0, np.cumsum(lengths)].astype(np.int64), words, counts)


def _pairs(numbers: _Numbers, vocabulary: int, first_id: int, promises: bool) -> Bags:
    """The bags of a piece, its faults marked in `numbers.codes`; bad lines give nothing."""
    codes, place = numbers.codes, numbers.place
    head, is_id = place == 0, place % 2 == 1
    count = ~head & ~is_id
    ends = (numbers.after == 32) | (numbers.after == 10)
    _flag(codes, numbers.per_line == 0, FORM)
    _flag_at(numbers, head & ~((numbers.before == 10) & ends), FORM)
    _flag_at(numbers, is_id & ~((numbers.before == 32) & (numbers.after == 58)), FORM)
    _flag_at(numbers, count & ~((numbers.before == 58) & ends), FORM)
    _flag(codes, numbers.per_line % 2 == 0, FORM)
    _flag_at(numbers, is_id & _outside(numbers.values - first_id, vocabulary), OUTSIDE)
    _flag_at(numbers, count & (numbers.values == 0), ZERO)
    pairs = (numbers.per_line - 1) // 2
    if promises:
        _flag_at(numbers, head & (numbers.values != pairs[numbers.line]), LENGTH)
    good = codes[numbers.line] == 0
    words, line = numbers.values[good & is_id] - first_id, numbers.line[good & is_id]
    counts = numbers.values[good & count]
    order = np.lexsort((words, line))
    words, line, counts = words[order], line[order], counts[order]
    again = np.r_[False, (words[1:] == words[:-1]) & (line[1:] == line[:-1])][: len(line)]
    _flag(codes, np.bincount(line[again], minlength=len(codes)) > 0, TWICE)
    _flag(codes, pairs == 0, EMPTY)
    keep = codes[line] == 0
    return Bags(
        _starts(line[keep], len(codes)),
        words[keep].astype(np.int32),
        counts[keep].astype(np.int32),
    )


def _pieces(path: Path, skip: int = 0) -> Iterator[tuple[int, bytes]]:
    """Pieces of whole lines, each ending with a newline, with the number of its first line."""
    line = 1 + skip
    with path.open("rb") as file:
        for _ in range(skip):
            file.readline()
        while piece := file.read(_PIECE):
            piece += file.readline()
            piece = piece.replace(b"\r\n", b"\n")
            piece = piece if piece.endswith(b"\n") else piece + b"\n"
            yield line, piece
            line += piece.count(b"\n")


def _numbers(piece: bytes) -> _Numbers:
    """Every number of a piece, and per line whether something else is in it."""
    data = np.frombuffer(b"\n" + piece, dtype=np.uint8)
    digit = (data >= 48) & (data <= 57)
    newline = data == 10
    line_of = np.cumsum(newline) - 1 - newline  # the newline that ends a line belongs to it
    lines = int(newline.sum()) - 1
    codes = np.zeros(lines, dtype=np.int8)
    signs = ((data == 45, NEGATIVE), (data == 46, FRACTIONAL))
    for wrong, reason in (
        *signs,
        (~(digit | newline | (data == 32) | (data == 58)), CHARACTER),
    ):
        _flag(codes, np.bincount(line_of[wrong], minlength=lines) > 0, reason)
    colon = np.flatnonzero(data == 58)
    stray = colon[~(digit[colon - 1] & digit[colon + 1])]
    _flag(codes, np.bincount(line_of[stray], minlength=lines) > 0, FORM)
    first = np.flatnonzero(digit & ~np.r_[False, digit[:-1]])
    last = np.flatnonzero(digit & ~np.r_[digit[1:], False])
    length = last - first + 1
    values = np.zeros(len(first), dtype=np.int64)
    for position in range(min(_LONGEST, int(length.max(initial=0)))):
        here = length > position
        values[here] += (data[last[here] - position].astype(np.int64) - 48) * 10**position
    line = line_of[first]
    per_line = np.bincount(line, minlength=lines)
    place = np.arange(len(line)) - (np.cumsum(per_line) - per_line)[line]
    numbers = _Numbers(values, line, place, data[first - 1], data[last + 1], per_line, codes)
    _flag_at(numbers, length > _LONGEST, HUGE)
    return numbers


def _flag(codes: np.ndarray, wrong: np.ndarray, reason: str) -> None:
    """Mark lines (a mask over them) that have no reason yet."""
    codes[wrong & (codes == 0)] = REASONS.index(reason)


def _flag_at(numbers: _Numbers, wrong: np.ndarray, reason: str) -> None:
    """Mark the lines of the numbers in a mask."""
    hit = np.bincount(numbers.line[wrong], minlength=len(numbers.codes)) > 0
    _flag(numbers.codes, hit, reason)


def _outside(ids: np.ndarray, size: int) -> np.ndarray:
    return (ids < 0) | (ids >= size)


def _starts(row: np.ndarray, rows: int) -> np.ndarray:
    return np.r_[0, np.cumsum(np.bincount(row, minlength=rows))].astype(np.int64)


def _rows(bags: Bags, keep: np.ndarray) -> Bags:
    """Without the rows that are not in `keep`, which have no entries."""
    return bags._replace(start=np.r_[0, np.cumsum(np.diff(bags.start)[keep])].astype(np.int64))


def _without_empty(path: Path, bags: Bags, policy: Policy) -> Bags:
    empty = np.diff(bags.start) == 0
    if empty.any() and policy.on_bad == "raise":
        raise ValueError(f"{path}: document {int(empty.argmax()) + 1} has no line: {EMPTY}")
    if empty.any():
        policy.skipped[EMPTY] += int(empty.sum())
    return _rows(bags, ~empty)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _docword_header(path: Path, vocabulary: int) -> tuple[int, int]:
    with path.open("rb") as file:
        header = [file.readline().strip() for _ in range(3)]
    if not all(field.isdigit() for field in header):
        shown = b" ".join(header)[:60].decode("utf-8", "replace")
        raise ValueError(f"{path}: expected lines D, W and NNZ at the top, got {shown!r}")
    documents, words, entries = (int(field) for field in header)
    if words != vocabulary:
        raise ValueError(f"{path}:2: expected W = {vocabulary}, the vocabulary, got {words}")
    return documents, entries


def _npz_arrays(path: Path, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """indptr, indices and data, checked against each other."""
    keys = ("format", "shape", "indptr", "indices", "data")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected a complete npz file, got something else")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := [key for key in keys if key not in archive.files]:
                raise ValueError(f"{path}: expected a sparse matrix, it lacks {missing[0]!r}")
            kind, shape, start, words, values = (archive[key] for key in keys)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path}: expected a complete npz file, got: {error}") from error
    if kind.item() not in (b"csr", "csr"):
        raise ValueError(f"{path}: expected a CSR matrix, got format {kind.item()!r}")
    rows, columns = (int(size) for size in shape)
    if columns != vocabulary:
        raise ValueError(f"{path}: expected {vocabulary} columns, the vocabulary, got {columns}")
    ordered = len(start) == rows + 1 and start[0] == 0 and (np.diff(start) >= 0).all()
    if not (ordered and start[-1] == len(words) == len(values)):
        raise ValueError(f"{path}: expected indptr to rise from 0 to the number of entries")
    if values.dtype.kind not in "iufb" or words.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected numbers, got {values.dtype} and {words.dtype}")
    return start.astype(np.int64), words, values
