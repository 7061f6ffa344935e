"""The table of the training step, and its bounds, each of which must be able to fail."""

from __future__ import annotations

import pytest

from bench import targets, train_table
from bench.collector import Collector
from bench.shapes import Shape

SHAPE = Shape(64, 20, 50)


@pytest.fixture
def collector() -> Collector:
    """Every setting within its bounds; 20 decoders have no IWAE beside them."""
    collector = Collector()
    for experiment in train_table.TITLES:
        seconds = {"ours": 0.1, "products": 0.05, "naive": 0.4, "iwae": 0.08}
        if experiment.endswith(("decoders", "pairs")):
            del seconds["iwae"]
        for method, value in seconds.items():
            collector.add(experiment, method, SHAPE, 1, "cpu_seconds", value)
        collector.add(experiment, "ours", SHAPE, 1, "stein_share", 0.05)
    return collector


def failed(collector: Collector) -> list[str]:
    return [
        check.name
        for check in train_table.checks(targets.values_of(collector.records()))
        if check.failed
    ]


def test_a_step_within_its_bounds_passes_and_is_shown(collector):
    assert failed(collector) == []
    header, *rows = train_table.table(targets.values_of(collector.records()))
    assert [len(row) for row in rows] == [len(header)] * len(train_table.TITLES)
    assert rows[0][1:] == ["20", "1", "100", "50", "400", "80", "4.00", "8.00", "1.25", "5.0"]
    assert rows[1][1:] == ["20", "1", "100", "50", "400", "-", "4.00", "8.00", "-", "5.0"]


@pytest.mark.parametrize(
    ("method", "metric", "value", "missed"),
    [
        ("naive", "cpu_seconds", 0.28, "naive / ours"),
        ("iwae", "cpu_seconds", 0.07, "Stein VIWAE / IWAE"),
        ("ours", "stein_share", 0.09, "share of Stein moves"),
    ],
)
def test_a_missed_bound_fails(collector, method, metric, value, missed):
    # three values, so that the median is the new one
    for _ in range(2):
        collector.add("train_step_stein_viwae", method, SHAPE, 1, metric, value)
    (name,) = failed(collector)
    assert missed in name
