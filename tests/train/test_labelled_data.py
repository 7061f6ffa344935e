"""The labelled subset and its minibatches: stratified, nested, pure functions of their seeds."""

from __future__ import annotations

import pytest
import torch

from steinvae.data import LabelledSampler, choose_labelled, load

LABELS = torch.arange(10).repeat_interleave(torch.arange(12, 22))
FROZEN = [7, 15, 19, 20, 22, 31, 36, 54, 63, 78]


def test_count_per_class_is_exact_and_nested():
    few, many = (choose_labelled(LABELS, per_class=n, seed=3) for n in (2, 9))
    assert torch.bincount(LABELS[few]).tolist() == [2] * 10
    assert torch.bincount(LABELS[many]).tolist() == [9] * 10
    assert set(few.tolist()) < set(many.tolist())
    assert many.tolist() == sorted(set(many.tolist()))


def test_fraction_keeps_the_proportions():
    chosen = choose_labelled(LABELS, fraction=0.25)
    assert torch.bincount(LABELS[chosen]).tolist() == [round(n / 4) for n in range(12, 22)]
    least = choose_labelled(LABELS, fraction=0.001)
    assert torch.bincount(LABELS[least]).tolist() == [1] * 10


def test_choice_is_frozen():
    """The stream of NumPy's RandomState: the same images on every machine and version."""
    chosen = choose_labelled(torch.arange(100) % 10, per_class=1, seed=0)
    assert chosen.tolist() == FROZEN
    other = choose_labelled(torch.arange(100) % 10, per_class=1, seed=1)
    assert chosen.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"per_class": 12},
            r"data\.labels_per_class must .* image of class 0 .* 12 that it has; got 12",
        ),
        ({"fraction": 0.99}, r"data\.label_fraction must .* image of class 0 and leave"),
        ({"per_class": 12, "names": ["cat", *"123456789"]}, r"class 0 \(cat\)"),
        ({}, "expected per_class or fraction"),
        ({"per_class": 1, "fraction": 0.5}, "expected per_class or fraction"),
    ],
)
def test_wrong_sizes_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        choose_labelled(LABELS, **arguments)


def sampler(per_class: int = 3, batch_size: int = 16, seed: int = 5) -> LabelledSampler:
    chosen = choose_labelled(LABELS, per_class=per_class)
    return LabelledSampler(LABELS, chosen, batch_size, seed)


def test_halves_are_labelled_and_not():
    made = sampler(batch_size=17)
    known = set(made.labelled.tolist())
    for step in range(20):
        indices = made.indices(step).tolist()
        assert len(indices) == 17
        assert not known & set(indices[:9])
        assert set(indices[9:]) <= known


@pytest.mark.parametrize("steps", [[7, 0, 3, 7], [40, 2, 40]])
def test_minibatch_depends_on_the_step_alone(steps):
    """In any order of calls, as a resumed run makes them."""
    made = sampler()
    for step in steps:
        assert torch.equal(made.indices(step), sampler().indices(step))
    assert not torch.equal(made.indices(0), sampler(seed=6).indices(0))


@pytest.mark.parametrize(("per_class", "batch_size"), [(3, 16), (1, 64), (7, 30)])
def test_labelled_images_take_turns(per_class, batch_size):
    """Each once an epoch, also where a minibatch holds several; classes one of each in a row."""
    made = sampler(per_class, batch_size)
    half = batch_size // 2
    stream = torch.cat([made.indices(step)[-half:] for step in range(40)])
    epochs = stream[: len(stream) // (10 * per_class) * 10 * per_class].view(-1, 10 * per_class)
    assert len(epochs) >= 2
    assert all(torch.equal(epoch.sort().values, made.labelled) for epoch in epochs)
    turns = LABELS[epochs].view(-1, 10).sort().values
    assert torch.equal(turns, torch.arange(10).expand_as(turns))
    assert not torch.equal(epochs[0], epochs[1])


def test_unlabelled_images_all_come():
    made = sampler(per_class=2, batch_size=20)
    seen = torch.cat([made.indices(step)[:10] for step in range(60)]).unique()
    assert torch.equal(seen, made.unlabelled)
    assert len(made.unlabelled) + len(made.labelled) == len(LABELS)


def test_a_minibatch_needs_two_halves():
    with pytest.raises(ValueError, match=r"trainer\.batch_size must be at least 2"):
        sampler(batch_size=1)


def test_labels_are_those_of_the_images(data_root):
    """MNIST's labels stand beside its images: images of a class resemble their class's mean."""
    split = load("mnist", data_root, binarization="none").train
    assert split.labels is not None
    rows = torch.arange(2000)
    pixels, labels = split.batch(rows), split.labels[:2000]
    means = torch.stack([pixels[labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(split.batch(rows + 2000), means).argmin(1)
    right = (nearest == split.labels[2000:4000]).double().mean()
    assert right > 0.7  # 0.79 measured; 0.1 where labels are of other images
