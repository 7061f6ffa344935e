"""Packed images are the images, whatever was killed on the way, and damage is found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from steinvae.data import pack as command
from steinvae.data.identity import identity
from steinvae.data.images import faults as f
from steinvae.data.images import load_image_folder, load_packed, packing
from steinvae.data.images.packed import load_images
from steinvae.data.images.packing import pack
from tests.images.trees import CLASSES, TRAIN, VAL, encode, folders, shards, smooth, write

SIDE, CROP = 16, 12
SHARD = 7 * SIDE * SIDE * 3  # bytes: 7 images, so that 30 + 12 images make 5 + 2 shards


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Photographs in JPEG, of a class each by name alone."""
    files = {
        name: encode(smooth(20 + i % 7, 24 + i % 5, seed=i), "JPEG")
        for i, name in enumerate(folders())
    }
    return write(tmp_path_factory.mktemp("root"), files)


@pytest.fixture(scope="module")
def packed(root, tmp_path_factory) -> Path:
    """By one process, without a break."""
    out = tmp_path_factory.mktemp("out")
    pack(root, out, side=SIDE, shard_bytes=SHARD)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def test_packed_batches_are_those_of_the_files_bit_for_bit(root, packed):
    mean = (1.0, 2.0, 3.0)
    files = load_image_folder(root, side=SIDE, crop=CROP, mean=mean)
    shards = load_packed(packed, crop=CROP, mean=mean, verify=True)
    assert shards.classes == files.classes == CLASSES
    for part in ("train", "validation", "test"):
        left, right = getattr(files, part), getattr(shards, part)
        assert torch.equal(left.labels, right.labels)
        every = torch.arange(len(left))
        assert torch.equal(left.pixels(every, 5), right.pixels(every, 5))
        generators = [torch.Generator().manual_seed(1) for _ in range(2)]
        batches = [s.batch(every, g) for s, g in zip((left, right), generators, strict=True)]
        assert torch.equal(*batches)
        assert left.random == right.random


def test_a_pack_is_what_its_manifest_says(root, packed):
    manifest = json.loads((packed / "manifest.json").read_text())
    assert [len(manifest["splits"][s]["shards"]) for s in ("train", "val")] == [5, 2]
    pixels = np.concatenate([np.load(packed / f"train-{i:05d}.npy") for i in range(5)])
    assert pixels.shape == (3 * TRAIN, SIDE, SIDE, 3)
    assert np.allclose(manifest["mean"], pixels.reshape(-1, 3).mean(0), rtol=1e-12)
    assert load_packed(packed, crop=CROP).train.mean == tuple(manifest["mean"])
    names = (packed / "train-names.txt").read_text().splitlines()
    assert names == sorted(n for n in folders() if n.startswith("train"))
    assert not (packed / "parts").exists()


def test_packed_images_are_read_without_open_files(packed):
    split = load_packed(packed, crop=CROP).train
    before = len(os.listdir("/proc/self/fd"))
    split.pixels(torch.arange(len(split)), 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_form_of_the_source_and_workers_change_nothing(tmp_path):
    """From tars by another process, from files by this one: all but the plan's sizes agree."""
    outs = []
    for name, files, workers in (("files", folders(), 0), ("tars", shards(), 1)):
        out = tmp_path / f"{name}-out"
        pack(write(tmp_path / name, files), out, side=9, shard_bytes=8 * 9 * 9 * 3, workers=workers)
        outs.append(contents(out))
    shapes = [{name: data for name, data in out.items() if name.endswith(".npy")} for out in outs]
    assert shapes[0] == shapes[1]


KILLED = """
import sys, time
from pathlib import Path
from steinvae.data.images import packing
shard = packing._Work.__getitem__
def slow(self, number):
    record = shard(self, number)
    print(number, flush=True)
    time.sleep(0.05)
    return record
packing._Work.__getitem__ = slow
packing.pack(Path(sys.argv[1]), Path(sys.argv[2]), side=16, shard_bytes=int(sys.argv[3]))
"""


def test_a_killed_pack_goes_on_and_ends_as_if_nothing_had_been(root, packed, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, root, out, str(SHARD)]
    for done, number in ((1, signal.SIGKILL), (2, signal.SIGTERM)):
        run = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        assert run.stdout is not None
        for _ in range(done):
            run.stdout.readline()
        run.send_signal(number)
        assert run.wait(timeout=60) == -number
        run.stdout.close()
        assert not (out / "manifest.json").exists()
        assert 1 <= len(list((out / "parts").glob("*.json"))) < 7
    (out / ".train-00003-0123abcd.npy").write_bytes(b"half")  # what a kill leaves in mid-write
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("train-*.npy")}
    pack(root, out, side=SIDE, shard_bytes=SHARD)
    assert contents(out) == contents(packed)
    assert len(times) >= 3
    assert all((out / name).stat().st_mtime_ns == at for name, at in times.items())  # not again


