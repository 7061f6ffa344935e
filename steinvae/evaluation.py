"""What an evaluation leaves: a text for readers, JSON, and tidy records, all of the same findings.

run_dir/ evaluation.md evaluation.json evaluation.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from steinvae._atomic import write_text
from steinvae.config import Config
from steinvae.data import Dataset
from steinvae.density import Annealing, Finding, Suite, evenly_spaced, measure_all
from steinvae.density.findings import mean_and_error
from steinvae.labels.results import ESTIMATOR, label_metrics, label_quality, label_table
from steinvae.labels.task import count_classes
from steinvae.networks import Networks
from steinvae.report import append_records, commit, markdown_table, tidy_record, versions
from steinvae.run import load_data, load_model, measure, nll

TEXT, JSON, RECORDS = "evaluation.md", "evaluation.json", "evaluation.jsonl"


def evaluate_reported(run_dir: Path, config: Config) -> dict[str, Any]:
    """What the run reported, measured again: `iw_g` with the run's own settings, and labels."""
    dataset, networks = _load(run_dir, config)
    estimate = measure(config, dataset, networks)
    labels = {"labels": label_quality(networks, dataset, config)} if networks.labels else {}
    return {
        "method": config.method.name,
        "data_set": dataset.name,
        "binarization": dataset.binarization,
        "nll": nll(estimate),
        "nll_single_decoder": estimate.single,
        **labels,
    }


def evaluate_all(run_dir: Path, config: Config, options: argparse.Namespace) -> str:
    """Every estimator on the same test images, and the classes of all of them where the run has
    labels; writes the three files, returns what to print.

    `options` are those of the command. Errors: ValueError for an option out of range.
    """
    if options.images < 0:
        raise ValueError(f"--images must be 0 (all) or more, got {options.images}")
    suite = Suite(
        estimators=options.estimators.split(","),
        samples=options.samples,
        annealing=Annealing(temperatures=options.temperatures, chains=options.chains),
        simulated=options.simulated,
        fit_samples=config.evaluation.fit_samples,
        inflation=config.evaluation.inflation,
        proposal="diagonal" if config.evaluation.proposal == "diagonal" else "fitted",
        seed=config.seed,
    )
    dataset, networks = _load(run_dir, config)
    pixels = dataset.test.batch(evenly_spaced(len(dataset.test), options.images))
    findings = []
    for finding in measure_all(networks, pixels.to(networks.device), suite):
        findings.append(finding)
        name, seconds = f"{finding.estimator}, {finding.theta}", finding.seconds
        print(f"{name}: {finding.value:.2f} ({seconds:.1f} s)", file=sys.stderr, flush=True)
    text = summary(config, dataset, suite, findings)
    result = as_json(config, dataset, networks, suite, findings)
    lines = records(config, networks, suite, findings)
    if networks.labels is not None:
        started = time.perf_counter()
        result["labels"] = label_quality(networks, dataset, config)
        seconds = round(time.perf_counter() - started, 2)
        text += f"\n\n{label_table([result])}"
        lines += label_records(config, networks, result["labels"], seconds)
    write_all(run_dir, text, result, lines)
    return json.dumps(result, indent=2, allow_nan=False) if options.json else text


def summary(config: Config, dataset: Dataset, suite: Suite, findings: Sequence[Finding]) -> str:
    """Markdown: a line an estimator, differences on the same images, then what each rests on."""
    title = f"# {config.method.name} on {dataset.title}, seed {config.seed}"
    intro = (
        "NLL in nats an image, lower is better; ± is the standard error over images, which paired "
        "differences on the same images do not carry. A bound is one in expectation over the "
        f"estimator's own randomness (seed {suite.seed})."
    )
    header = ("estimator", "theta", "value", "images", "what it bounds", "holds", "s")
    rows = [
        (
            f.estimator if f.metric == "test_nll" else f"{f.estimator} {f.metric}",
            f.theta,
            _number(f.value, f.standard_error, f.metric),
            f.images,
            f.claim,
            f.holds,
            f"{f.seconds:.1f}",
        )
        for f in findings
    ]
    sections = [title, intro, markdown_table(header, rows)]
    differences = paired_differences(findings)
    if differences:
        lines = [
            (d["estimator"], d["theta"], d["minus"], _number(d["value"], d["standard_error"], ""))
            for d in differences
        ]
        table = markdown_table(("estimator", "theta", "minus", "nats"), lines)
        sections += ["## Differences on the same images", table]
    sections += ["## What each rests on", *(_assumptions(finding) for finding in findings)]
    return "\n\n".join(sections)


