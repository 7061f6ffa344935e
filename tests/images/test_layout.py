"""Every form of the tree gives the same images the same labels, and doubt is an error."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from steinvae.data.images import faults as f
from steinvae.data.images.decode import decode
from steinvae.data.images.faults import Faults
from steinvae.data.images.ground_truth import read_ground_truth
from steinvae.data.images.layout import list_images
from tests.images.trees import (
    CLASSES,
    FORMS,
    TRAIN,
    VAL,
    as_tar,
    coded,
    codes,
    development_kit,
    folders,
    kaggle,
    shards,
    tiny,
    write,
)


def listed(root: Path, on_bad: f.BadRecords = "raise", **options):
    faults = Faults(on_bad)
    classes, splits = list_images(root, faults, **options)
    return classes, splits, faults


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_every_image_its_label(tmp_path, form):
    classes, splits, _ = listed(write(tmp_path, FORMS[form]()))
    assert classes == CLASSES
    assert set(splits) == {"train", "val"}
    numbers = {"train": range(TRAIN), "val": range(15, 15 + VAL)}
    for name, split in splits.items():
        found = [codes(decode(split.places.read(i))) for i in range(len(split.places))]
        assert [label for label, _ in found] == split.labels.tolist()
        assert sorted(found) == [(label, i) for label in range(3) for i in numbers[name]]
        assert split.labels.dtype == np.int64


def test_the_order_is_that_of_class_and_name_in_every_form(tmp_path):
    orders = {}
    for form, files in FORMS.items():
        _, splits, _ = listed(write(tmp_path / form, files()))
        orders[form] = {name: split.places.names.tolist() for name, split in splits.items()}
    first = orders["folders"]
    assert first["train"] == [f"{n}_{i}.JPEG".encode() for n in CLASSES for i in range(TRAIN)]
    assert all(order == first for order in orders.values())


def test_a_tar_is_a_root_and_files_after_it_are_read_by_offset(tmp_path):
    (tmp_path / "a.tar").write_bytes(as_tar(folders()))
    _, splits, _ = listed(tmp_path / "a.tar")
    places = splits["train"].places
    assert places.read(0) == folders()["train/n01440764/n01440764_0.JPEG"]
    assert places.title(0) == f"{tmp_path}/a.tar:a/train/n01440764/n01440764_0.JPEG"
    assert places.path(0) == "a/train/n01440764/n01440764_0.JPEG"


def test_pax_and_gnu_headers_with_long_names_are_read(tmp_path):
    long = "x" * 150
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        write(tmp_path / "tree", {**folders(), f"train/n01440764/{long}.JPEG": coded(0, 11)})
        with tarfile.open(tmp_path / "long.tar", "w", format=form) as archive:
            archive.add(tmp_path / "tree", arcname=".")
        _, splits, _ = listed(tmp_path / "long.tar")
        assert len(splits["train"].labels) == 3 * TRAIN + 1
        last = [i for i, name in enumerate(splits["train"].places.names) if long.encode() in name]
        assert codes(decode(splits["train"].places.read(last[0]))) == (0, 11)


def test_names_need_not_be_text(tmp_path):
    write(tmp_path, folders())
    odd = tmp_path / "train" / CLASSES[0]
    Path(str(odd).encode().decode() + "/\udcff\udcfe.png").write_bytes(coded(0, 12))
    _, splits, _ = listed(tmp_path)
    places = splits["train"].places
    (at,) = [i for i, name in enumerate(places.names) if name == b"\xff\xfe.png"]
    assert codes(decode(places.read(at))) == (0, 12)


def test_tests_with_classes_are_a_third_split(tmp_path):
    extra = {f"test/{CLASSES[1]}/a.png": coded(1, 9)}
    _, splits, _ = listed(write(tmp_path, {**folders(), **extra}))
    assert splits["test"].labels.tolist() == [1]


def damaged(files: dict[str, bytes], **changes: bytes | None) -> dict[str, bytes]:
    """With files added, or taken away where the content is None."""
    whole = {**files, **changes}
    return {name: data for name, data in whole.items() if data is not None}


FIRST = "train/n01440764/n01440764_0.JPEG"
TRUTH = tiny()["val/val_annotations.txt"].decode().splitlines(keepends=True)

FAULTS = {
    "a text among images": (folders(), {"train/n01440764/notes.txt": b"x"}, f.STRANGE, 30),
    "an image with another ending": (
        folders(),
        {FIRST: None, FIRST[:-4] + "dat": b""},
        f.STRANGE,
        29,
    ),
    "an image outside a class": (folders(), {"train/stray.png": coded(0, 0)}, f.UNLABELLED, 30),
    "a class in val alone": (folders(), {"val/n09999999/a.png": coded(0, 0)}, f.UNKNOWN, 30),
    "an image that no line names": (tiny(), {"val/images/more.png": coded(0, 0)}, f.UNLABELLED, 30),
    "a line that names no image": (
        tiny(),
        {"val/val_annotations.txt": "".join([*TRUTH, "gone.JPEG\tn01440764\n"]).encode()},
        f.ABSENT,
        30,
    ),
    "a line of another class": (
        tiny(),
        {"val/val_annotations.txt": "".join(TRUTH).replace(CLASSES[2], "n0").encode()},
        f.UNKNOWN,
        30,
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_fits_nowhere_is_an_error_or_counted(tmp_path, case):
    files, changes, reason, train = FAULTS[case]
    write(tmp_path, damaged(files, **changes))
    with pytest.raises(ValueError, match=reason):
        listed(tmp_path)
    classes, splits, faults = listed(tmp_path, "skip")
    assert set(faults.skipped) == {reason}
    assert classes == CLASSES
    assert len(splits["train"].labels) == train
    for split in splits.values():
        found = [codes(decode(split.places.read(i)))[0] for i in range(len(split.places))]
        assert found == split.labels.tolist()


def test_a_class_without_images_keeps_its_number(tmp_path):
    write(tmp_path, folders())
    (tmp_path / "train" / "n015").mkdir()
    with pytest.raises(ValueError, match=r"train/n015: a class without images"):
        listed(tmp_path)
    classes, splits, faults = listed(tmp_path, "skip")
    assert classes == ("n01440764", "n015", *CLASSES[1:])
    assert set(splits["train"].labels.tolist()) == {0, 2, 3}
    assert faults.skipped == {f.VACANT: 1}


@pytest.mark.parametrize("first", ["f1/", ""])
def test_two_trees_are_not_taken_for_one(first, tmp_path):
    """Test images of one are training images of the other, as in the folds of a data set."""
    two = {f"{first}{name}": data for name, data in folders().items()}
    swapped = {"train": "val", "val": "train"}
    for name, data in folders().items():
        split, rest = name.split("/", 1)
        two[f"f2/{swapped[split]}/{rest}"] = data
    write(tmp_path, two)
    below = re.escape(f"lie below both {' and '.join(sorted((first or './', 'f2/')))}")
    with pytest.raises(ValueError, match=rf"(train|val) images {below}: two data sets"):
        listed(tmp_path)
    with pytest.raises(ValueError, match="two data sets"):
        listed(tmp_path, "skip")
    classes, _, _ = listed(tmp_path / "f2")
    assert classes == CLASSES


def test_shards_above_a_split_and_annotations_beside_it_are_one_tree(tmp_path):
    """As Kaggle has ImageNet, and tars that were cut without looking at the splits."""
    kaggle = {f"Data/CLS-LOC/{name}": data for name, data in folders().items()}
    boxes = {
        f"Annotations/CLS-LOC/{name.rpartition('.')[0]}.xml": b"<annotation/>" for name in folders()
    }
    whole = sorted(folders().items())
    halves = {f"part-{i}.tar": as_tar(dict(whole[i::2])) for i in range(2)}
    for number, files in enumerate(({**kaggle, **boxes}, halves)):
        classes, splits, _ = listed(write(tmp_path / str(number), files))
        assert classes == CLASSES
        assert len(splits["train"].labels) == 3 * TRAIN


@pytest.mark.parametrize("kind", ["a hole", "two archives in one file", "cut off", "cut within"])
def test_a_tar_with_images_after_its_end_or_without_one_is_refused(tmp_path, kind):
    """Zeros are the end of an archive: a hole in a download would hide all that follows."""
    whole = as_tar(folders())
    middle = len(whole) // 1024 * 512
    content = {
        "a hole": whole[:middle] + bytes(4096) + whole[middle + 4096 :],
        "two archives in one file": whole + whole,
        "cut off": whole[:middle],
        "cut within": whole[: middle + 100],
    }[kind]
    path = tmp_path / "images.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images.tar: expected a complete, uncompressed tar"):
        listed(path)


def test_zeros_after_the_end_are_padding(tmp_path):
    path = tmp_path / "images.tar"
    path.write_bytes(as_tar(folders()) + bytes(3 * 2**20))
    assert len(listed(path)[1]["train"].labels) == 30


def test_links_in_a_tar_are_faults(tmp_path):
    write(tmp_path / "tree", folders())
    with tarfile.open(tmp_path / "tree.tar", "w") as archive:
        archive.add(tmp_path / "tree", arcname=".")
        member = tarfile.TarInfo("train/n01440764/again.JPEG")
        member.type, member.linkname = tarfile.SYMTYPE, "n01440764_0.JPEG"
        archive.addfile(member)
    with pytest.raises(ValueError, match=r"again.JPEG: a link"):
        listed(tmp_path / "tree.tar")
    assert listed(tmp_path / "tree.tar", "skip")[2].skipped == {f.LINK: 1}


TAR = len(folders()) * 1024
"""Bytes of a tar of small files, without its end: a header and a block each."""

WRONG = {
    "nothing": ({"readme.txt": b""}, r"expected images in train/<class>/"),
    "val without a list": (
        damaged(tiny(), **{"val/val_annotations.txt": None}),
        "lie flat in one folder.*give ground_truth",
    ),
    "numbers without their meaning": (
        damaged(development_kit(), **{"ILSVRC2012_devkit_t12/data/meta.mat": None}),
        "no meta.mat beside it says",
    ),
    "another meta.mat": (
        damaged(development_kit(), **{"ILSVRC2012_devkit_t12/data/meta.mat": b"MATLAB"}),
        "meta.mat is not the development kit's",
    ),
    "a list that contradicts itself": (
        {
            **tiny(),
            "val/val_annotations.txt": "".join([*TRUTH, *TRUTH]).replace(CLASSES[0], "b", 1),
        },
        "has two classes",
    ),
    "a folder within a class": (
        {**folders(), "train/n01440764/more/a.png": coded(0, 0)},
        "a folder within a class",
    ),
    "the same image in a folder and a tar": (
        {**folders(), **shards()},
        "the same image as in",
    ),
    "flat shards": (
        {
            "train-0.tar": as_tar({"0.png": coded(0, 0)}),
            "val-0.tar": as_tar({"0.png": coded(0, 0)}),
        },
        "expected images in train/<class>/",
    ),
    "flat shards of a split, which are no classes": (
        {f"{split}/shard-0.tar": as_tar({"0.png": coded(0, 0)}) for split in ("train", "val")},
        "expected images in train/<class>/",
    ),
    "a compressed shard": (
        {**folders(), "train/shard-9.tar.gz": b"\x1f\x8b"},
        "expected an uncompressed tar",
    ),
    "a compressed tar by its content": (
        {**folders(), "train/shard-9.tar": b"\x1f\x8b" + bytes(600)},
        "shard-9.tar: expected a complete, uncompressed tar",
    ),
    "a tar that is cut off within an image": (
        {"all.tar": as_tar(folders())[: TAR - 700]},
        "all.tar: expected a complete, uncompressed tar",
    ),
    "a tar that is cut off within a header": (
        {"all.tar": as_tar(folders())[: TAR - 1300]},
        "all.tar: expected a complete, uncompressed tar",
    ),
    "a tar that is cut off between images": (
        {"all.tar": as_tar(folders())[: TAR - 1024]},
        "all.tar: expected a complete, uncompressed tar",
    ),
    "a tar with a damaged header": (
        {"all.tar": as_tar(folders())[: TAR - 1024] + b"\xff" * 700 + bytes(1024)},
        "all.tar: expected a complete, uncompressed tar",
    ),
    "a tree too deep": ({f"train/{'a/' * 6}x.png": b""}, "at most 6 folders"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_trees_are_refused_under_every_policy(tmp_path, case):
    files, message = WRONG[case]
    contents = {n: d.encode() if isinstance(d, str) else d for n, d in files.items()}
    write(tmp_path, contents)
    for on_bad in ("raise", "skip"):
        with pytest.raises(ValueError, match=message):
            listed(tmp_path, on_bad)


def test_a_missing_root_names_the_setting(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.root="):
        listed(tmp_path / "nowhere")


def test_a_tar_cut_off_after_it_was_listed_is_an_error(tmp_path):
    write(tmp_path, {"all.tar": as_tar(folders())})
    _, splits, _ = listed(tmp_path)
    (tmp_path / "all.tar").write_bytes(as_tar(folders())[:600])
    with pytest.raises(ValueError, match=r"all.tar: expected \d+ bytes of"):
        splits["val"].places.read(0)


def test_a_list_of_ones_own_is_given_by_path(tmp_path):
    files = kaggle()
    lines = files.pop("LOC_val_solution.csv").decode().splitlines()[1:]
    pairs = [line.split(",") for line in lines]
    own = tmp_path / "own.txt"
    own.write_text("".join(f"{name}.JPEG {rest.split()[0]}\n" for name, rest in pairs))
    _, splits, _ = listed(write(tmp_path / "root", files), ground_truth=own)
    found = [codes(decode(splits["val"].places.read(i)))[0] for i in range(3 * VAL)]
    assert found == splits["val"].labels.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"a.JPEG\n", "list:1: expected an image and its class"), (b"1\n2\n", "got numbers")],
)
def test_other_lists_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_ground_truth("list", text)
