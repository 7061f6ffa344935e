"""What a run leaves for readers: result.json, report.md and tidy records, never typed by hand."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch

from steinvae._atomic import alone, write_text
from steinvae.data.left_out import names_shown, shown

RESULT_KEYS = (
    "method",
    "data_set",
    "binarization",
    "steps",
    "seconds",
    "parameters",
    "nll",
    "seed",
    "versions",
    "commit",
)
NLL_KEYS = ("estimator", "value", "standard_error", "images")
RECORD_KEYS = (
    "experiment",
    "method",
    "setting",
    "seed",
    "metric",
    "value",
    "stderr",
    "n",
    "estimator",
    "seconds",
    "device",
    "versions",
    "commit",
)
BOUNDS = {
    "iw_g": "importance sampling from a Gaussian fitted to the encoder's codes; "
    "in expectation an upper bound of the NLL, whatever the encoder",
    "iw_d": "importance sampling from a Gaussian of diagonal covariance fitted to the encoder's "
    "codes; in expectation an upper bound of the NLL, whatever the encoder",
    "s_elbo": "importance sampling from the encoder by its own density, for an injective encoder; "
    "in expectation an upper bound of the NLL",
}
"""What an estimator is, and what it bounds, by the first word of its name."""

GREY = (
    "the pixels are grey levels, over which a Bernoulli likelihood does not sum to 1. The numbers "
    "rank runs on the same images and bound no log-likelihood."
)

TOPICS_SHOWN = 50
"""Units of a layer in report.md at most; result.json has them all."""


def or_null(error: float) -> float | None:
    """A standard error as JSON has it: of a single value there is none."""
    return error if math.isfinite(error) else None


def with_error(value: float, error: float | None, digits: int) -> str:
    """`value ± error`, or the value alone where there is no error."""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def write_result(run_dir: Path, result: Mapping[str, Any]) -> Path:
    """Write `run_dir`/result.json (atomically) and return its path.

    Keys: method, data_set, binarization, steps, seconds, parameters (count), nll: {estimator,
    value (nats per image), standard_error (of the mean over images), images}, seed, versions,
    commit. Further keys are kept.

    Errors: ValueError listing missing keys; ValueError for NaN or infinity, which JSON lacks.
    """
    _check_keys("write_result: result", RESULT_KEYS, result)
    _check_keys("write_result: result['nll']", NLL_KEYS, result["nll"])
    path = Path(run_dir) / "result.json"
    write_text(path, json.dumps(result, indent=2, allow_nan=False) + "\n")
    return path


def write_report(
    run_dir: Path, result: Mapping[str, Any], baselines: Sequence[Mapping[str, Any]]
) -> Path:
    """Write `run_dir`/report.md from a result and those of its baselines; returns its path.

    `baselines` have the keys of a result. config.yaml, samples.png and curves.png are shown where
    they are in `run_dir`.
    """
    run_dir = Path(run_dir)
    results = [result, *baselines]
    for each in results:
        _check_keys("write_report: result", RESULT_KEYS, each)
        _check_keys("write_report: result['nll']", NLL_KEYS, each["nll"])
    title = f"# {result['method']} on {result['data_set']} ({result['binarization']})"
    sections = [title, _nll_section(results)]
    if "labels" in result:
        from steinvae.labels.results import label_section

        sections.append(label_section(results))
    if "perplexity" in result:
        sections += [_perplexity_section(results), _topics_section(result)]
    sections.append(_run_section(result))
    sections += [
        f"## {name.capitalize()}\n\n![{name}]({name}.png)"
        for name in ("samples", "curves")
        if (run_dir / f"{name}.png").is_file()
    ]
    config = run_dir / "config.yaml"
    if config.is_file():
        sections.append(f"## Configuration\n\n```yaml\n{config.read_text('utf-8').rstrip()}\n```")
    path = run_dir / "report.md"
    write_text(path, "\n\n".join(sections) + "\n")
    return path


def tidy_record(
    *,
    experiment: str,
    method: str,
    setting: Mapping[str, Any],
    seed: int,
    metric: str,
    value: float,
    stderr: float | None,
    n: int,
    estimator: str,
    seconds: float,
    device: str,
    paper: float | None = None,
) -> dict[str, Any]:
    """One measurement as a flat record; `paper` is kept only where the paper has a number.

    `setting` is a flat object of what was varied; `n` counts what `stderr` is taken over (images or
    runs). versions and commit are those of this process.

    Errors: ValueError for a nested setting.
    """
    nested = [key for key, item in setting.items() if isinstance(item, Mapping | list | tuple)]
    if nested:
        raise ValueError(f"tidy_record: setting must be flat, got nested {', '.join(nested)}")
    record: dict[str, Any] = {
        "experiment": experiment,
        "method": method,
        "setting": dict(setting),
        "seed": seed,
        "metric": metric,
        "value": value,
    }
    if paper is not None:
        record["paper"] = paper
    record |= {"stderr": stderr, "n": n, "estimator": estimator, "seconds": seconds}
    return record | {"device": device, "versions": versions(), "commit": commit()}


def append_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append tidy records to a .jsonl file, all of them or none, beside other processes that do.

    A link stays one. Errors: ValueError for missing keys, NaN, and a file whose last line is
    incomplete.
    """
    path = Path(path).resolve()  # or the link would be replaced by a file
    for record in records:
        _check_keys("append_records: record", RECORD_KEYS, record)
    text = "".join(json.dumps(r, allow_nan=False) + "\n" for r in records)
    with alone(path):
        earlier = path.read_text("utf-8") if path.exists() else ""
        if earlier and not earlier.endswith("\n"):
            raise ValueError(f"{path}: expected complete lines, the last one is cut short")
        write_text(path, earlier + text)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file."""
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines() if line]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table padded to be read as plain text; columns of numbers are right-aligned."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    for row in cells:
        if len(row) != len(header):
            raise ValueError(f"markdown_table: expected {len(header)} cells a row, got {len(row)}")
    widths = [max(3, len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(header)]
    numeric = [
        bool(cells) and all(_NUMBER.match(row[i]) for row in cells) for i in range(len(widths))
    ]

    def line(row: Sequence[str]) -> str:
        columns = zip(row, widths, numeric, strict=True)
        return f"| {' | '.join(c.rjust(w) if n else c.ljust(w) for c, w, n in columns)} |"

    rule = [f"{'-' * (w - 1)}:" if n else "-" * w for w, n in zip(widths, numeric, strict=True)]
    return "\n".join([line(header), f"| {' | '.join(rule)} |", *map(line, cells)])


def versions() -> dict[str, str]:
    """Versions of what a number depends on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
    }


