"""Crops, flips and batches: pure functions of (key, image), in the form that training asks for."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from steinvae.data.images.augment import draw_windows, epoch_key
from steinvae.data.images.split import ImageSplit, centred

SIDE, CROP, IMAGES = 12, 8, 30


class Places:
    """Every pixel of image i says (i, row, column)."""

    side = SIDE

    def __len__(self) -> int:
        return IMAGES

    def read(self, index: int) -> np.ndarray:
        row, column = np.mgrid[:SIDE, :SIDE]
        return np.stack([np.full_like(row, index), row, column], axis=-1).astype(np.uint8)


def make(random: bool = True, crop: int = CROP, **changes) -> ImageSplit:
    arguments = {
        "store": Places(),
        "chosen": torch.arange(IMAGES - 1, -1, -1),
        "labels": torch.arange(IMAGES) % 3,
        "crop": crop,
        "random": random,
        "mean": (10.0, 20.0, 30.0),
        **changes,
    }
    return ImageSplit(**arguments)


@given(
    key=st.integers(0, 2**63 - 1),
    images=st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True),
    places=st.integers(1, 300),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_a_window_depends_on_key_and_image_alone(key, images, places, data):
    whole = np.array(draw_windows(key, np.array(images), places))
    shuffled = data.draw(st.permutations(range(len(images))))
    again = np.array(draw_windows(key, np.array(images)[shuffled], places))
    assert np.array_equal(whole[:, shuffled], again)
    assert (whole >= 0).all()
    assert (whole < np.array([[places], [places], [2]])).all()


def test_windows_are_uniform_and_independent():
    """Chi-squared over all (top, left, flip), for images of one key and keys of one image: 4 x 4 x
    2 cells, at a level of 1e-6 (the draws never change, so this passes always or never)."""
    count = 32_000
    many = [draw_windows(7, np.arange(count), 4)]
    keys = [draw_windows(epoch_key(0, epoch), np.array([5]), 4) for epoch in range(count // 10)]
    many.append(tuple(np.concatenate(part) for part in zip(*keys, strict=True)))
    for top, left, flip in many:
        cells = np.bincount(top * 8 + left * 2 + flip, minlength=32)
        expected = len(top) / 32
        assert ((cells - expected) ** 2 / expected).sum() < chi2.isf(1e-6, 31)


def test_the_draws_never_change():
    """Runs that are compared, and runs that are resumed, rest on these numbers."""
    top, left, flip = draw_windows(epoch_key(3, 14), np.arange(6), 33)
    assert epoch_key(3, 14) == KEY
    assert [top.tolist(), left.tolist(), flip.tolist()] == WINDOWS


KEY = 883441147196725367
WINDOWS = [[25, 0, 10, 5, 25, 11], [13, 30, 1, 6, 17, 3], [0, 0, 1, 1, 1, 0]]


def test_pixels_are_a_window_of_the_image_mirrored_or_not():
    split, indices = make(), torch.tensor([3, 0, 29, 3])
    pixels = split.pixels(indices, key=99)
    assert pixels.shape == (4, 3, CROP, CROP)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    rows = split.chosen[indices].numpy()
    top, left, flip = draw_windows(99, rows, SIDE - CROP + 1)
    for image, row, y, x, mirrored in zip(pixels, rows, top, left, flip, strict=True):
        columns = torch.arange(x, x + CROP).flip(0) if mirrored else torch.arange(x, x + CROP)
        assert (image[0] == row).all()
        assert torch.equal(image[1].long(), torch.arange(y, y + CROP)[:, None].expand(CROP, CROP))
        assert torch.equal(image[2].long(), columns.expand(CROP, CROP))
    assert torch.equal(pixels[0], pixels[3])
    assert not torch.equal(split.pixels(torch.arange(30), 1), split.pixels(torch.arange(30), 2))


def test_all_windows_and_both_directions_occur():
    seen = set()
    for key in range(60):
        for image in make().pixels(torch.arange(IMAGES), key):
            first, last = int(image[2, 0, 0]), int(image[2, 0, -1])
            seen.add((int(image[1, 0, 0]), min(first, last), first < last))
    assert len(seen) == (SIDE - CROP + 1) ** 2 * 2


def test_without_random_it_is_the_central_crop_and_no_key_is_asked_for():
    pixels = make(random=False).pixels(torch.tensor([5]))
    assert torch.equal(pixels[0, 1, :, 0].long(), torch.arange(2, 10))
    assert torch.equal(pixels[0, 2, 0].long(), torch.arange(2, 10))
    whole = make(crop=SIDE, random=False).pixels(torch.tensor([5]))
    assert torch.equal(whole[0, 1, :, 0].long(), torch.arange(SIDE))


def test_a_batch_is_what_training_asks_for():
    split, indices = make(), torch.tensor([1, 2, 3])
    batch = split.batch(indices, torch.Generator().manual_seed(4))
    key = int(torch.randint(2**63 - 1, (), generator=torch.Generator().manual_seed(4)))
    pixels = split.pixels(indices, key)
    expected = (pixels.double() - torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1)) / 255
    assert batch.dtype == torch.float32
    assert batch.shape == (3, split.features) == (3, 3 * CROP**2)
    assert (batch.double() - expected.flatten(1)).abs().max() < 2**-24  # of numbers below 1
    assert torch.equal(batch, centred(pixels, split.mean).flatten(1))
    central = make(random=False)
    assert torch.equal(central.batch(indices), central.batch(indices, torch.Generator()))
    assert split.batch(torch.empty(0, dtype=torch.int64), torch.Generator()).shape == (0, 192)


def test_a_split_crosses_processes():
    again = pickle.loads(pickle.dumps(make()))
    assert torch.equal(again.pixels(torch.arange(9), 5), make().pixels(torch.arange(9), 5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make(crop=13), ValueError, r"crop must lie in 1\.\.12"),
        (lambda: make(crop=0), ValueError, r"crop must lie in 1\.\.12"),
        (
            lambda: make(labels=torch.zeros(2, dtype=torch.int64)),
            ValueError,
            r"labels must be \(30",
        ),
        (lambda: make(labels=torch.zeros(30)), ValueError, "int64, got"),
        (lambda: make().pixels(torch.tensor([0])), ValueError, "need a key"),
        (lambda: make().batch(torch.tensor([0])), ValueError, "need a key"),
        (lambda: make().pixels(torch.tensor([0]), -1), ValueError, "key must lie in"),
        (lambda: make().pixels(torch.tensor([0.0]), 1), TypeError, "must be .* int64"),
        (lambda: make().pixels(torch.tensor([[0]]), 1), TypeError, "must be .* int64"),
        (lambda: make().pixels(torch.tensor([30]), 1), ValueError, r"0\.\.29, got 30"),
        (lambda: make().pixels(torch.tensor([-1]), 1), ValueError, r"0\.\.29, got -1"),
    ],
)
def test_wrong_requests_say_what_is_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()
