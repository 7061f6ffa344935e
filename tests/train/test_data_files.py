"""Readers of MNIST's files against the real ones and against damaged and hostile ones."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steinvae.data import Split, binarized_mnist, load, mnist
from steinvae.data.idx import read_idx

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.fixture(scope="module")
def real_root() -> Path:
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    root = Path(os.environ.get("STEIN_DATA_ROOT", default))
    if not (root / "mnist").is_dir():
        pytest.skip("MNIST is not here: set STEIN_DATA_ROOT to a directory that holds mnist/")
    return root


def labels_of(split: Split) -> torch.Tensor:
    assert split.labels is not None
    return split.labels


def idx(values: np.ndarray, *, code: int = 8, ndim: int | None = None) -> bytes:
    ndim = values.ndim if ndim is None else ndim
    return (
        bytes([0, 0, code, ndim])
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.tobytes()
    )


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A consistent MNIST of 12 + 5 images, 4 of the 12 for validation."""
    monkeypatch.setattr(mnist, "TRAIN_FILE_IMAGES", 12)
    monkeypatch.setattr(mnist, "TEST_FILE_IMAGES", 5)
    monkeypatch.setattr(mnist, "VALIDATION_IMAGES", 4)
    stream = np.random.RandomState(0)
    for name, count in (("train", 12), ("t10k", 5)):
        pixels = stream.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(pixels))
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_real_mnist_has_the_published_counts(real_root):
    grey = load("mnist", real_root, binarization="none")
    assert (len(grey.train), len(grey.validation), len(grey.test)) == (50_000, 10_000, 10_000)
    train = torch.cat([labels_of(grey.train), labels_of(grey.validation)]).bincount().tolist()
    assert train == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = labels_of(grey.test).bincount().tolist()
    assert test == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float(grey.test.pixels.float().mean() / 255) == pytest.approx(0.13251, abs=1e-5)


def test_real_binarized_mnist_is_bits_of_real_digits(real_root):
    if not (real_root / "binarized_mnist").is_dir():
        pytest.skip("binarized MNIST is not below the data root")
    bits = load("binarized_mnist", real_root, binarization="fixed")
    assert (len(bits.train), len(bits.validation), len(bits.test)) == (50_000, 10_000, 10_000)
    assert int(bits.test.pixels.max()) == 1
    assert bits.test.labels is None
    assert float(bits.train.pixels.float().mean()) == pytest.approx(0.1307, abs=2e-3)


@pytest.mark.parametrize("folder", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_found_raw_or_gzipped_in_three_places(
    small_mnist, tmp_path_factory, folder, zipped
):
    root = tmp_path_factory.mktemp("root")
    (root / folder).mkdir(parents=True, exist_ok=True)
    for path in small_mnist.iterdir():
        content = path.read_bytes()
        name = f"{path.name}.gz" if zipped else path.name
        (root / folder / name).write_bytes(gzip.compress(content) if zipped else content)
    grey, expected = (load("mnist", r, binarization="none") for r in (root, small_mnist))
    assert (len(grey.train), len(grey.validation), len(grey.test)) == (8, 4, 5)
    assert labels_of(grey.train).tolist() == list(range(8))
    assert labels_of(grey.validation).tolist() == [8, 9, 0, 1]
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(grey, split).pixels, getattr(expected, split).pixels)


def test_missing_files_are_named_with_the_setting_and_the_places(small_mnist):
    (small_mnist / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load("mnist", small_mnist)
    message = str(caught.value)
    assert f"data.root={small_mnist}" in message
    assert f"Looked in {small_mnist}, {small_mnist}/mnist, {small_mnist}/MNIST/raw" in message
    assert message.endswith(f"{small_mnist} lacks t10k-labels-idx1-ubyte.")


def test_both_forms_of_binarized_mnist_are_named_when_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"binarized_mnist.npz; or .*_train.amat"):
        load("binarized_mnist", tmp_path)