@cache
def commit() -> str | None:
    """The commit of this source tree, "-dirty" appended where tracked files differ from it.

    None where the package is not in a git checkout, or lies in one that does not track it, or where
    git does not answer. Asked for once a process: on a slow disk that takes seconds.
    """
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?( ?± ?[\d.]+)?$|-?$")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # `describe --dirty` must not write
    try:
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError):  # no git, or a slow one: the result matters more
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _nll_section(results: Sequence[Mapping[str, Any]]) -> str:
    rows, unit = [], "document" if "perplexity" in results[0] else "image"
    for result in results:
        nll = result["nll"]
        score = with_error(nll["value"], nll["standard_error"], 2)
        cost = (f"{result['steps']:,}", f"{result['seconds']:.0f}", f"{result['parameters']:,}")
        rows.append((result["method"], score, nll["estimator"], f"{nll['images']:,}", *cost))
    cost = ("steps", "seconds", "parameters")
    header = ("method", f"NLL (nats/{unit})", "estimator", f"{unit}s", *cost)
    names = dict.fromkeys(str(result["nll"]["estimator"]) for result in results)
    notes = [f"`{name}`: {_describe(name)}." for name in names]
    if any(result.get("normalised") == "no" for result in results):
        notes.append("**No density**: " + GREY)
    what = f"Test negative log-likelihood, lower is better; ± is the standard error over {unit}s."
    return "\n\n".join(["## Negative log-likelihood", what, markdown_table(header, rows), *notes])


def _perplexity_section(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [(each["method"], each["perplexity"], each["nll"]["estimator"]) for each in results]
    rows.append(("unigram, add one", results[0]["perplexity_unigram"], "exact"))
    cells = [
        (
            name,
            with_error(found["per_document"], found["per_document_error"], 1),
            f"{found['corpus']:.1f}",
            estimator,
        )
        for name, found, estimator in rows
    ]
    what = (
        "Of the test documents, their lengths given; lower is better. Per document: exp of the "
        "mean over documents of NLL / length, ± its standard error over documents; corpus: exp of "
        "the sum of NLLs over the sum of lengths. The two differ by more than methods do."
    )
    table = markdown_table(("method", "per document", "corpus", "estimator"), cells)
    return f"## Perplexity\n\n{what}\n\n{table}"


def _topics_section(result: Mapping[str, Any]) -> str:
    topics = result["topics"]
    if not topics:
        return "## Topics\n\nThe model has no weight of a word in a unit."
    what = (
        "The heaviest words of each unit of the first decoder. NPMI, from -1 to 1, is how much "
        "more often two of them share a training document than by chance."
    )
    layers = dict.fromkeys(topic["layer"] for topic in topics)
    parts = [_layer_section([t for t in topics if t["layer"] == layer]) for layer in layers]
    return "\n\n".join(["## Topics", what, *parts])


def _layer_section(topics: Sequence[Mapping[str, Any]]) -> str:
    mean = sum(topic["npmi"] for topic in topics) / len(topics)
    apart = max(1, -(-len(topics) // TOPICS_SHOWN))
    shown = topics[::apart]
    rows = [(topic["unit"], f"{topic['npmi']:.3f}", " ".join(topic["words"])) for topic in shown]
    which = "" if apart == 1 else f"; here one in {apart} from the most coherent to the least"
    title = f"Layer {topics[0]['layer']}: {len(topics)} units, mean NPMI {mean:.3f}{which}."
    return f"{title}\n\n{markdown_table(('unit', 'NPMI', 'words'), rows)}"


def _run_section(result: Mapping[str, Any]) -> str:
    versions_text = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    rows = [
        ("data set", result["data_set"]),
        ("binarisation", result["binarization"]),
        ("seed", result["seed"]),
        ("versions", versions_text),
        ("commit", result["commit"] or "not a git checkout"),
    ]
    left_out = result.get("skipped") or result.get("skipped_lines")
    if left_out:
        rows.append(("left out", shown(left_out)))
    rows += [
        (f"classes without {part} images", names_shown(classes))
        for part, classes in result.get("lost_classes", {}).items()
    ]
    return "## Run\n\n" + markdown_table(("setting", "value"), rows)


def _describe(estimator: str) -> str:
    word = re.match(r"\w*", estimator)
    return BOUNDS.get(word.group() if word else "", "what it bounds is not recorded")


def _check_keys(where: str, expected: Sequence[str], got: Mapping[str, Any]) -> None:
    missing = [key for key in expected if key not in got]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
