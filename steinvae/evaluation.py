"""What an evaluation leaves: a text for readers, JSON, and tidy records, all of the same findings.

run_dir/ evaluation.md evaluation.json evaluation.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from steinvae._atomic import write_text
from steinvae.config import Config
from steinvae.data import CountDataset, Dataset
from steinvae.data.left_out import warnings
from steinvae.density import ESTIMATORS, Annealing, Finding, Suite, evenly_spaced, measure_all
from steinvae.density.findings import mean_and_error
from steinvae.density.suite import uncomputable
from steinvae.evaluated import JSON, check_data, head, merge, read_earlier
from steinvae.folder import refuse_own
from steinvae.labels.results import ESTIMATOR, label_metrics, label_quality, label_table
from steinvae.labels.task import count_classes
from steinvae.model_file import MODEL, load_model
from steinvae.networks import Networks
from steinvae.report import commit, markdown_table, tidy_record, versions
from steinvae.run import load_data, measure, nll

TEXT, RECORDS = "evaluation.md", "evaluation.jsonl"
RESIDUAL = "residual"
"""The model.network that trainer.precision has a say in here."""


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
    labels; writes the three files after each, returns what to print.

    What an earlier evaluation found stays where it is of the same parameters and the same test
    split; a number measured again in the same way is replaced.

    `options` are those of the command; where its `estimators` are None, what cannot be computed is
    left out. Errors: ValueError for an option out of range, for an estimator that was named and
    cannot be computed, and for files of another test split.
    """
    run_dir = Path(run_dir)
    suite = _suite(config, options)
    dataset, networks = _load(run_dir, config)
    own = head(run_dir, config, dataset, networks)
    kept = read_earlier(run_dir, own)
    if not kept and (run_dir / JSON).exists():
        _say(f"{run_dir / JSON} is of other parameters than {MODEL} has, and is replaced")
    if options.images > len(dataset.test):
        _say(f"--images {options.images}: the test split has {len(dataset.test)}, all are taken")
    pixels = dataset.test.batch(evenly_spaced(len(dataset.test), options.images))
    if options.estimators is None:
        suite, own["left_out"] = _applicable(networks, len(pixels), suite)
    result, findings, by = own, [], _measured_by(networks)
    computed = {"precision": config.trainer.precision} if config.model.network == RESIDUAL else {}
    for finding in measure_all(networks, pixels.to(networks.device), suite):
        findings.append(replace(finding, settings={**finding.settings, **computed}))
        _say(f"{finding.estimator}, {finding.theta}: {finding.value:.2f} ({finding.seconds:.1f} s)")
        own["findings"] = [each.as_dict() | by for each in findings]
        own["differences"] = paired_differences(findings)
        result = write_merged(run_dir, config, dataset, networks, own)
    if networks.labels is not None:
        started = time.perf_counter()
        own["labels"] = label_quality(networks, dataset, config)
        seconds = round(time.perf_counter() - started, 2)
        own["labels_measured"] = {"evaluation_seed": config.seed, "seconds": seconds} | by
        result = write_merged(run_dir, config, dataset, networks, own)
    if options.json:
        return json.dumps(result, indent=2, allow_nan=False)
    return summary(config, dataset, result)


def _suite(config: Config, options: argparse.Namespace) -> Suite:
    if options.images < 0:
        raise ValueError(f"--images must be 0 (all) or more, got {options.images}")
    named = options.estimators
    return Suite(
        estimators=ESTIMATORS if named is None else named.split(","),
        samples=options.samples,
        annealing=Annealing(temperatures=options.temperatures, chains=options.chains),
        simulated=options.simulated,
        fit_samples=config.evaluation.fit_samples,
        inflation=config.evaluation.inflation,
        proposal="diagonal" if config.evaluation.proposal == "diagonal" else "fitted",
        seed=config.seed,
    )


def _applicable(networks: Networks, images: int, suite: Suite) -> tuple[Suite, dict[str, str]]:
    """The suite without what cannot be computed, and why that cannot."""
    reasons = uncomputable(networks, images, suite)
    for name, reason in reasons.items():
        _say(f"{name} is left out: {reason}")
    return replace(suite, estimators=[n for n in suite.estimators if n not in reasons]), reasons


