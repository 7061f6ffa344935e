"""The page on scaling is drawn from the formulas that tests/distributed counts."""

from __future__ import annotations

import pytest

from bench import scaling
from bench.environment import ROOT


@pytest.mark.parametrize(("marks", "draw"), scaling.PAGES.items())
def test_the_page_is_current(marks, draw):
    _, _, rest = (ROOT / scaling.PAGE).read_text().partition(marks[0])
    drawn, _, _ = rest.partition(marks[1])
    assert drawn.strip() == draw(), "run python -m bench.scaling"


def test_one_process_moves_nothing():
    assert scaling.wire_bytes(10_000, 1) == 0
    assert scaling.all_reduce_seconds(10_000, 1, scaling.Rates()) == 0


@pytest.mark.parametrize("ranks", [2, 4, 512])
def test_a_ring_sends_each_number_less_than_twice(ranks):
    assert scaling.wire_bytes(100, ranks) == pytest.approx(800 * (1 - 1 / ranks))


def test_an_update_sends_theta_twice():
    """Once as scores, once as parameters; the distances are nothing beside."""
    sent = scaling.update_bytes(20, 11_000_000, 0, 4)
    assert sent == pytest.approx(2 * 3 / 4 * 20 * 11_000_000 * 4, rel=1e-5)
