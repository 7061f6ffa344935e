"""The page on scaling is drawn from the formulas that tests/distributed counts."""

from __future__ import annotations

import pytest

from bench import scaling
from bench.environment import ROOT


def test_the_page_is_current():
    _, _, rest = (ROOT / scaling.PAGE).read_text().partition(scaling.MARKS[0])
    drawn, _, _ = rest.partition(scaling.MARKS[1])
    assert drawn.strip() == scaling.page(), "run python -m bench.scaling"


def test_one_process_moves_nothing():
    assert scaling.wire_bytes(10_000, 1) == 0
    assert scaling.all_reduce_seconds(10_000, 1, scaling.Rates()) == 0


@pytest.mark.parametrize("ranks", [2, 4, 512])
def test_a_ring_sends_each_number_less_than_twice(ranks):
    assert scaling.wire_bytes(100, ranks) == pytest.approx(800 * (1 - 1 / ranks))
