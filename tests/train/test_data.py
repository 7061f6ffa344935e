"""What the data sets hold, and what a batch of each binarisation is."""

from __future__ import annotations

import hashlib
import sys
from typing import Any, cast

import pytest
import torch

from steinvae import data
from steinvae.data import Dataset, Split, load, registry, step_generator
from steinvae.data.binarize import fixed_bits
from steinvae.data.dataset import bernoulli
from steinvae.data.digits import stratified_split


def labels_of(split: Split) -> torch.Tensor:
    assert split.labels is not None
    return split.labels


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def test_digits_are_all_there_once_and_stratified():
    grey = load("digits", binarization="none")
    assert (len(grey.train), len(grey.validation), len(grey.test)) == (1297, 250, 250)
    assert grey.image_shape == (8, 8)
    parts = (grey.train, grey.validation, grey.test)
    rows = torch.cat([torch.cat([p.pixels.long(), labels_of(p)[:, None]], 1) for p in parts])
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    whole = torch.cat([torch.tensor(images).long(), torch.tensor(labels)[:, None]], 1)
    assert torch.equal(torch.unique(rows, dim=0), torch.unique(whole, dim=0))
    for part in (grey.validation, grey.test):
        exact = torch.bincount(torch.tensor(labels)) * 250 / 1797
        assert (torch.bincount(labels_of(part)) - exact).abs().max() < 1


def test_the_split_and_the_fixed_bits_never_change():
    # Published numbers depend on these bits: a change here changes every result on digits.
    fixed = load("digits", binarization="fixed")
    assert digest(load("digits", binarization="none").test.pixels) == "6e90971350c8b035"
    assert digest(fixed.train.pixels) == "a7b81862a44dc7d7"
    assert digest(fixed.test.pixels) == "8a0040f6172f298e"


def test_fixed_batches_are_the_stored_bits():
    fixed = load("digits", binarization="fixed")
    batch = fixed.train.batch(torch.tensor([3, 0]))
    assert batch.dtype == torch.float32
    assert torch.equal(batch, fixed.train.pixels[[3, 0]].float())
    assert set(fixed.train.pixels.unique().tolist()) == {0, 1}
    again = load("digits", binarization="fixed", seed=7)
    assert not torch.equal(again.train.pixels, fixed.train.pixels)
    assert (fixed.title, again.title) == ("digits, fixed, draw 2017", "digits, fixed, draw 7")


def test_dynamic_batches_are_drawn_anew_and_evaluation_is_not():
    dynamic, fixed = (load("digits", binarization=b) for b in ("dynamic", "fixed"))
    rows = torch.arange(100)
    first = dynamic.train.batch(rows, step_generator(0, 0, "bits"))
    assert torch.equal(first, dynamic.train.batch(rows, step_generator(0, 0, "bits")))
    assert not torch.equal(first, dynamic.train.batch(rows, step_generator(0, 1, "bits")))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    for name in ("validation", "test"):
        assert torch.equal(getattr(dynamic, name).pixels, getattr(fixed, name).pixels)
    with pytest.raises(ValueError, match="dynamic binarisation needs a generator"):
        dynamic.train.batch(rows)


