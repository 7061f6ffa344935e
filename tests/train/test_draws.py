"""Random numbers of some rows of a minibatch are those that the whole minibatch has there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from steinvae import draws
from steinvae.data import step_generator
from steinvae.draws import Draws, own_rows, pick
from steinvae.sparse_rows import sparse_rows


def whole(shape: tuple[int, ...], kind: str = "normal", step: int = 7) -> torch.Tensor:
    return getattr(Draws(3, step, [slice(shape[0])]), kind)("noise", shape)


@given(
    images=st.integers(2, 40),
    width=st.integers(1, 60),
    block=st.integers(1, 300),
    bounds=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    kind=st.sampled_from(["normal", "uniform"]),
)
def test_some_rows_have_the_numbers_of_the_whole(images, width, block, bounds, kind):
    first, last = sorted(min(bound, images) for bound in bounds)
    rows = [each for each in (slice(first, last), slice(last, images)) if each.start < each.stop]
    assume(rows)
    shape = (images, 2, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "BLOCK", block)
        some = getattr(Draws(3, 7, rows), kind)("noise", shape)
        assert torch.equal(some, whole(shape, kind)[first:])


def test_one_block_is_one_generator():
    expected = torch.randn(8, 5, 3, generator=step_generator(3, 7, "noise"))
    assert torch.equal(whole((8, 5, 3)), expected)


def test_blocks_rows_steps_and_streams_differ(monkeypatch):
    monkeypatch.setattr(draws, "BLOCK", 12)
    drawn = whole((8, 2, 3))
    assert len({float(value) for value in drawn.flatten()}) == drawn.numel()
    assert not torch.equal(drawn, whole((8, 2, 3), step=8))
    other = Draws(3, 7, [slice(8)]).normal("reference", (8, 2, 3))
    assert not torch.equal(drawn, other)


def test_noise_that_images_share_is_whole_on_every_process():
    drawn = Draws(3, 7, own_rows(8, 0, rank=1, ranks=2)).normal("noise", (1, 5, 3))
    assert torch.equal(drawn, whole((1, 5, 3)))


def test_a_process_draws_the_blocks_of_its_rows_alone(monkeypatch):
    drawn = []
    original = torch.Tensor.normal_

    def count(tensor, **settings):
        drawn.append(tensor.numel())
        return original(tensor, **settings)

    monkeypatch.setattr(torch.Tensor, "normal_", count)
    row = draws.BLOCK // 4
    own = own_rows(64, 32, rank=1, ranks=4)
    assert Draws(3, 7, own).normal("noise", (64, row)).shape == (16, row)
    assert sum(drawn) == 16 * row


def test_rows_of_all_processes_are_the_minibatch():
    for labelled in (0, 12):
        every = [own_rows(24, labelled, rank, 4) for rank in range(4)]
        taken = torch.cat([pick(torch.arange(24), rows) for rows in every])
        assert taken.sort().values.tolist() == list(range(24))
        assert {len(rows) for rows in every} == {2 if labelled else 1}


def test_rows_of_a_sparse_minibatch():
    dense = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    rows, columns = dense.nonzero(as_tuple=True)
    sparse = sparse_rows(rows, columns, dense[rows, columns], (3, 2))
    assert torch.equal(pick(sparse, [slice(1, 3)]).to_dense(), dense[1:])
