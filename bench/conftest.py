"""Options, the measuring fixtures, the records of a run and its targets."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from bench import records, targets, train_table
from bench.collector import Collector
from bench.environment import machine_slug
from bench.methods import Method
from bench.shapes import QUICK_SHAPES, QUICK_THREADS, SHAPES, THREADS, Shape
from bench.timing import Workbench, interleaved, rounds_of

_collector = pytest.StashKey[Collector]()
_checks = pytest.StashKey[list[targets.Check]]()
_partial = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stein_kernels benchmarks")
    group.addoption(
        "--bench-quick",
        action="store_true",
        help="small shapes and one thread: a smoke run whose speeds mean nothing and are not kept",
    )
    group.addoption(
        "--bench-records",
        type=Path,
        help="file of records; bench/results/<machine>.jsonl, none with --bench-quick or -k",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_collector] = Collector()
    config.stash[_partial] = False
    # torch 2.13 raises it itself where torch.compile loads its backend
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script_method`:DeprecationWarning")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Cases from METHODS of the module; with blocks, the methods of a problem take turns."""
    if "method" not in metafunc.fixturenames:
        return
    quick = metafunc.config.getoption("--bench-quick")
    shapes, threads = (QUICK_SHAPES, QUICK_THREADS) if quick else (SHAPES, THREADS)
    if "block" in metafunc.fixturenames:
        cases = interleaved(vars(metafunc.module)["METHODS"], shapes, threads)
    else:
        cases = vars(metafunc.module)["cases"](shapes, threads)
    names = ["shape", "threads", "method", "block"][: len(cases[0])]
    metafunc.parametrize(names, cases, ids=[_name(case) for case in cases])


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[_partial] = True


def _name(case: tuple) -> str:
    shape, threads, method, *block = case
    name = f"{shape.name}-{threads}t-{getattr(method, 'name', method)}"
    return f"{name}-block{block[0]}" if block else name


@pytest.fixture
def collector(request: pytest.FixtureRequest) -> Collector:
    return request.config.stash[_collector]


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[_collector].module = item.nodeid.partition("::")[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.config.stash[_collector].fail()
    return report


@pytest.fixture(scope="session")
def workbench() -> Workbench:
    return Workbench()


@pytest.fixture
def measure(benchmark, collector: Collector, workbench: Workbench) -> Callable[..., None]:
    """Time one block of a method on a problem and keep what it showed."""

    def run(
        experiment: str,
        method: Method,
        shape: Shape,
        threads: int,
        block: int,
        *,
        op: str = "",
        shifted: bool = False,
    ) -> None:
        reason = method.skip(shape)
        if reason:
            pytest.skip(f"{method.name} at {shape.name}: {reason}")
        ready = workbench.prepare(experiment, method, shape, threads, op, shifted)
        benchmark.group = f"{experiment}-{shape.name}-{threads} threads"
        benchmark.extra_info.update(collector.describe(shape, threads), **ready.errors)
        benchmark.pedantic(ready.call, args=ready.inputs, rounds=rounds_of(ready.estimate, block))
        collector.add_times(experiment, method.name, shape, threads, benchmark.stats.stats.data)
        if block == 0:
            for metric, error in ready.errors.items():
                collector.add(experiment, method.name, shape, threads, metric, error)

    return run


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the records of experiments without failures; fail the run where a target is missed."""
    config = session.config
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return
    measured = config.stash[_collector].records()
    path = config.getoption("--bench-records")
    # a selection by -k would take the place of its experiments' other records
    if path is None and not config.getoption("--bench-quick") and not config.stash[_partial]:
        path = records.RESULTS / f"{machine_slug()}.jsonl"
    if path is not None and measured:
        records.replace(path, measured)
    checks = targets.check(measured) + train_table.checks(targets.values_of(measured))
    config.stash[_checks] = checks
    if any(check.failed for check in checks):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    checks = config.stash.get(_checks, [])
    if checks:
        terminalreporter.section("targets")
        terminalreporter.write_line(targets.table(checks))