GOOD = idx(IMAGES)
IDX_FAULTS = [
    (b"", "4-byte IDX magic number, got 0 bytes"),
    (GOOD[:2], "4-byte IDX magic number, got 2 bytes"),
    (pickle.dumps({"a": 1}), "magic number 00 00"),
    (b"\x00\x01" + GOOD[2:], "magic number 00 00 .., got 00 01"),
    (idx(IMAGES, code=13), "type code 0x08 .*got 0x0d"),
    (idx(IMAGES, ndim=1), r"3 dimension\(s\), got 1"),
    (GOOD[:10], "12 bytes of dimensions, got 6"),
    (GOOD[:-1], r"24 values for \(2, 3, 4\), got 23, truncated"),
    (GOOD + b"\0", "24 values .*trailing bytes"),
    (b"\0\0\x08\x03" + struct.pack(">3I", *[2**32 - 1] * 3), "at most 1073741824 values"),
    (gzip.compress(GOOD)[:-4], "complete gzip file"),
    (gzip.compress(GOOD)[:-12], "complete gzip file"),
    (gzip.compress(GOOD)[:-6] + b"\x01\x02" + gzip.compress(GOOD)[-4:], "complete gzip file"),
    (gzip.compress(GOOD) + b"junk", "complete gzip file"),
    (gzip.compress(GOOD + b"more"), "trailing bytes"),
    (gzip.compress(GOOD[:-3]), "truncated"),
    (b"\x1f\x8b" + b"\xff" * 30, "complete gzip file"),
]


@pytest.mark.parametrize(("content", "message"), IDX_FAULTS, ids=range(len(IDX_FAULTS)))
def test_a_damaged_idx_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path, ndim=3)
    assert str(path) in str(caught.value)


def test_every_truncation_and_every_header_flip_is_refused(tmp_path):
    path = tmp_path / "f"
    for content in (GOOD, gzip.compress(GOOD, mtime=0)):
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(ValueError, match="expected"):
                read_idx(path, ndim=3)
    for bit in range(16 * 8):
        flipped = bytearray(GOOD)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="expected"):
            read_idx(path, ndim=3)