def paired_differences(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """NLL of each estimator minus that of AIS on the same images and treatment of the decoders."""
    measured = [finding for finding in findings if finding.per_image is not None]
    reference = {f.theta: f for f in measured if f.estimator.startswith("ais(")}
    differences = []
    for finding in measured:
        other = reference.get(finding.theta)
        if other is None or other is finding:
            continue
        assert finding.per_image is not None
        assert other.per_image is not None
        value, error = mean_and_error(finding.per_image - other.per_image)
        differences.append(
            {
                "estimator": finding.estimator,
                "theta": finding.theta,
                "minus": other.estimator,
                "value": value,
                "standard_error": error,
            }
        )
    return differences


def as_json(
    config: Config, dataset: Dataset, networks: Networks, suite: Suite, findings: Sequence[Finding]
) -> dict[str, Any]:
    """Everything that was found, ready for `json.dumps`."""
    return {
        "method": config.method.name,
        "data_set": dataset.name,
        "binarization": dataset.binarization,
        "decoders": networks.theta.particles,
        "encoder": type(networks.encoder).__name__,
        "seed": suite.seed,
        "findings": [finding.as_dict() for finding in findings],
        "differences": paired_differences(findings),
        "device": _device(networks),
        "versions": versions(),
        "commit": commit(),
    }


def records(
    config: Config, networks: Networks, suite: Suite, findings: Sequence[Finding]
) -> list[dict[str, Any]]:
    """One tidy record a finding."""
    shared = {**_setting(config, networks), "evaluation_seed": suite.seed}
    return [
        tidy_record(
            experiment="evaluation",
            method=config.method.name,
            setting={**shared, "theta": f.theta, "bounds": f.claim, "holds": f.holds},
            seed=config.seed,
            metric=f.metric,
            value=f.value,
            stderr=f.standard_error,
            n=f.images,
            estimator=f.estimator,
            seconds=round(f.seconds, 2),
            device=_device(networks),
        )
        for f in findings
    ]


def label_records(
    config: Config, networks: Networks, found: Mapping[str, Any], seconds: float
) -> list[dict[str, Any]]:
    """One tidy record a number of a `label_quality`."""
    labels = {name: found[name] for name in ("labelled", "split_seed", "label_decoders")}
    return [
        tidy_record(
            experiment="evaluation",
            method=config.method.name,
            setting=_setting(config, networks) | labels,
            seed=config.seed,
            metric=metric,
            value=value,
            stderr=error,
            n=found["images"],
            estimator=ESTIMATOR,
            seconds=seconds,
            device=_device(networks),
        )
        for metric, (value, error) in label_metrics(found).items()
    ]


def _setting(config: Config, networks: Networks) -> dict[str, Any]:
    return {
        "data": config.data.name,
        "binarization": config.data.binarization,
        "codes": config.model.codes,
        "hidden": "-".join(map(str, config.model.hidden)),
        "encoder": type(networks.encoder).__name__,
        "decoders": networks.theta.particles,
        "steps": config.trainer.max_steps,
    }


def write_all(
    run_dir: Path, text: str, result: dict[str, Any], lines: Sequence[dict[str, Any]]
) -> None:
    """Replace the three files of an earlier evaluation."""
    run_dir = Path(run_dir)
    write_text(run_dir / TEXT, text + "\n")
    write_text(run_dir / JSON, json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_text(run_dir / RECORDS, "")
    append_records(run_dir / RECORDS, lines)


def _load(run_dir: Path, config: Config) -> tuple[Dataset, Networks]:
    dataset = load_data(config)
    classes = count_classes(config, dataset) if config.data.labelled else None
    return dataset, load_model(run_dir, config, dataset.train.features, classes)


def _assumptions(finding: Finding) -> str:
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in finding.diagnostics.items())
    lines = [f"**{finding.estimator}**, theta {finding.theta}: {finding.claim} ({numbers})"]
    lines += [f"- {a.text}: **{a.holds}** ({a.evidence})" for a in finding.assumptions]
    return "\n".join(lines)


def _number(value: float, error: float | None, metric: str) -> str:
    if metric == "active_units":
        return f"{value:.0f}"
    return f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _device(networks: Networks) -> str:
    threads = torch.get_num_threads()
    return f"{networks.device}, {threads} thread{'s' if threads > 1 else ''}"
