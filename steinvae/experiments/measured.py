"""Trained cells measured by every estimator: several records a cell, one metric a line.

Training is one stage and each estimator another; what is finished is not done again, so that an
interrupted evaluation repeats at most one estimator of one cell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steinvae.data import CountDataset, Dataset
from steinvae.density import Finding, Suite, evenly_spaced, measure_all
from steinvae.experiments.cells import Cell, Record, read, train_cell, with_threads
from steinvae.logging import JSONL
from steinvae.model_file import load_model
from steinvae.perplexity import perplexity
from steinvae.report import append_records, tidy_record
from steinvae.signals import StopRequest

NOTES = ("theta", "bounds", "holds")
"""What the setting of a record says about the estimate, beside what decides its number."""

NOT_STEPS = ("steps",)
"""What does not decide which timed cell a record is of: they are what came out."""

RUN_METRICS = ("seconds", "cpu_seconds", "parameters")
"""What result.json says of a run, a record each."""


def measure_cells(
    experiment: str,
    cells: Sequence[Cell],
    suite: Suite,
    images: int,
    output: Path,
    run_dir: Path,
    stop: StopRequest,
    dataset: Dataset,
) -> None:
    """Train and measure what `output` has no record of, cell by cell.

    All estimators look at the same `images` test images, evenly spaced; of documents there are
    perplexities beside the NLL, by both conventions.
    """
    for cell in cells:
        missing = [each for each in suite.estimators if not done(cell, each, suite, images, output)]
        if not missing and is_trained(cell, output):
            continue
        result = train_cell(cell, dataset, run_dir, stop)
        if not is_trained(cell, output):
            append_records(output, _of_training(experiment, cell, result, run_dir))
        for estimator in missing:
            append_records(
                output, _measure(experiment, cell, estimator, suite, images, dataset, run_dir)
            )
            print(f"{cell.row}, seed {cell.config.seed}: {estimator} measured", flush=True)


def has_all(cell: Cell, suites: Sequence[tuple[Suite, int]], output: Path) -> bool:
    """Whether all records of a run of the cell are there, by suites and their numbers of images.

    A timed cell's run may have any number of steps: records come from faster and slower machines.
    """
    return any(
        is_trained(run, output)
        and all(done(run, e, suite, n, output) for suite, n in suites for e in suite.estimators)
        for run in runs(cell, read(output))
    )


def runs(cell: Cell, records: Iterable[Record]) -> list[Cell]:
    """The cell with the steps of each of its runs that have records, the newest first.

    A cell of fixed steps is its one run.
    """
    if cell.minutes is None:
        return [cell]
    steps = [record["setting"]["steps"] for record in same(cell, records, "training", NOT_STEPS)]
    return [cell.of_steps(each) for each in dict.fromkeys(reversed(steps))]


def is_trained(cell: Cell, output: Path) -> bool:
    """Whether there are records of the cell's training."""
    return bool(of(cell, read(output), "training"))


def names(estimator: str, suite: Suite) -> tuple[str, ...]:
    """How the records of an estimator are named, its effort included."""
    annealing = suite.annealing
    return {
        "iw_g": (f"iw_g({suite.samples})",),
        "elbo": (f"elbo({suite.samples})", f"s_elbo({suite.samples})"),
        "ais": (f"ais({annealing.temperatures}x{annealing.chains})",),
        "bdmc": (f"bdmc({annealing.temperatures}x{annealing.chains})",),
        "units": ("units(64)",),
    }[estimator]


def done(cell: Cell, estimator: str, suite: Suite, images: int, output: Path) -> bool:
    """Whether the records of this estimator are there, at this effort and on these images."""
    count = suite.simulated if estimator == "bdmc" else images
    own = [record for record in read(output) if record["n"] == count]
    return all(of(cell, own, name) for name in names(estimator, suite))


def of(
    cell: Cell, records: Iterable[Record], estimator: str, but: Sequence[str] = ()
) -> dict[str, Record]:
    """The cell's newest records of an estimator, by metric; settings named in `but` may differ."""
    return {record["metric"]: record for record in same(cell, records, estimator, but)}


