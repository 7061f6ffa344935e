"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from steinvae.data.binarize import BINARIZATION_SEED
from steinvae.data.dataset import BadRecords, Binarization, Dataset

Loader = Callable[[Path | None, Binarization, int], Dataset]
CountLoader = Callable[[Path | None, BadRecords], Dataset]

_LOADERS: dict[str, Loader] = {}
_COUNT_LOADERS: dict[str, CountLoader] = {}


def register(name: str) -> Callable[[Loader], Loader]:
    """Decorator: make `loader(root, binarization, seed) -> Dataset` loadable as `name`."""

    def add(loader: Loader) -> Loader:
        _check_free(name)
        _LOADERS[name] = loader
        return loader

    return add


def register_counts(name: str) -> Callable[[CountLoader], CountLoader]:
    """The same for `loader(root, bad_records) -> Dataset` of documents, which nothing binarises."""

    def add(loader: CountLoader) -> CountLoader:
        _check_free(name)
        _COUNT_LOADERS[name] = loader
        return loader

    return add


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_LOADERS | _COUNT_LOADERS)


def load(
    name: str,
    root: str | Path | None = None,
    *,
    binarization: Binarization = "fixed",
    bad_records: BadRecords = "raise",
    seed: int = BINARIZATION_SEED,
) -> Dataset:
    """Load a data set by name, in memory, on the CPU.

    Args:
        name: a registered name; `names()` lists them.
        root: the setting data.root, a directory; unused by "digits".
        binarization: "fixed" | "dynamic" | "none", see `Dataset.binarization`; counts have none.
        bad_records: of text files: "raise" | "skip", which counts them in `CountDataset.skipped`.
        seed: seed of the fixed Bernoulli draw (not of the run: keep it equal in runs that are
            compared). Unused by sets that come as bits.

    Errors: ValueError for an unknown name or binarisation and for damaged files (naming the file);
    FileNotFoundError naming data.root when files are missing; ImportError naming the extra.
    """
    if bad_records not in get_args(BadRecords):
        raise ValueError(f"data.bad_records: expected raise or skip; got {bad_records!r}")
    folder = None if root is None else Path(root)
    if name in _COUNT_LOADERS:
        return _COUNT_LOADERS[name](folder, bad_records)
    if name not in _LOADERS:
        raise ValueError(f"data.name: expected one of {', '.join(names())}; got {name!r}")
    if binarization not in get_args(Binarization):
        expected = ", ".join(get_args(Binarization))
        raise ValueError(f"data.binarization: expected one of {expected}; got {binarization!r}")
    return _LOADERS[name](folder, binarization, seed)


def _check_free(name: str) -> None:
    if name in names():
        raise ValueError(f"data.register: the name {name!r} is already taken")
