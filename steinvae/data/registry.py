"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from steinvae.data.binarize import BINARIZATION_SEED
from steinvae.data.dataset import Binarization, Dataset

Loader = Callable[[Path | None, Binarization, int], Dataset]

_LOADERS: dict[str, Loader] = {}


def register(name: str) -> Callable[[Loader], Loader]:
    """Decorator: make `loader(root, binarization, seed) -> Dataset` loadable as `name`."""

    def add(loader: Loader) -> Loader:
        if name in _LOADERS:
            raise ValueError(f"data.register: the name {name!r} is already taken")
        _LOADERS[name] = loader
        return loader

    return add


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_LOADERS)


def load(
    name: str,
    root: str | Path | None = None,
    *,
    binarization: Binarization = "fixed",
    seed: int = BINARIZATION_SEED,
) -> Dataset:
    """Load a data set by name, in memory, on the CPU.

    Args:
        name: a registered name; `names()` lists them.
        root: the setting data.root, a directory; unused by "digits".
        binarization: "fixed" | "dynamic" | "none", see `Dataset.binarization`.
        seed: seed of the fixed Bernoulli draw (not of the run: keep it equal in runs that are
            compared). Unused by sets that come as bits.

    Errors: ValueError for an unknown name or binarisation and for damaged files (naming the file);
    FileNotFoundError naming data.root when files are missing; ImportError naming the extra.
    """
    if name not in _LOADERS:
        raise ValueError(f"data.name: expected one of {', '.join(names())}; got {name!r}")
    if binarization not in get_args(Binarization):
        expected = ", ".join(get_args(Binarization))
        raise ValueError(f"data.binarization: expected one of {expected}; got {binarization!r}")
    return _LOADERS[name](None if root is None else Path(root), binarization, seed)