def test_a_shard_that_was_damaged_while_packing_is_packed_again(
    root, packed, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_finish", lambda *_: {})
        pack(root, out, side=SIDE, shard_bytes=SHARD)
    shard = out / "train-00002.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    (out / "parts" / "train-00001.json").write_text("{")
    pack(root, out, side=SIDE, shard_bytes=SHARD)
    assert contents(out) == contents(packed)


@pytest.mark.parametrize("name", ["train-00001.npy", "val-labels.npy", "train-names.txt"])
def test_damage_to_a_finished_pack_is_found(root, packed, tmp_path, name):
    out = tmp_path / "out"
    shutil.copytree(packed, out)
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{name}: the content does not match its SHA-256"):
        load_packed(out, crop=CROP, verify=True)
    with pytest.raises(ValueError, match=f"{name}: the content does not match its SHA-256"):
        pack(root, out, side=SIDE, shard_bytes=SHARD)
    (out / name).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"{name}: expected \d+ bytes"):
        load_packed(out, crop=CROP)
    (out / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: the file is missing"):
        load_packed(out, crop=CROP)
    (out / "manifest.json").write_text((packed / "manifest.json").read_text().replace("16", "17"))
    with pytest.raises(ValueError, match="does not match its own checksum"):
        load_packed(out, crop=CROP)


def test_bad_images_are_named_or_left_out_with_their_labels(root, tmp_path):
    bad = tmp_path / "root"
    shutil.copytree(root, bad)
    for i in (0, 4):
        (bad / "train" / CLASSES[1] / f"{CLASSES[1]}_{i}.JPEG").write_bytes(b"")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"_0\.JPEG: an empty file.*--bad_records skip"):
        pack(bad, out, side=SIDE, shard_bytes=SHARD)
    manifest = pack(bad, out, side=SIDE, shard_bytes=SHARD, bad_records="skip")
    assert manifest["skipped"] == {f.EMPTY: 2}
    found = load_packed(out, crop=CROP, mean=(0, 0, 0))
    assert found.skipped == {f.EMPTY: 2}
    left = load_image_folder(bad, side=SIDE, crop=CROP, bad_records="skip", mean=(0, 0, 0))
    assert left.skipped == found.skipped
    every = torch.arange(len(left.train))
    assert torch.equal(left.train.pixels(every, 3), found.train.pixels(every, 3))
    assert torch.equal(left.train.labels, found.train.labels)
    assert torch.bincount(found.train.labels).sum() + len(found.validation) == 3 * TRAIN - 2
    names = (out / "train-names.txt").read_text()
    assert f"{CLASSES[1]}_0.JPEG" not in names
    assert names.count(CLASSES[1] + "/") == TRAIN - 2


def test_another_pack_and_other_files_are_not_overwritten(root, packed, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"holds another pack.* in side: 16 where .* 8"):
        pack(root, packed, side=8, shard_bytes=8 * 8 * 3 * 7)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected a new or empty directory"):
        pack(root, tmp_path, side=8)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"expected 0\.1 GB of free disk, got 0\.0 GB"):
        pack(root, tmp_path / "new", side=8)


def test_the_command_packs_verifies_and_says_what_is_there(root, tmp_path, capsys):
    arguments = [str(root), str(tmp_path / "out"), "--side", "16", "--workers", "0"]
    assert command.main(arguments) == 0
    said = capsys.readouterr()
    counts = f"{3 * TRAIN} train, {3 * VAL} val images of 16 x 16 pixels, 3 classes"
    assert counts in said.out
    assert "pack 42/42" in said.err
    assert command.main(arguments) == 0
    assert "every file verified" in capsys.readouterr().out
    assert command.main([str(tmp_path / "no"), *arguments[1:]]) == 1
    assert "data.root=" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([*arguments, "--side", "0"])


def test_a_pack_of_other_files_is_refused(root, packed, tmp_path):
    """Of the same names: another size, or another folder."""
    out = shutil.copytree(packed, tmp_path / "out")
    with pytest.raises(ValueError, match="holds another pack, which differs in listing"):
        pack(write(tmp_path / "other", folders()), out, side=SIDE, shard_bytes=SHARD)
    same = shutil.copytree(root, tmp_path / "same")
    pack(same, out, side=SIDE, shard_bytes=SHARD)


def test_a_finished_pack_is_verified_by_other_versions_too(root, packed, tmp_path, monkeypatch):
    """Begun ones are not: resizing may differ."""
    out = shutil.copytree(packed, tmp_path / "out")
    monkeypatch.setattr(packing.PIL, "__version__", "99.0")
    pack(root, out, side=SIDE, shard_bytes=SHARD)
    (out / "manifest.json").unlink()
    with pytest.raises(ValueError, match="differs in versions"):
        pack(root, out, side=SIDE, shard_bytes=SHARD)


def test_names_that_are_no_text_are_packed(tmp_path):
    files = {os.fsdecode(name): data for name, data in odd_names().items()}
    root, out = write(tmp_path / "root", {**folders(), **files}), tmp_path / "out"
    pack(root, out, side=SIDE)
    names = (out / "train-names.txt").read_bytes().splitlines()
    assert len(names) == 3 * TRAIN + len(files)
    assert b"train/n01440764/\xe9.JPEG" in names
    assert b"train/n01440764/two\\nlines.JPEG" in names


def odd_names() -> dict[bytes, bytes]:
    names = (b"\xe9.JPEG", b"two\nlines.JPEG")
    return {b"train/n01440764/" + name: encode(smooth(20, 20)) for name in names}


def test_a_tree_and_its_pack_train_alike(root, packed):
    """The same mean, the same identity, the same batches."""
    of_files, of_shards = (load_images(each, side=SIDE, crop=CROP) for each in (root, packed))
    assert identity(of_files.train) == identity(of_shards.train)
    every = torch.arange(len(of_files.train))
    draws = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(
        of_files.train.batch(every, draws[0]), of_shards.train.batch(every, draws[1])
    )


@pytest.mark.parametrize("content", [b"[1]", b"{", b'{"kind": "a list of one\'s own"}'])
def test_a_tree_may_have_a_manifest_of_its_own(tmp_path, content):
    root = write(tmp_path, {**folders(), "manifest.json": content})
    assert len(load_images(root, side=9, crop=8).test) == 3 * VAL
