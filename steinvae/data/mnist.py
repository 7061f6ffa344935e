"""MNIST from its four IDX files: 50,000 / 10,000 / 10,000 images of 28 x 28 grey levels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from steinvae.data.binarize import build
from steinvae.data.dataset import Binarization, Dataset
from steinvae.data.files import find_files
from steinvae.data.idx import read_idx
from steinvae.data.registry import register

IMAGE_SHAPE = (28, 28)
TRAIN_FILE_IMAGES, TEST_FILE_IMAGES, VALIDATION_IMAGES = 60_000, 10_000, 10_000
FOLDERS = (".", "mnist", "MNIST/raw")
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@register("mnist")
def load(root: Path | None, binarization: Binarization, seed: int) -> Dataset:
    """MNIST (LeCun et al. 1998): train = the first 50,000 images of the training file, validation
    = its last 10,000, test = the test file (the split of Pu et al. 2017, section 5.2).

    Files: raw or .gz, in `root`, `root`/mnist or `root`/MNIST/raw. Memory: 55 MB of pixels, and
    as much again while fixed bits are drawn.
    """
    paths = find_files(root, "MNIST", FOLDERS, [(name, f"{name}.gz") for name in FILES])
    images, labels = _read_pair(paths[0], paths[1], TRAIN_FILE_IMAGES)
    test = _read_pair(paths[2], paths[3], TEST_FILE_IMAGES)
    cut = TRAIN_FILE_IMAGES - VALIDATION_IMAGES
    sources = {
        "train": (images[:cut], labels[:cut]),
        "validation": (images[cut:], labels[cut:]),
        "test": test,
    }
    return build("mnist", IMAGE_SHAPE, 255, sources, binarization=binarization, seed=seed)


def _read_pair(image_path: Path, label_path: Path, count: int) -> tuple[Tensor, Tensor]:
    """Pixels (N, 784) uint8 and labels (N,) int64 of one image file and its label file."""
    images = read_idx(image_path, ndim=3)
    labels = read_idx(label_path, ndim=1)
    if tuple(images.shape[1:]) != IMAGE_SHAPE:
        raise ValueError(f"{image_path}: expected 28 x 28 images, got {tuple(images.shape[1:])}")
    if len(images) != len(labels):
        raise ValueError(
            f"{label_path}: expected {len(images)} labels, one for each image of "
            f"{image_path.name}, got {len(labels)}"
        )
    if len(images) != count:
        raise ValueError(f"{image_path}: expected {count} images, got {len(images)}")
    if int(labels.max()) > 9:
        where = int(labels.argmax())
        raise ValueError(
            f"{label_path}: expected labels in 0..9, got {int(labels[where])} at index {where}"
        )
    return images.view(count, -1), labels.to(torch.int64)
