"""scikit-learn's 1,797 real handwritten digits, 8 x 8 with 17 grey levels: works offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from steinvae.data.binarize import build
from steinvae.data.dataset import Binarization, Dataset
from steinvae.data.registry import register

IMAGE_SHAPE = (8, 8)
VALIDATION_IMAGES, TEST_IMAGES = 250, 250
SPLIT_SEED = 0


@register("digits")
def load(root: Path | None, binarization: Binarization, seed: int) -> Dataset:
    """Optical digits (Alpaydin & Kaynak 1998, as shipped by scikit-learn): 1,297 / 250 / 250.

    The split is stratified by class and shuffled by the fixed SPLIT_SEED, so it is the same for
    every run, binarisation and seed. `root` is unused.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "data.name=digits needs scikit-learn, which the extra `train` installs "
            "(pip install 'stein-kernels[train]')"
        ) from error
    images, classes = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.asarray(images, dtype=np.uint8))
    labels = torch.from_numpy(np.asarray(classes, dtype=np.int64))
    parts = stratified_split(labels.numpy(), VALIDATION_IMAGES, TEST_IMAGES)
    sources = {
        name: (pixels[indices], labels[indices])
        for name, indices in zip(("train", "validation", "test"), parts, strict=True)
    }
    return build("digits", IMAGE_SHAPE, 16, sources, binarization=binarization, seed=seed)


def stratified_split(
    labels: np.ndarray, validation: int, test: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Indices of train, validation and test with the classes in the proportions of `labels`.

    Each class gives its rounded share (largest remainders first), drawn by SPLIT_SEED.

    Shapes: labels (N,) int -> (N - validation - test,), (validation,), (test,) int64.
    """
    stream = np.random.RandomState(SPLIT_SEED)  # frozen stream (NEP 19): the same split for ever
    classes, counts = np.unique(labels, return_counts=True)
    shares = [_shares(counts, total) for total in (validation, test)]
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for row, label in enumerate(classes):
        members = stream.permutation(np.flatnonzero(labels == label))
        first, second = shares[0][row], shares[0][row] + shares[1][row]
        for part, piece in zip(
            parts, (members[second:], members[:first], members[first:second]), strict=True
        ):
            part.append(piece)
    train, held_out, last = (torch.from_numpy(stream.permutation(np.concatenate(p))) for p in parts)
    return train, held_out, last


def _shares(counts: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to `counts` that add up to `total` (largest remainders)."""
    exact = counts * total / counts.sum()
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole
