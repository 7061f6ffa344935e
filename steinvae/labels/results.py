"""What a run with labels leaves: labels.json, its part of result.json and report.md, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steinvae._atomic import write_text
from steinvae.config import Config
from steinvae.data import Dataset
from steinvae.labels.pictures import save_code_map, save_confusion, save_uncertain
from steinvae.labels.predict import (
    LabelQuality,
    class_probabilities,
    fit_temperature,
    mean_codes,
    member_probabilities,
    nearest_neighbour_error,
    scores,
    temper,
)
from steinvae.labels.softmax import SoftmaxLabels
from steinvae.labels.task import labelled_indices, labels_of, make_task
from steinvae.labels.training import Labelled
from steinvae.networks import Networks
from steinvae.report import markdown_table

CHOSEN = "labels.json"
TEST_CODES = 20
"""Codes an image behind the reported probabilities."""
MOST_HELD = 2**29
"""Numbers, 2 GB, of labelled images and of codes that the nearest neighbour is looked for in."""
PICTURES = ("confusion", "uncertain", "code_map")


def write_chosen(run_dir: Path, labelled: Labelled, dataset: Dataset, config: Config) -> None:
    """Which training images have labels: `run_dir`/labels.json, indices and their classes."""
    chosen = labelled.indices
    content = {
        "data_set": dataset.name,
        "split_seed": config.data.split_seed,
        "indices": chosen.tolist(),
        "labels": labels_of(dataset.train)[chosen].tolist(),
    }
    write_text(Path(run_dir) / CHOSEN, json.dumps(content) + "\n")


def label_results(
    networks: Networks, dataset: Dataset, config: Config, run_dir: Path
) -> dict[str, Any]:
    """`label_quality`, and its pictures in `run_dir`."""
    test, labels = dataset.test, labels_of(dataset.test)
    members = member_probabilities(networks, test, seed=config.seed, samples=TEST_CODES)
    probabilities = members.mean(0)
    save_confusion(run_dir / "confusion.png", probabilities, labels)
    if dataset.image_shape is not None:
        save_uncertain(
            *(run_dir / "uncertain.png", probabilities, labels),
            lambda chosen: dataset.pictures(test.batch(chosen)),
            dataset.image_shape,
        )
    save_code_map(run_dir / "code_map.png", networks, test.batch, labels, config.seed)
    return label_quality(networks, dataset, config, members)


def label_quality(
    networks: Networks, dataset: Dataset, config: Config, members: Tensor | None = None
) -> dict[str, Any]:
    """Quality of the class probabilities on the whole test split.

    `decoder_spread` says how far label decoders differ, as a fraction of their size. `calibrated`
    is what one temperature, fitted to the labels of the validation split, makes of the
    probabilities; `single` the same for one label decoder alone, averaged over them;
    `nearest_neighbour_error` that of the nearest labelled image in code space. `members` are the
    probabilities (K, B, C) of the test images, where they are known already.
    """
    test, seed = dataset.test, config.seed
    chosen = labelled_indices(config, dataset)
    labels = labels_of(test)
    if members is None:
        members = member_probabilities(networks, test, seed=seed, samples=TEST_CODES)
    probabilities = members.mean(0)
    found = scores(probabilities, labels)
    softmax = isinstance(networks.labels, SoftmaxLabels)
    return {
        "labelled": len(chosen),
        "per_class": torch.bincount(labels_of(dataset.train)[chosen]).tolist(),
        "split_seed": config.data.split_seed,
        "zeta": make_task(config, dataset, chosen).zeta if softmax else None,
        "label_decoders": len(members),
        "decoder_spread": _spread(networks),
        "codes": TEST_CODES,
        **_numbers(found),
        "error_stderr": found.error_stderr,
        "images": found.images,
        "calibrated": _calibrated(networks, dataset, probabilities, seed),
        "single": _mean([_numbers(scores(each, labels)) for each in members]),
        "nearest_neighbour_error": _nearest(networks, dataset, chosen, seed),
    }


ESTIMATOR = f"mean over label decoders and {TEST_CODES} codes"


def label_metrics(found: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Name in records -> (value, standard error) of a `label_quality`; errors are fractions."""
    numbers: dict[str, tuple[float | None, float | None]] = {
        "label_error": (found["error"], found["error_stderr"]),
        "label_nll": (found["nll"], None),
        "label_ece": (found["ece"], None),
        "temperature": (found["calibrated"]["temperature"], None),
        "calibrated_nll": (found["calibrated"]["nll"], None),
        "calibrated_ece": (found["calibrated"]["ece"], None),
        "single_error": (found["single"]["error"], None),
        "single_nll": (found["single"]["nll"], None),
        "single_ece": (found["single"]["ece"], None),
        "nearest_neighbour_error": (found["nearest_neighbour_error"], None),
        "decoder_spread": (found["decoder_spread"], None),
    }
    return {name: (value, error) for name, (value, error) in numbers.items() if value is not None}


def label_section(results: Sequence[Mapping[str, Any]]) -> str:
    """The section of report.md: the table and the pictures."""
    shown = "\n\n".join(f"![{name}]({name}.png)" for name in PICTURES)
    return f"{label_table(results)}\n\n{shown}"


def label_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of results with a `method` and `labels`: a line each, and what the columns are."""
    rows = []
    for result in results:
        found = result["labels"]
        alone, fitted = found["single"], found["calibrated"]
        rows.append(
            (
                result["method"],
                f"{100 * found['error']:.2f} ± {100 * found['error_stderr']:.2f}",
                f"{found['nll']:.3f}",
                f"{100 * found['ece']:.2f}",
                f"{fitted['temperature']:.2f}",
                f"{fitted['nll']:.3f}",
                f"{100 * fitted['ece']:.2f}",
                found["label_decoders"],
                f"{100 * alone['error']:.2f}",
                f"{alone['nll']:.3f}",
                f"{100 * alone['ece']:.2f}",
                _percent(found["nearest_neighbour_error"]),
            )
        )
    first = results[0]["labels"]
    header = ("method", "error %", "NLL", "ECE %", "T", "NLL at T", "ECE % at T")
    header += (
        "label decoders",
        "error % of one",
        "NLL of one",
        "ECE % of one",
        "nearest neighbour %",
    )
    what = (
        f"{first['labelled']} training images have labels ({CHOSEN}). On all {first['images']} "
        f"test images; probabilities are averaged over label decoders and {first['codes']} codes "
        "an image. NLL in nats an image; ECE: expected calibration error, 15 bins; at T: "
        "probabilities to the power 1/T, T fitted to the labels of the validation split; of one: "
        "one label decoder alone, averaged over them; nearest neighbour: the class of the nearest "
        "labelled image in code space. ± is the binomial standard error. The last parameters are "
        "tested, and but for T labels of validation images choose nothing."
    )
    note = "" if all(r["method"] != "supervised" for r in results) else _UNTRAINED
    return f"## Labels\n\n{what}{note}\n\n{markdown_table(header, rows)}"


_UNTRAINED = " The image decoder of supervised is untrained, and its NLL of images is too."


def _nearest(networks: Networks, dataset: Dataset, labelled: Tensor, seed: int) -> float | None:
    """None where all codes and labelled images together are too many to hold."""
    train, test = dataset.train, dataset.test
    held = (len(test) + len(labelled)) * networks.encoder.codes + len(labelled) * train.features
    if held > MOST_HELD:
        return None
    known = train.batch(labelled, torch.Generator().manual_seed(0))
    return nearest_neighbour_error(
        mean_codes(networks, test, seed=seed, samples=TEST_CODES),
        labels_of(test),
        mean_codes(networks, known, seed=seed, samples=TEST_CODES),
        labels_of(train)[labelled],
    )


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:.2f}"


def _spread(networks: Networks) -> float | None:
    """Deviation of label decoders from their mean over their size, both root mean square."""
    if not isinstance(networks.labels, SoftmaxLabels) or networks.labels.theta.particles == 1:
        return None
    flat = networks.labels.theta.flat
    return ((flat - flat.mean(0)).norm() / flat.norm()).item()


def _calibrated(
    networks: Networks, dataset: Dataset, probabilities: Tensor, seed: int
) -> dict[str, float]:
    """NLL and ECE at the temperature that the labels of the whole validation split ask for."""
    split = dataset.validation
    held_out = class_probabilities(networks, split, seed=seed, samples=TEST_CODES)
    temperature = fit_temperature(held_out, labels_of(split))
    found = scores(temper(probabilities, temperature), labels_of(dataset.test))
    return {"temperature": temperature, "nll": found.nll, "ece": found.ece}


def _numbers(found: LabelQuality) -> dict[str, float]:
    return {"error": found.error, "nll": found.nll, "ece": found.ece}


def _mean(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(item[name] for item in each) / len(each) for name in each[0]}
