"""What a direction of the codes tells the encoder: cosine with the exact ELBO gradient, and noise.

Nothing is trained but the networks looked at: those of Stein VIWAE in `stein_encoder` after 1,500
and after 6,000 steps. `direction_variants` has the directions, `gradient_noise` what is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch

from steinvae.config import Config
from steinvae.data import BatchSampler, Dataset, step_generator
from steinvae.experiments.cells import Cell, Record, announce, read, train_cell
from steinvae.experiments.direction_variants import DEFAULT, VARIANTS
from steinvae.experiments.gradient_noise import Power, measure
from steinvae.experiments.stein_encoder import STEPS, configuration
from steinvae.model_file import load_model
from steinvae.networks import Networks
from steinvae.report import append_records, markdown_table, tidy_record
from steinvae.run import load_data
from steinvae.signals import StopRequest

NAME = "stein_direction"
IMAGES, MINIBATCHES, FEWEST = 32, 5, 10
REPEATS = {FEWEST: 24, 20: 16, 40: 12, 80: 8}
"""Times that the codes of a minibatch are drawn, by codes an image."""

MORE_CODES = (DEFAULT, "coordinates", "moments of the other codes", "g - grad log q, no kernel")
"""Directions that are also looked at with more than 10 codes, after 6,000 steps."""

COLUMNS = {
    ("cosine", "all"): "cosine",
    ("cosine", "width"): "of width",
    ("cosine", "shape"): "of shape",
    ("scale", "width"): "width signal",
    ("snr", "all"): "S/N",
    ("snr", "width"): "S/N of width",
    ("equal_time", "width"): "width, equal time",
}
"""Metric and part of eta, by column. cosine: of one draw with the exact gradient; scale: how much
of the exact gradient the mean of all draws has, over the same for the last layer's mu; snr: signal
to noise; equal_time: the cosine of as many draws as cost one update by the default direction with
the fewest codes."""


def run(root: str | None, seeds: Sequence[int], output: Path, run_dir: Path) -> str:
    """Train and look at the checkpoints that have no record yet, and return the tables."""
    known = {(record["setting"]["steps"], record["seed"]) for record in read(output)}
    wanted = [(steps, seed) for seed in seeds for steps in STEPS]
    missing = [cell for cell in wanted if cell not in known]
    announce(len(wanted), output, [None for _ in missing])
    dataset: Dataset | None = None
    with StopRequest() as stop:
        for steps, seed in missing:
            cell = Cell(f"Stein VIWAE {steps}", configuration("Stein", steps, seed, root))
            dataset = dataset or load_data(cell.config)
            train_cell(cell, dataset, run_dir, stop)
            folder = cell.folder(run_dir)
            networks = load_model(folder, cell.config, dataset.train.features)
            append_records(output, list(look(cell.config, networks, dataset)))
    return table(output, seeds)


def look(config: Config, networks: Networks, dataset: Dataset) -> Iterator[Record]:
    """All records of one checkpoint."""
    sampler = BatchSampler(len(dataset.train), IMAGES, config.seed)
    minibatches = [
        dataset.train.batch(sampler.indices(step)).to(networks.device)
        for step in range(MINIBATCHES)
    ]
    default = 0.0
    for samples in REPEATS if config.trainer.max_steps == STEPS[-1] else (FEWEST,):
        names = VARIANTS if samples == FEWEST else MORE_CODES
        measured = measure(
            networks,
            minibatches,
            {name: VARIANTS[name] for name in names},
            samples=samples,
            repeats=REPEATS[samples],
            generator=step_generator(config.seed, samples, "noise"),
        )
        if samples == FEWEST:
            default = measured[DEFAULT]["all"].seconds
        for name, powers in measured.items():
            for metric, part in COLUMNS:
                value = _value(metric, part, powers, default)
                seconds = powers[part].seconds / MINIBATCHES
                yield _record(config, name, samples, metric, part, value, seconds)


def _value(metric: str, part: str, powers: Mapping[str, Power], default: float) -> float:
    power = powers[part]
    if metric == "snr":
        return power.signal_to_noise()
    if metric == "scale":
        return power.scale() / powers["mean"].scale()
    return power.cosine(1.0 if metric == "cosine" else default / power.seconds)


def _record(
    config: Config,
    name: str,
    samples: int,
    metric: str,
    part: str,
    value: float,
    seconds: float,
) -> Record:
    return tidy_record(
        experiment=NAME,
        method=name,
        setting={
            "part": part,
            "samples": samples,
            "steps": config.trainer.max_steps,
            "minibatches": f"{MINIBATCHES} x {IMAGES}",
            "repeats": REPEATS[samples],
        },
        seed=config.seed,
        metric=metric,
        value=value,
        stderr=None,
        n=MINIBATCHES * REPEATS[samples],
        estimator="mean over pairs of draws",
        seconds=round(seconds, 5),
        device=f"cpu, {torch.get_num_threads()} thread",
    )


def table(output: Path, seeds: Sequence[int]) -> str:
    """The directions with 10 codes, early and late, then some with more codes."""
    records = [record for record in read(output) if record["seed"] in seeds]
    parts = [_table(records, steps, (FEWEST,)) for steps in STEPS]
    parts.append(_table(records, STEPS[-1], tuple(REPEATS)[1:]))
    return "\n\n".join(part for part in parts if part)


def _table(records: Sequence[Record], steps: int, samples: Sequence[int]) -> str:
    found: dict[tuple[int, str], dict[tuple[str, str], list[Record]]] = {}
    for record in records:
        setting = record["setting"]
        if setting["steps"] == steps and setting["samples"] in samples:
            row = found.setdefault((setting["samples"], record["method"]), {})
            row.setdefault((record["metric"], setting["part"]), []).append(record)
    lines = [
        [name, count, *(_cell(row[column]) for column in COLUMNS), _milliseconds(row)]
        for (count, name), row in found.items()
    ]
    header = (f"after {steps:,} steps", "S", *COLUMNS.values(), "ms")
    return markdown_table(header, lines) if lines else ""


def _cell(records: Sequence[Record]) -> str:
    """Mean over seeds, and its standard error."""
    values = [record["value"] for record in records]
    text = f"{round(mean(values), 2) + 0.0:.2f}"  # + 0.0: no minus before a zero
    if len(values) < 2:
        return text
    return f"{text} ± {stdev(values) / len(values) ** 0.5:.2f}"


def _milliseconds(row: dict[tuple[str, str], list[Record]]) -> str:
    seconds = [record["seconds"] for records in row.values() for record in records]
    return f"{1000 * mean(seconds):.0f}"
