"""The order of minibatches: a permutation an epoch, whatever is resumed and whoever prepares it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steinvae.data.images import ImageLoader, load_image_folder
from tests.images.test_split import IMAGES, make
from tests.images.trees import TRAIN, folders, shards, write


def take(count: int, batch_size: int = 7, **options):
    return list(islice(ImageLoader(make(), batch_size, seed=3, **options), count))


def same(left, right) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))


@given(batch_size=st.integers(1, IMAGES), seed=st.integers(0, 2**40), epoch=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_an_epoch_is_a_permutation_with_its_labels(batch_size, seed, epoch):
    loader = ImageLoader(make(), batch_size, seed)
    later = ImageLoader(make(), batch_size, seed, start=epoch * loader.steps_per_epoch)
    batches = list(islice(later, loader.steps_per_epoch))
    indices = torch.cat([batch.indices for batch in batches])
    assert len(indices) == len(indices.unique()) == IMAGES // batch_size * batch_size
    for batch in batches:
        assert torch.equal(batch.labels, make().labels[batch.indices])
        assert torch.equal(batch.pixels[:, 0, 0, 0].long(), make().chosen[batch.indices])


@given(stop=st.integers(0, 12))
@settings(max_examples=13, deadline=None)
def test_a_loader_resumed_at_any_step_goes_on_as_if_nothing_had_been(stop):
    assert same(take(stop) + take(12 - stop, start=stop), take(12))


def test_crops_do_not_depend_on_the_batch_size():
    def crops(batch_size: int) -> dict[int, torch.Tensor]:
        found = take(IMAGES // batch_size, batch_size)
        return {int(i): x for b in found for i, x in zip(b.indices, b.pixels, strict=True)}

    small, large = crops(1), crops(15)
    assert small.keys() == large.keys()
    assert all(torch.equal(small[index], large[index]) for index in small)


def test_seeds_and_epochs_have_crops_of_their_own():
    first = {int(i): x for b in take(30, 1) for i, x in zip(b.indices, b.pixels, strict=True)}
    second = {int(b.indices): b.pixels[0] for b in take(30, 1, start=30)}
    assert sum(torch.equal(first[i], second[i]) for i in first) < 10  # 50 windows: 0.6 in the mean


def test_any_number_of_workers_gives_the_same_batches(tmp_path):
    root = write(tmp_path, shards())
    train = load_image_folder(root, side=12, crop=9).train
    alone = list(islice(ImageLoader(train, 4, seed=1, start=5), 12))
    batches = list(islice(ImageLoader(train, 4, seed=1, start=5, workers=2), 12))
    assert same(batches, alone)
    assert batches[0].pixels.is_contiguous(memory_format=torch.channels_last)


def test_a_bad_image_is_named(tmp_path):
    write(tmp_path, {**folders(), "train/n01440764/n01440764_3.JPEG": b"broken"})
    train = load_image_folder(tmp_path, side=12, crop=9).train
    with pytest.raises(ValueError, match=r"n01440764_3.JPEG: no JPEG.*bad_records=skip"):
        list(islice(ImageLoader(train, 1, seed=0), 3 * TRAIN - 3))


@pytest.mark.parametrize("name", ["workers", "start"])
def test_wrong_settings_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
        ImageLoader(make(), 2, 0, **cast("Any", {name: -1}))


SIGNALLED = """
import signal, sys
from itertools import islice
from steinvae.data.images import ImageLoader, load_image_folder
if __name__ == "__main__":
    stopped = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped.add(number))
    train = load_image_folder(sys.argv[1], side=12, crop=9).train
    batches = iter(ImageLoader(train, 4, seed=1, workers=2))
    print("ready", flush=True)  # the workers are in their first instructions
    while len(stopped) < 2:
        next(batches)
    for _ in range(20):  # more than was prefetched: the workers live
        next(batches)
    print("went on", flush=True)
"""


def test_signals_to_the_group_leave_the_workers_at_work_and_the_process_able_to_end(tmp_path):
    write(tmp_path / "root", folders())
    (tmp_path / "run.py").write_text(SIGNALLED)
    run = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", tmp_path / "root"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    for number in (signal.SIGTERM, signal.SIGINT):
        os.killpg(run.pid, number)
        time.sleep(0.2)
    assert run.communicate(timeout=120)[0] == "went on\n"
    assert run.returncode == 0