def same(
    cell: Cell, records: Iterable[Record], estimator: str, but: Sequence[str]
) -> Iterator[Record]:
    """The cell's records of an estimator, in their order."""
    apart = {*NOTES, *but}
    wanted = {name: item for name, item in cell.setting().items() if name not in apart}
    for record in records:
        setting = {name: item for name, item in record["setting"].items() if name not in apart}
        key = (record["method"], record["seed"], record["estimator"], setting)
        if key == (cell.config.method.name, cell.config.seed, estimator, wanted):
            yield record


def _measure(
    experiment: str,
    cell: Cell,
    estimator: str,
    suite: Suite,
    images: int,
    dataset: Dataset,
    run_dir: Path,
) -> list[Record]:
    networks = load_model(cell.folder(run_dir), cell.config, dataset.train.features)
    pixels = dataset.test.batch(evenly_spaced(len(dataset.test), images)).to(networks.device)
    wanted = replace(suite, estimators=(estimator,), seed=cell.config.seed)
    device = with_threads(str(networks.device))
    return [
        record
        for finding in measure_all(networks, pixels, wanted)
        for record in _of_finding(experiment, cell, finding, device, dataset)
    ]


def _of_finding(
    experiment: str, cell: Cell, finding: Finding, device: str, dataset: Dataset
) -> list[Record]:
    """The estimate, perplexities of documents, effective number of samples, minority of signs."""
    notes = {"theta": finding.theta, "bounds": finding.claim, "holds": finding.holds}
    numbers: dict[str, tuple[float, float | None]]
    numbers = {finding.metric: (finding.value, finding.standard_error)}
    if isinstance(dataset, CountDataset) and finding.per_image is not None:
        chosen = evenly_spaced(len(dataset.test), finding.images)
        found = perplexity(finding.per_image.cpu(), dataset.test.lengths[chosen])
        numbers["perplexity_per_document"] = (found.per_document, found.per_document_error)
        numbers["perplexity_corpus"] = (found.corpus, None)
    further = ("effective_samples", "effective_chains", "minority_of_signs")
    numbers |= {
        name: (finding.diagnostics[name], None) for name in further if name in finding.diagnostics
    }
    return [
        _record(
            experiment,
            cell,
            metric,
            value,
            notes=notes,
            stderr=error,
            n=finding.images,
            estimator=finding.estimator,
            seconds=round(finding.seconds, 2),
            device=device,
        )
        for metric, (value, error) in numbers.items()
    ]


def _of_training(experiment: str, cell: Cell, result: Record, run_dir: Path) -> list[Record]:
    """Time and size of the run, and the effective number of codes over its last logged steps."""
    numbers = {name: result[name] for name in RUN_METRICS}
    effective = training_effective(cell.folder(run_dir) / JSONL)
    if effective is not None:
        numbers["effective_samples"] = effective
    device = with_threads(result["device"])
    return [
        _record(
            experiment,
            cell,
            metric,
            value,
            n=1,
            estimator="training",
            seconds=result["seconds"],
            device=device,
        )
        for metric, value in numbers.items()
    ]


def training_effective(metrics: Path, lines: int = 10) -> float | None:
    """Mean effective number of a group's codes over the last `lines` logs that have one."""
    logged = [json.loads(line) for line in metrics.read_text("utf-8").splitlines() if line]
    values = [
        record["train/effective_samples"]
        for record in logged
        if "train/effective_samples" in record
    ][-lines:]
    return sum(values) / len(values) if values else None


def _record(
    experiment: str,
    cell: Cell,
    metric: str,
    value: float,
    *,
    notes: dict[str, Any] | None = None,
    stderr: float | None = None,
    **rest: Any,
) -> Record:
    return tidy_record(
        experiment=experiment,
        method=cell.config.method.name,
        setting=cell.setting() | (notes or {}),
        seed=cell.config.seed,
        metric=metric,
        value=value,
        stderr=stderr,
        **rest,
    )
