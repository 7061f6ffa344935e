"""A data set from a tree: three splits, a policy for what is bad, and balanced labels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from steinvae.cli import parse_config
from steinvae.data import load, step_generator
from steinvae.data.images import IMAGENET_MEAN, load_image_folder, load_packed
from steinvae.data.images import faults as f
from tests.images.trees import CLASSES, TRAIN, VAL, coded, encode, folders, png, smooth, write

SIZES: Any = {"side": 12, "crop": 9}


def test_three_splits_of_every_image_once(tmp_path):
    found = load_image_folder(write(tmp_path, folders()), **SIZES)
    assert found.classes == CLASSES
    assert (len(found.train), len(found.validation), len(found.test)) == (29, 1, 3 * VAL)
    rows = torch.cat([found.train.chosen, found.validation.chosen])
    assert torch.equal(rows.sort().values, torch.arange(3 * TRAIN))
    assert (found.train.random, found.validation.random, found.test.random) == (True, False, False)
    assert (found.title, found.image_shape) == ("image_folder, 9 x 9", (3, 9, 9))
    assert found.train.mean == IMAGENET_MEAN
    for split in (found.train, found.validation, found.test):
        batch = split.batch(torch.arange(len(split)), step_generator(0, 0, "crops"))
        red = batch.view(-1, 3, 81)[:, 0, 0] * 255 + IMAGENET_MEAN[0]
        assert torch.equal(((red - 50) / 60).round().long(), split.labels)


def test_validation_is_an_equal_share_of_every_class(tmp_path):
    train = {
        f"train/{name}/{name}_{i}.png": coded(label, 0)
        for label, name in enumerate(CLASSES)
        for i in range(80)
    }
    found = load_image_folder(write(tmp_path, {**folders(), **train}), **SIZES)
    assert torch.bincount(found.validation.labels).tolist() == [5, 4, 4]  # 13 of 270, 90 each
    again = load_image_folder(tmp_path, **SIZES)
    assert torch.equal(found.validation.chosen, again.validation.chosen)


def test_a_test_split_with_classes_leaves_val_for_validation(tmp_path):
    extra = {f"test/{CLASSES[2]}/a.png": coded(2, 0)}
    found = load_image_folder(write(tmp_path, {**folders(), **extra}), **SIZES)
    assert (len(found.train), len(found.validation), len(found.test)) == (30, 12, 1)


BAD = {
    "empty.JPEG": (b"", f.EMPTY),
    "text.JPEG": (b"not an image", f.FOREIGN),
    "torn.JPEG": (encode(smooth(60, 80), "JPEG")[:900], f.DAMAGED),
    "bomb.JPEG": (png(40_000, 40_000), f.HUGE),
    "notes.txt": (b"", f.STRANGE),
}
GOOD = {
    "cmyk.JPEG": {"mode": "CMYK", "form": "JPEG"},
    "grey.JPEG": {"mode": "L", "form": "JPEG"},
    "deep.png": {"mode": "I;16", "form": "PNG"},
    "really_a_png.JPEG": {"mode": "RGB", "form": "PNG"},
}


def test_bad_files_are_left_out_and_counted_and_odd_ones_are_read(tmp_path):
    write(tmp_path, folders())
    place = tmp_path / "train" / CLASSES[1]
    for name, (data, _) in BAD.items():
        (place / name).write_bytes(data)
    for name, kind in GOOD.items():
        file = io.BytesIO()
        source = Image.fromarray(smooth(20, 30)).convert("L")
        if kind["mode"] == "I;16":
            source = Image.fromarray(np.asarray(source).astype(np.uint16) * 257)
        elif kind["mode"] != "L":
            source = source.convert(kind["mode"])
        source.save(file, kind["form"])
        (place / name).write_bytes(file.getvalue())
    with pytest.raises(ValueError, match=r"notes\.txt: a file of another kind"):
        load_image_folder(tmp_path, **SIZES)
    found = load_image_folder(tmp_path, **SIZES, bad_records="skip")
    assert found.skipped == {reason: 1 for _, reason in BAD.values()}
    labels = torch.cat([found.train.labels, found.validation.labels])
    assert torch.bincount(labels).tolist() == [TRAIN, TRAIN + len(GOOD), TRAIN]
    batch = found.train.pixels(torch.arange(len(found.train)), key=0)
    plain = batch[:, 2, 0, 0] == 7  # the blue of coded images
    assert int((~plain).sum()) + int((found.validation.labels == 1).sum()) >= len(GOOD)
    assert (found.train.labels[~plain] == 1).all()
    red = batch[plain][:, 0, 0, 0].double()
    assert torch.equal(((red - 50) / 60).round().long(), found.train.labels[plain])


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"crop": 13}, r"crop must lie in 1\.\.12"),
        ({}, {"bad_records": "drop"}, r"data\.bad_records: expected raise or skip; got 'drop'"),
        ({}, {"root": "train"}, r"expected images in train/<class>/"),
        ({"val": None}, {}, r"expected images with classes in val/ or test/"),
    ],
)
def test_wrong_requests_say_what_is_expected(tmp_path, changes, options, message):
    files = {name: d for name, d in folders().items() if name.split("/")[0] not in changes}
    write(tmp_path, files)
    root = tmp_path / options.pop("root", ".")
    with pytest.raises(ValueError, match=message):
        load_image_folder(root, **{**SIZES, **options})


def test_training_does_not_offer_images_as_long_as_no_model_is_for_them(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_config("train", "", ["--data.name", "image_folder"])
    assert "data.name" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"data\.name: expected one of .*'image_folder'"):
        load("image_folder")


def test_a_tree_is_not_taken_for_a_pack(tmp_path):
    with pytest.raises(ValueError, match=r"the manifest is missing"):
        load_packed(write(tmp_path, folders()))