def test_grey_batches_are_intensities():
    grey = load("digits", binarization="none")
    assert torch.equal(grey.test.batch(torch.arange(250)), grey.test.pixels.float() / 16)
    assert grey.binarization_seed is None


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_draws_have_the_intensity_as_probability(levels):
    pixels = torch.arange(levels + 1, dtype=torch.uint8).repeat(20_000, 1)[
        :, :: max(1, levels // 8)
    ]
    exact = pixels[0].double() / levels
    sd = (exact * (1 - exact) / 20_000).sqrt()
    dynamic = bernoulli(pixels, levels, step_generator(0, 0, "bits"))
    for bits in (fixed_bits(pixels, levels, 1, 0), dynamic):
        assert ((bits.double().mean(0) - exact).abs() <= 5 * sd).all()  # exact at 0 and at `levels`


def test_fixed_bits_depend_on_the_split_and_not_on_the_chunks(monkeypatch):
    pixels = torch.full((300, 7), 8, dtype=torch.uint8)
    whole = fixed_bits(pixels, 16, 0, 0)
    assert not torch.equal(whole, fixed_bits(pixels, 16, 0, 1))
    monkeypatch.setattr("steinvae.data.binarize._CHUNK", 64)
    assert torch.equal(fixed_bits(pixels, 16, 0, 0), whole)


def test_stratified_split_gives_every_index_once():
    labels = torch.tensor([0] * 5 + [1] * 90 + [2] * 17).numpy()
    parts = stratified_split(labels, 20, 30)
    assert [len(part) for part in parts] == [62, 20, 30]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(112))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: load("fashion"),
            ValueError,
            r"data.name.*binarized_mnist, digits, mnist.*'fashion'",
        ),
        (
            lambda: load("digits", binarization=cast("Any", "maybe")),
            ValueError,
            "data.binarization.*'maybe'",
        ),
        (lambda: load("digits", seed=-1), ValueError, "seed must lie in 0"),
        (lambda: load("mnist"), FileNotFoundError, "data.root is not set"),
        (
            lambda: load("binarized_mnist", ".", binarization="none"),
            ValueError,
            "bits without the grey levels.*only 'fixed'.*'none'",
        ),
        (lambda: data.register("digits")(data.digits.load), ValueError, "already taken"),
    ],
)
def test_wrong_requests_say_what_is_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pixels": torch.zeros(2, 3)}, TypeError, "uint8, got torch.float32"),
        ({"pixels": torch.zeros(6, dtype=torch.uint8)}, ValueError, r"\(N, X\), got \(6,\)"),
        ({"levels": 0}, ValueError, "levels must be in 1..255, got 0"),
        ({"labels": torch.zeros(2)}, TypeError, "int64, got torch.float32"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"\(2,\), got \(3,\)"),
    ],
)
def test_split_checks_its_tensors(arguments, error, message):
    good = {"pixels": torch.zeros(2, 3, dtype=torch.uint8), "levels": 1}
    with pytest.raises(error, match=message):
        Split(**good | arguments)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (torch.tensor([0], dtype=torch.int32), TypeError, "int64, got torch.int32"),
        (torch.tensor([[0]]), ValueError, r"\(B,\), got \(1, 1\)"),
        (torch.tensor([0, 5]), ValueError, r"0..4, got 0..5"),
        (torch.tensor([-1]), ValueError, r"0..4, got -1..-1"),
    ],
)
def test_batch_checks_its_indices(indices, error, message):
    split = Split(pixels=torch.zeros(5, 3, dtype=torch.uint8), levels=1)
    with pytest.raises(error, match=message):
        split.batch(indices)


def test_an_empty_batch_is_a_batch():
    split = Split(pixels=torch.zeros(5, 3, dtype=torch.uint8), levels=1)
    assert split.batch(torch.empty(0, dtype=torch.int64)).shape == (0, 3)


def test_a_missing_scikit_learn_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"data.name=digits needs scikit-learn.*extra `train`"):
        load("digits")


def test_a_new_data_set_is_one_function(monkeypatch):
    monkeypatch.setattr("steinvae.data.registry._LOADERS", dict(registry._LOADERS))
    digits = load("digits", binarization="none")
    data.register("mine")(lambda root, binarization, seed: digits)
    assert load("mine") is digits
    assert "mine" in data.names()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": (0, 6)}, "validation must not be empty"),
        ({"train": (0, 6), "test": (0, 6)}, "train, test must not be empty"),
        ({"test": (3, 5)}, r"equally wide, got .*'test': 5"),
        ({"image_shape": (2, 4)}, r"as an image of the splits, 6, got \(2, 4\)"),
    ],
)
def test_splits_that_do_not_fit_together_are_refused(changes, message):
    made = {"train": (4, 6), "validation": (3, 6), "test": (3, 6), "image_shape": (2, 3)} | changes
    shape = made.pop("image_shape")
    splits: dict[str, Split] = {
        name: Split(pixels=torch.zeros(size, dtype=torch.uint8), levels=1)
        for name, size in made.items()
    }
    with pytest.raises(ValueError, match=message):
        Dataset(
            name="own", binarization="none", binarization_seed=None, image_shape=shape, **splits
        )
