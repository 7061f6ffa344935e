"""Real images: 40 classes of Tiny ImageNet, and one photograph of each of ImageNet's classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steinvae.data.images import ImageLoader, load_image_folder, load_packed
from steinvae.data.images.decode import decode, square
from steinvae.data.images.faults import Faults
from steinvae.data.images.listing import read_bytes, walk
from steinvae.data.images.packing import pack


def found(root: Path, name: str) -> Path:
    if not (root / name).exists():
        pytest.skip(f"{name} is not in the directory of the real data")
    return root / name


@pytest.fixture(scope="module")
def tiny(data_root) -> Path:
    return found(data_root, "tiny_imagenet_40/tiny_imagenet_40.tar")


def test_tiny_imagenet_is_read_in_place(tiny):
    images = load_image_folder(tiny, side=64, crop=64)
    assert len(images.classes) == 40
    assert (len(images.train), len(images.validation), len(images.test)) == (19_000, 1_000, 2_000)
    assert torch.bincount(images.test.labels).tolist() == [50] * 40
    assert torch.bincount(images.validation.labels).tolist() == [25] * 40
    batch = next(iter(ImageLoader(images.train, 64, seed=0)))
    assert batch.pixels.shape == (64, 3, 64, 64)
    rows = images.train.chosen[batch.indices]
    for row, label, pixels in zip(rows, batch.labels, batch.pixels, strict=True):
        path = images.train.store.places.path(int(row))  # type: ignore[attr-defined]
        assert f"/train/{images.classes[label]}/{images.classes[label]}_" in path
        data = images.train.store.places.read(int(row))  # type: ignore[attr-defined]
        plain = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))
        shown = plain.permute(2, 0, 1)
        assert torch.equal(pixels, shown) or torch.equal(pixels, shown.flip(2))


def test_a_part_of_tiny_imagenet_packed_gives_the_same_batches(tiny, tmp_path):
    """The first 12 images of every class, extracted: Tiny ImageNet's training files by name."""
    for folder in walk(tiny, Faults()):
        split = "train" if "/train/" in folder.path else "val"
        if not folder.members:
            continue
        place = tmp_path / "root" / split / folder.parts[-1].name
        place.mkdir(parents=True)
        for member in folder.members[:12]:
            (place / member.name).write_bytes(read_bytes(folder.container, member))
    pack(tmp_path / "root", tmp_path / "out", side=64)
    files = load_image_folder(tmp_path / "root", side=64, crop=56)
    shards = load_packed(tmp_path / "out", crop=56, verify=True)
    every = torch.arange(len(files.train))
    assert len(every) == 40 * 12 - 24
    assert torch.equal(files.train.labels, shards.train.labels)
    assert torch.equal(files.train.pixels(every, 8), shards.train.pixels(every, 8))
    mean = torch.tensor(shards.train.mean)
    assert (mean - torch.tensor([123.675, 116.28, 103.53])).abs().max() < 8  # ImageNet's own


def test_photographs_are_decoded_as_pillow_does(data_root):
    """The decoder and the filter against Pillow's, on every 20th of 1,000 photographs."""
    root = found(data_root, "imagenet_sample/imagenet_sample_short256_q92.tar")
    files = [(folder, member) for folder in walk(root, Faults()) for member in folder.members]
    assert len(files) == 1000
    for folder, member in files[::20]:
        data = read_bytes(folder.container, member)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        assert np.array_equal(decode(data), np.asarray(image))
        side = 96
        width, height = (side * size // min(image.size) for size in image.size)
        small = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
        top, left = (height - side) // 2, (width - side) // 2
        middle = small[top : top + side, left : left + side]
        difference = np.abs(square(data, side) - middle)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.02