def test_a_good_idx_file_comes_back(tmp_path):
    for name, content in (("raw", GOOD), ("zip", gzip.compress(GOOD))):
        (tmp_path / name).write_bytes(content)
        assert torch.equal(read_idx(tmp_path / name, ndim=3), torch.from_numpy(IMAGES))
    (tmp_path / "none").write_bytes(idx(np.zeros((0, 3, 4), np.uint8)))
    assert read_idx(tmp_path / "none", ndim=3).shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train-images-idx3-ubyte", np.zeros((12, 28, 27)), r"28 x 28 images, got \(28, 27\)"),
        ("train-images-idx3-ubyte", np.zeros((11, 28, 28)), "expected 11 labels.*got 12"),
        ("t10k-labels-idx1-ubyte", np.zeros(4), "expected 5 labels.*got 4"),
        ("t10k-labels-idx1-ubyte", np.array([0, 9, 10, 3, 4]), "0..9, got 10 at index 2"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(small_mnist, name, values, message):
    (small_mnist / name).write_bytes(idx(values.astype(np.uint8)))
    with pytest.raises(ValueError, match=message) as caught:
        load("mnist", small_mnist)
    assert str(small_mnist) in str(caught.value)


def test_another_number_of_images_is_not_mnist(small_mnist, monkeypatch):
    monkeypatch.setattr(mnist, "TRAIN_FILE_IMAGES", 13)
    with pytest.raises(ValueError, match="expected 13 images, got 12"):
        load("mnist", small_mnist)


@pytest.fixture
def bits(monkeypatch) -> dict[str, np.ndarray]:
    monkeypatch.setattr(binarized_mnist, "ROWS", {"train": 9, "valid": 4, "test": 3})
    stream = np.random.RandomState(0)
    return {
        key: stream.randint(0, 2, (n, 784)).astype(np.uint8)
        for key, n in binarized_mnist.ROWS.items()
    }


def write_npz(path: Path, bits: dict[str, np.ndarray]) -> Path:
    packed: dict[str, Any] = {key: np.packbits(value, axis=1) for key, value in bits.items()}
    np.savez_compressed(path, **packed)
    return path


def write_amat(folder: Path, bits: dict[str, np.ndarray]) -> None:
    for key, rows in bits.items():
        text = "".join(" ".join(map(str, row)) + "\n" for row in rows)
        (folder / f"binarized_mnist_{key}.amat").write_text(text)


@pytest.mark.parametrize("form", ["npz", "amat"])
def test_both_forms_of_binarized_mnist_give_the_same_bits(tmp_path, bits, form):
    if form == "npz":
        write_npz(tmp_path / "binarized_mnist.npz", bits)
    else:
        (tmp_path / "binarized_mnist").mkdir()
        write_amat(tmp_path / "binarized_mnist", bits)
    loaded = load("binarized_mnist", tmp_path, binarization="fixed")
    for split, key in (("train", "train"), ("validation", "valid"), ("test", "test")):
        assert torch.equal(getattr(loaded, split).pixels, torch.from_numpy(bits[key]))


class Bomb:
    """Unpickling it would call `os.mkdir`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_pickles_inside_and_instead_of_an_npz_are_not_run(tmp_path, bits):
    path, marker = tmp_path / "binarized_mnist.npz", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ValueError, match="expected an npz"):
        load("binarized_mnist", tmp_path)
    objects = np.array([Bomb(marker)], dtype=object)
    np.savez(path, train=objects, valid=objects, test=objects)
    with pytest.raises(ValueError, match=r"cannot read train.*allow_pickle"):
        load("binarized_mnist", tmp_path)
    assert not marker.exists()


def test_damaged_npz_files_are_refused_by_name(tmp_path, bits):
    path = write_npz(tmp_path / "binarized_mnist.npz", bits)
    whole = path.read_bytes()
    faults = {
        "expected an npz": whole[: len(whole) // 2],
        "complete npz": whole[:60] + bytes(60) + whole[120:],
    }
    for message, content in faults.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            load("binarized_mnist", tmp_path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("valid"), "expected the keys.*valid"),
        (lambda p: p.update(train=p["train"][:, :97]), r"uint8 \(9, 98\), got uint8 \(9, 97\)"),
        (lambda p: p.update(train=p["train"].astype(np.int8)), r"uint8 \(9, 98\), got int8"),
    ],
)
def test_npz_files_with_other_arrays_are_refused(tmp_path, bits, change, message):
    packed: dict[str, Any] = {key: np.packbits(value, axis=1) for key, value in bits.items()}
    change(packed)
    np.savez(tmp_path / "binarized_mnist.npz", **packed)
    with pytest.raises(ValueError, match=message):
        load("binarized_mnist", tmp_path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, bits):
    path = tmp_path / "binarized_mnist.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in bits:
            archive.writestr(f"{key}.npy", bytes(10**7))
    with pytest.raises(ValueError, match="expected train to have 882 bytes, got 10000000"):
        load("binarized_mnist", tmp_path)


@pytest.mark.parametrize(
    ("position", "byte", "message"),
    [
        (1568 * 2 + 4, b"2", "line 3"),
        (1568 * 8 + 1, b"\t", "line 9"),
        (1568 - 1, b" ", "line 1"),
        (0, b"\xff", "line 1"),
    ],
)
def test_text_that_is_not_bits_is_refused_with_its_line(tmp_path, bits, position, byte, message):
    write_amat(tmp_path, bits)
    path = tmp_path / "binarized_mnist_train.amat"
    content = bytearray(path.read_bytes())
    content[position : position + 1] = byte
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"784 digits 0 or 1 in {message}"):
        load("binarized_mnist", tmp_path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"9 text lines of 1568 bytes"):
        load("binarized_mnist", tmp_path)
