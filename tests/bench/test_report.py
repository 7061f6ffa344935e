"""Records in, tables and picture out; and the bounds, each of which must be able to fail."""

from __future__ import annotations

import itertools

import pytest

from bench import records, report, tables, targets
from bench.collector import Collector
from bench.shapes import SHAPES, THREADS, Shape, parse_shape

SECONDS = {
    "svgd_direction": {"ours": 1.0, "compiled_gemm": 3.0, "keops": 12.0, "eager_gemm": 5.0},
    "svgd_direction_with_median": {"ours": 2.0, "compiled_gemm_triu": 10.0},
    "backward": {"ours_forward": 1.0, "ours_forward_backward": 3.0},
    "rbf_gram": {"ours": 1.0, "eager_gemm": 2.0},
}


@pytest.fixture
def measured() -> list[records.Record]:
    """A whole run in which every bound is met."""
    collector = Collector()
    for shape, threads in itertools.product(SHAPES, THREADS):
        for experiment, methods in SECONDS.items():
            for method, seconds in methods.items():
                times = [seconds * factor for factor in (0.9, 1.0, 1.1)]
                collector.add_times(experiment, method, shape, threads, times)
        for metric, _ in tables.ERRORS:
            collector.add("svgd_direction", "ours", shape, threads, metric, 1e-6)
        collector.add("memory", "ours", shape, threads, "extra_bytes", 1e6)
        collector.add("first_call", "ours", shape, threads, "first_call_seconds", 0.01)
    return collector.records()


def change(measured, experiment: str, method: str, metric: str, factor: float, shape=None):
    for record in measured:
        key = (record["experiment"], record["method"], record["metric"])
        if key == (experiment, method, metric) and shape in (None, record["setting"]["shape"]):
            record["value"] *= factor
    return [check.name for check in targets.check(measured) if check.failed]


def test_a_value_that_is_not_finite_is_null_in_the_file_and_nan_in_the_table(measured, tmp_path):
    change(measured, "svgd_direction", "ours", "relative_error", float("nan"), "2000x50")
    path = tmp_path / "machine.jsonl"
    records.replace(path, measured)
    assert "NaN" not in path.read_text()
    again = records.read(path)
    assert "NaN" in tables.worst_errors(targets.values_of(again))
    missed = [check.name for check in targets.check(again) if check.failed]
    assert missed == ["direction: relative error, worst case"]


def test_a_run_within_its_bounds_passes(measured):
    checks = targets.check(measured)
    assert len(checks) == 15
    assert all(check.met for check in checks), targets.table(checks)


@pytest.mark.parametrize(
    ("experiment", "method", "metric", "factor", "missed"),
    [
        ("svgd_direction", "compiled_gemm", "seconds", 0.8, "direction / compiled GEMM"),
        ("svgd_direction", "keops", "seconds", 0.8, "direction / KeOps"),
        ("svgd_direction_with_median", "ours", "seconds", 1.3, "direction with median"),
        ("backward", "ours_forward_backward", "seconds", 1.4, "forward + backward"),
        ("svgd_direction", "ours", "relative_error", 2.1, "direction: relative error"),
        ("svgd_direction", "ours", "relative_error_shift_1e4", 2.1, "shift 1e4"),
        ("memory", "ours", "extra_bytes", 1e4, "extra memory"),
        ("first_call", "ours", "first_call_seconds", 21.0, "first call"),
    ],
)
def test_a_missed_bound_fails(measured, experiment, method, metric, factor, missed):
    failed = change(measured, experiment, method, metric, factor)
    assert failed
    assert all(missed in name for name in failed)


def test_one_slow_shape_fails_though_the_mean_does_not(measured):
    failed = change(measured, "svgd_direction", "compiled_gemm", "seconds", 0.4, "2000x50")
    assert [name.split(", ")[1] for name in failed] == ["slowest shape", "slowest shape"]


def test_a_speed_without_every_shape_is_not_measured(measured):
    few = [record for record in measured if record["setting"]["shape"] != "20000x3"]
    check = targets.check(few)[0]
    assert (check.value, check.failed) == (None, False)
    assert "not measured" in targets.table([check])


def test_many_features_have_the_wider_error_bound():
    assert targets.error_bound(Shape(0, 100, 200_000)) == 5e-6
    assert targets.error_bound(Shape(0, 20_000, 3)) == 2e-6


def test_shape_names_round_trip():
    assert [parse_shape(shape.name) for shape in SHAPES] == list(SHAPES)
    with pytest.raises(ValueError, match="MxD or BxMxD, got '7'"):
        parse_shape("7")


def test_a_run_replaces_its_own_experiments_only(measured, tmp_path):
    path = tmp_path / "machine.jsonl"
    records.replace(path, measured)
    again = [record for record in measured if record["experiment"] == "backward"][:1]
    records.replace(path, again)
    kept = records.read(path)
    assert [r for r in kept if r["experiment"] == "backward"] == again
    others = [r for r in measured if r["experiment"] != "backward"]
    assert len(kept) == len(others) + 1
    assert set(kept[0]) == set(records.KEYS)


def test_a_line_that_is_no_record_is_refused(tmp_path):
    path = tmp_path / "machine.jsonl"
    path.write_text('{"experiment": "x"}\n')
    with pytest.raises(ValueError, match=r"machine\.jsonl:1: keys must be"):
        records.read(path)


def test_median_and_its_error():
    median, error = records.median_and_error([1.0, 2.0, 3.0, 4.0, 100.0])
    assert median == 3.0
    assert error == pytest.approx(1.2533 * 2 / 1.349 / 5**0.5)
    assert records.median_and_error([2.0]) == (2.0, None)


def test_report_fills_the_documents(measured, tmp_path):
    results = tmp_path / "machine.jsonl"
    records.replace(results, measured)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    done = report.report(results, tmp_path)
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "| torch.compile of the GEMM form | 3.0 | 3.0 |" in text
    assert "| 20,000 x 3 | 1,000 | 3,000 | 12,000 | 5,000 | - (4.8 GB) | 2,000 | 10,000 |" in text
    assert done[1].startswith("docs/performance.md: skipped, no <!-- bench:begin -->")
    assert report.report(results, tmp_path) == done
    assert readme.read_text() == text


def test_the_picture_depends_on_the_records_alone(measured, tmp_path):
    from bench import plot

    first = [path.read_bytes() for path in plot.draw(measured, tmp_path / "a")]
    second = [path.read_bytes() for path in plot.draw(measured, tmp_path / "b")]
    assert first == second
    change(measured, "svgd_direction", "ours", "seconds", 0.5)
    assert plot.draw(measured, tmp_path / "c")[0].read_bytes() != first[0]


def test_performance_page_has_every_experiment(measured):
    page = tables.performance(measured)
    for title in ("given bandwidth", "exact median", "backward", "Gram", "memory", "First call"):
        assert title in page


def test_report_needs_records(tmp_path):
    with pytest.raises(FileNotFoundError, match="found: none"):
        report.choose(tmp_path, "machine")
    with pytest.raises(ValueError, match="no records"):
        tables.readme([])
    (tmp_path / "other.jsonl").touch()
    assert report.choose(tmp_path, "machine").name == "other.jsonl"
