"""evaluation.json as it is kept: what was measured, and on which parameters and test examples.

A further evaluation of the same adds to it. Two findings are of one way of measuring where their
estimator with its effort, theta, images, seed and settings are the same; the newer one stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from steinvae._manifest import sha256_file
from steinvae.config import Config
from steinvae.data import Dataset
from steinvae.data.identity import DIGITS, SHARED, differences, identity
from steinvae.density import evenly_spaced
from steinvae.model_file import MODEL
from steinvae.networks import Networks
from steinvae.run import RESULT, read_config

JSON = "evaluation.json"
FINGERPRINTED = 100
"""Test examples that tell one test split from another."""


def head(run_dir: Path, config: Config, dataset: Dataset, networks: Networks) -> dict[str, Any]:
    """What evaluation.json says of the run, before there are findings."""
    return {
        "method": config.method.name,
        "data_set": dataset.name,
        "binarization": dataset.binarization,
        "decoders": networks.theta.particles,
        "encoder": type(networks.encoder).__name__,
        "seed": read_config(run_dir).seed,
        "model": sha256_file(run_dir / MODEL)[:DIGITS],
        "test_split": _fingerprint(dataset),
        "steps": _steps(run_dir, config),
        "findings": [],
        "left_out": {},
        "differences": [],
    }


def check_data(run_dir: Path, dataset: Dataset) -> str:
    """What to say where the test examples are not those of the run; empty where they are.

    Another test split may be meant, as another binarisation is. Errors: ValueError where classes or
    words are called otherwise than in the run, which makes another thing of every number.
    """
    try:
        result = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # the parameters are enough for an evaluation
    before = result.get("data") if isinstance(result, dict) else None
    if not isinstance(before, dict):
        return ""  # of a version that did not record it
    now = identity(dataset.train, dataset)
    changed = differences(*({n: v for n, v in own.items() if n in SHARED} for own in (before, now)))
    if changed:
        raise ValueError(f"the data are not those of the run in {run_dir}: {changed}")
    tests = ({n: v for n, v in own.items() if n.startswith("test.")} for own in (before, now))
    changed = differences(*tests)
    return changed and f"the test split is not that of the run in {run_dir}: {changed}"


def read_earlier(run_dir: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier evaluation of the same parameters and test split; empty where there is none.

    `own` has a `head`. Errors: ValueError where the file cannot be read, or is of another split.
    """
    path = run_dir / JSON
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got: {error}; move it away") from error
    if not isinstance(found, dict) or found.get("model") != own["model"]:
        return {}
    if found["test_split"] != own["test_split"]:
        split = "{data_set} ({binarization}), SHA-256 {test_split}".format
        raise ValueError(
            f"{path} is of another test split, {split(**found)}, than {split(**own)}: "
            "move it away and evaluate again"
        )
    return found


def merge(earlier: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own`, and beside it what `earlier` has that `own` has not measured in the same way."""
    before = {_way(each): each for each in earlier.get("findings", ())}
    findings = before | {_way(each): each for each in own["findings"]}
    stays = {way for way, each in before.items() if each["value"] == findings[way]["value"]}
    differences = {
        _way(each): each
        for each in earlier.get("differences", ())
        if {_way(each), _way(_other(each))} <= stays
    }
    differences |= {_way(each): each for each in own["differences"]}
    left_out = {**earlier.get("left_out", {}), **own["left_out"]}
    labels = {name: each for name, each in earlier.items() if name.startswith("labels")}
    return {
        **labels,
        **own,
        "findings": list(findings.values()),
        "left_out": {n: why for n, why in left_out.items() if not _is_among(n, findings.values())},
        "differences": list(differences.values()),
    }


def _steps(run_dir: Path, config: Config) -> int:
    """Updates that the model has had: while a run is extended, its configuration asks for more, and
    its patience may have left it with fewer."""
    path = run_dir / RESULT
    if not path.exists():
        return config.trainer.max_steps
    try:
        return json.loads(path.read_text(encoding="utf-8"))["steps"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the JSON of a result, got: {error}") from error


def _way(found: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a finding, or a difference by its first estimator, from all others of a run."""
    metric = found.get("metric", "test_nll")
    settings = tuple(sorted(found["settings"].items()))
    names = ("estimator", "theta", "images", "evaluation_seed")
    return (metric, *(found[name] for name in names), settings)


def _other(difference: Mapping[str, Any]) -> dict[str, Any]:
    """The same for its second estimator."""
    names = {"estimator": difference["minus"], "settings": difference["minus_settings"]}
    return {**difference, **names}


def _is_among(name: str, findings: Iterable[Mapping[str, Any]]) -> bool:
    return any(each["estimator"].startswith(f"{name}(") for each in findings)


def _fingerprint(dataset: Dataset) -> str:
    """Of some of the test examples and the number of all."""
    chosen = evenly_spaced(len(dataset.test), FINGERPRINTED)
    shown = dataset.test.batch(chosen).to_dense().contiguous()
    text = f"{dataset.name} {dataset.binarization} {len(dataset.test)} {tuple(shown.shape)}"
    return hashlib.sha256(text.encode() + shown.numpy().tobytes()).hexdigest()[:DIGITS]
