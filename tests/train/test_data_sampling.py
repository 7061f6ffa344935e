"""Minibatches and random streams are pure functions of (seed, step)."""

from __future__ import annotations

import pytest
import torch

from steinvae.data import BatchSampler, load, step_generator
from steinvae.data.sampling import _finalise
from steinvae.feed import Feed


def draw(seed: int, step: int, stream: str) -> list[float]:
    return torch.rand(4, generator=step_generator(seed, step, stream)).tolist()


def test_an_epoch_visits_every_image_at_most_once_and_drops_the_remainder():
    sampler = BatchSampler(103, 10, seed=0)
    assert sampler.steps_per_epoch == 10
    for epoch in range(3):
        seen = torch.cat([sampler.indices(epoch * 10 + i) for i in range(10)])
        assert seen.dtype == torch.int64
        assert len(seen.unique()) == 100
        assert 0 <= int(seen.min()) <= int(seen.max()) < 103
    assert not torch.equal(sampler.indices(0), sampler.indices(10))


def test_the_images_dropped_change_from_epoch_to_epoch():
    sampler = BatchSampler(11, 10, seed=3)
    dropped = {
        (set(range(11)) - set(sampler.indices(epoch).tolist())).pop() for epoch in range(200)
    }
    assert dropped == set(range(11))


def test_any_order_of_calls_gives_the_same_batches():
    sampler = BatchSampler(50, 8, seed=1)
    forward = [sampler.indices(step) for step in range(20)]
    for step in (19, 0, 7, 6, 13):
        assert torch.equal(BatchSampler(50, 8, seed=1).indices(step), forward[step])
        assert torch.equal(sampler.indices(step), forward[step])
    assert not torch.equal(BatchSampler(50, 8, seed=2).indices(0), forward[0])


def test_writing_to_a_batch_does_not_change_the_epoch():
    sampler = BatchSampler(10, 5, seed=0)
    sampler.indices(0).fill_(0)
    assert len(torch.cat([sampler.indices(0), sampler.indices(1)]).unique()) == 10


def test_streams_depend_on_seed_step_and_name_alone():
    reference = draw(0, 5, "noise")
    torch.rand(3)  # the global generator plays no part
    assert draw(0, 5, "noise") == reference
    others = [draw(1, 5, "noise"), draw(0, 6, "noise"), draw(0, 5, "bits"), draw(2**40, 5, "noise")]
    assert all(other != reference for other in others)


def test_a_stream_does_not_repeat():
    # Hashing into torch's 32 bits would give about 29 repeats in 500,000 steps.
    steps = 500_000
    tried = [*range(0, steps, 100), *range(2**32 - steps, 2**32, 100), 2**31, 2**30, 2**31 + 2**30]
    seeds = {step_generator(0, step, "noise").initial_seed() for step in tried}
    assert len(seeds) == len(tried)
    assert len({_finalise(value) for value in range(steps)}) == steps


def test_torch_seeds_its_cpu_generator_with_32_bits():
    # The reason for the bijection. If this fails, torch uses more bits and a hash would do.
    low, high = (torch.Generator().manual_seed(seed) for seed in (5, 5 + 2**32))
    assert torch.equal(torch.rand(8, generator=low), torch.rand(8, generator=high))


def test_streams_look_independent():
    values = torch.stack([torch.randn(64, generator=step_generator(0, s, "n")) for s in range(400)])
    correlation = torch.corrcoef(values)
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 6 / 64**0.5  # 79,800 pairs, sd 1/8 each
    assert abs(float(values.mean())) < 5 / (64 * 400) ** 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BatchSampler(5, 6, 0), r"batch_size must lie in 1..5 .*got 6"),
        (lambda: BatchSampler(5, 0, 0), "got 0"),
        (lambda: BatchSampler(5, 2, 0).indices(-1), "step must be at least 0, got -1"),
        (lambda: BatchSampler(5, 2, -3).indices(0), "seed must be at least 0, got -3"),
        (lambda: step_generator(0, 2**32, "x"), "step must lie in"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Same:
    """The same images in every minibatch."""

    def indices(self, step: int) -> torch.Tensor:
        return torch.arange(16)


def test_bits_of_a_minibatch_are_drawn_anew_at_every_step_and_repeat(tiny):
    dataset = load("digits", binarization="dynamic")
    feed = Feed(tiny(data={"binarization": "dynamic"}), dataset, Same(), torch.device("cpu"))
    first, second = feed(0), feed(1)
    assert not torch.equal(first, second)
    assert torch.equal(feed(0), first)