def write_merged(
    run_dir: Path, config: Config, dataset: Dataset, networks: Networks, own: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the three files with what they had; returns the content of evaluation.json."""
    result = merge(read_earlier(run_dir, own), own)
    lines = records(config, networks, result)
    write_all(run_dir, summary(config, dataset, result), result, lines)
    return result


def summary(config: Config, dataset: Dataset, result: Mapping[str, Any]) -> str:
    """Markdown: a line an estimator, differences on the same images, then what each rests on."""
    title = f"# {config.method.name} on {dataset.title}, seed {result['seed']}"
    text = isinstance(dataset, CountDataset)
    one, units = ("a document", "documents") if text else ("an image", "images")
    intro = (
        f"NLL in nats {one}, lower is better; ± is the standard error over {units}, which paired "
        f"differences on the same {units} do not carry. A bound is one in expectation over the "
        "estimator's own randomness, whose seed is beside it. Of the parameters in "
        f"{MODEL} (SHA-256 {result['model']}) on the test split of SHA-256 {result['test_split']}."
    )
    header = ("estimator", "theta", "value", units, "with", "what it bounds", "holds", "s")
    rows = [
        (
            f["estimator"] if f["metric"] == "test_nll" else f"{f['estimator']} {f['metric']}",
            f["theta"],
            _number(f["value"], f["standard_error"], f["metric"]),
            f["images"],
            _with(f),
            f["bounds"],
            f["holds"],
            f"{f['seconds']:.1f}",
        )
        for f in result["findings"]
    ]
    sections = [title, intro, markdown_table(header, rows)]
    sections += [f"Left out: {name}, since {why}." for name, why in result["left_out"].items()]
    if result["differences"]:
        lines = [
            (d["estimator"], d["theta"], d["minus"], d["images"], _with(d), _difference(d))
            for d in result["differences"]
        ]
        header = ("estimator", "theta", "minus", units, "with", "nats")
        sections += [f"## Differences on the same {units}", markdown_table(header, lines)]
    sections += ["## What each rests on", *(_assumptions(each) for each in result["findings"])]
    if "labels" in result:
        sections.append(label_table([result]))
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
                "images": finding.images,
                "evaluation_seed": finding.seed,
                "settings": dict(finding.settings),
                "minus_settings": dict(other.settings),
            }
        )
    return differences


def records(config: Config, networks: Networks, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One tidy record a finding, then those of labels."""
    found = [_record_of_finding(config, networks, result, each) for each in result["findings"]]
    return found + (_label_records(config, networks, result) if "labels" in result else [])


def _record_of_finding(
    config: Config, networks: Networks, result: Mapping[str, Any], finding: Mapping[str, Any]
) -> dict[str, Any]:
    own = {name: finding[name] for name in ("evaluation_seed", "theta", "bounds", "holds")}
    return tidy_record(
        experiment="evaluation",
        method=config.method.name,
        setting=_setting(config, networks, result) | finding["settings"] | own,
        seed=result["seed"],
        metric=finding["metric"],
        value=finding["value"],
        stderr=finding["standard_error"],
        n=finding["images"],
        estimator=finding["estimator"],
        seconds=finding["seconds"],
        device=finding["device"],
    ) | {name: finding[name] for name in ("versions", "commit")}


def _label_records(
    config: Config, networks: Networks, result: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One tidy record a number of a `label_quality`."""
    found, measured = result["labels"], result["labels_measured"]
    labels = {name: found[name] for name in ("labelled", "split_seed", "label_decoders")}
    labels["evaluation_seed"] = measured["evaluation_seed"]
    return [
        tidy_record(
            experiment="evaluation",
            method=config.method.name,
            setting=_setting(config, networks, result) | labels,
            seed=result["seed"],
            metric=metric,
            value=value,
            stderr=error,
            n=found["images"],
            estimator=ESTIMATOR,
            seconds=measured["seconds"],
            device=measured["device"],
        )
        | {name: measured[name] for name in ("versions", "commit")}
        for metric, (value, error) in label_metrics(found).items()
    ]


def _setting(config: Config, networks: Networks, result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "data": config.data.name,
        "binarization": config.data.binarization,
        "codes": config.model.codes,
        "hidden": "-".join(map(str, config.model.hidden)),
        "encoder": type(networks.encoder).__name__,
        "decoders": networks.theta.particles,
        **{name: result[name] for name in ("steps", "model", "test_split")},
    }


def write_all(
    run_dir: Path, text: str, result: dict[str, Any], lines: Sequence[dict[str, Any]]
) -> None:
    """Replace the three files of an earlier evaluation, each whole."""
    write_text(run_dir / JSON, json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_text(run_dir / TEXT, text + "\n")
    text_of_records = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_text(run_dir / RECORDS, text_of_records)


def _load(run_dir: Path, config: Config) -> tuple[Dataset, Networks]:
    refuse_own(Path(run_dir))
    dataset = load_data(config)
    for line in warnings(dataset):
        _say(line)
    other = check_data(Path(run_dir), dataset)
    if other:
        _say(other)
    classes = count_classes(config, dataset) if config.data.labelled else None
    return dataset, load_model(run_dir, config, dataset.train.features, classes)


def _measured_by(networks: Networks) -> dict[str, Any]:
    return {"device": _device(networks), "versions": versions(), "commit": commit()}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _assumptions(finding: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in finding["diagnostics"].items())
    name, theta = finding["estimator"], finding["theta"]
    lines = [f"**{name}**, theta {theta}, {_with(finding)}: {finding['bounds']} ({numbers})"]
    lines += [f"- {a['text']}: **{a['holds']}** ({a['evidence']})" for a in finding["assumptions"]]
    return "\n".join(lines)


def _with(found: Mapping[str, Any]) -> str:
    """The seed and the settings of a finding or a difference."""
    settings = {"seed": found["evaluation_seed"], **found["settings"]}
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _difference(found: Mapping[str, Any]) -> str:
    return _number(found["value"], found["standard_error"], "")


def _number(value: float, error: float | None, metric: str) -> str:
    if metric == "active_units":
        return f"{value:.0f}"
    return f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _device(networks: Networks) -> str:
    threads = torch.get_num_threads()
    return f"{networks.device}, {threads} thread{'s' if threads > 1 else ''}"
