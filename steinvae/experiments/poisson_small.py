"""Poisson factor analysis on simulated documents: how well do encoders know the posterior?

Topics are known and the encoder alone is trained, as in section 5.1 of Pu et al. 2017, but with 20
topics of 200 words for its 128 of 2,000. The truth is Gibbs sampling at the paper's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from steinvae.experiments.cells import read
from steinvae.experiments.known_posterior import (
    Record,
    Score,
    find,
    mean_seconds,
    over_runs,
    write_scores,
)
from steinvae.experiments.poisson_cells import TEST, PoissonCell, build, documents, simulated
from steinvae.experiments.poisson_picture import save_posteriors
from steinvae.experiments.poisson_scores import (
    AGAINST,
    CHAINS,
    METRICS,
    Truth,
    compare,
    encoder_draws,
    ground_truth,
)
from steinvae.report import markdown_table
from steinvae.run import MODEL, load_file, prepare_with, train
from steinvae.signals import StopRequest

NAME = "poisson_small"
SHAPE = 1.0
FLOOR = "Gibbs, second half of the chains (floor)"


def rows() -> list[PoissonCell]:
    """A cell for each row of the table, the most telling first."""
    stein = PoissonCell(row="Stein VAE, log", shape=SHAPE)
    soft = replace(stein, row="Stein VAE, softplus", positivity="softplus")
    normal = replace(stein, row="Log-normal VAE", method="flow_elbo", encoder="gaussian")
    return [
        stein,
        normal,
        soft,
        replace(normal, row="VAE, softplus of a Gaussian", positivity="softplus"),
        replace(stein, row="Stein VAE, log, self included (eq. 5)", self_term="include"),
        replace(stein, row="Planar flow, log", method="planar_flow", encoder="planar"),
        replace(stein, row="Stein VAE's encoder by its ELBO, log", method="flow_elbo"),
    ]


def run(root: str | None, seeds: Sequence[int], output: Path, run_dir: Path) -> str:
    """Train and score what has no records yet, and return the table. `root` is not used."""
    with StopRequest() as stop:
        _run_floor(output)
        for seed in seeds:
            for row in rows():
                _run_cell(replace(row, seed=seed), output, run_dir, stop)
    return table(output, seeds)


def table(output: Path, seeds: Sequence[int]) -> str:
    """The table, drawn from the records in `output`."""
    records = read(output)
    lines = []
    for cell in rows():
        own = [find(records, cell.method, cell.setting(), seed) for seed in seeds]
        lines += _line(cell.row, own)
    floor = find(records, "gibbs", _floor_setting(), 0)
    lines += _line(FLOOR, [floor])
    header = ("method", "W1 / sd", "sd ratio", "MMD²", "seeds", "s / run")
    rhat = next((record["value"] for record in floor if record["metric"] == "rhat"), None)
    caption = "" if rhat is None else f"\n\nLargest split R-hat of the Gibbs chains: {rhat:.3f}."
    return markdown_table(header, lines) + caption


def _run_cell(cell: PoissonCell, output: Path, run_dir: Path, stop: StopRequest) -> None:
    if find(read(output), cell.method, cell.setting(), cell.seed):
        print(f"{cell.row}, seed {cell.seed}: already in {output}")
        return
    truth, dataset, networks = _truth(), documents(SHAPE), build(cell)
    trainer = prepare_with(networks, cell.config(run_dir), dataset)
    seconds = train(trainer, stop)["seconds"]
    test = dataset.test.batch(torch.arange(TEST))
    draws = encoder_draws(networks, test, truth.first.shape[1], cell.seed)
    found = compare(draws, truth.first)
    _write(output, cell.method, cell.setting(), cell.seed, found, seconds)
    values = ", ".join(f"{each.metric} {each.value:.3f}" for each in found)
    print(f"{cell.row}, seed {cell.seed}: {values} ({seconds:.0f} s)", flush=True)


@cache
def _truth() -> Truth:
    test = documents(SHAPE).test.batch(torch.arange(TEST))
    return ground_truth(simulated(SHAPE), test)


def _floor_setting() -> dict[str, Any]:
    same = ("topics", "words", "shape")
    return {key: rows()[0].setting()[key] for key in same} | {"chains": CHAINS}


def _run_floor(output: Path) -> None:
    if find(read(output), "gibbs", _floor_setting(), 0):
        return
    truth = _truth()
    rhat = Score("rhat", AGAINST, truth.rhat.max().item(), None)
    _write(output, "gibbs", _floor_setting(), 0, [*compare(truth.second, truth.first), rhat], 0.0)


def _write(
    output: Path,
    method: str,
    setting: dict[str, Any],
    seed: int,
    scores: list[Score],
    seconds: float,
) -> None:
    run = {"experiment": NAME, "method": method, "setting": setting, "seed": seed}
    write_scores(output, scores, **run, n=TEST, seconds=seconds)


def _line(name: str, by_seed: Sequence[Sequence[Record]]) -> list[list[str]]:
    found = [records for records in by_seed if records]
    if not found:
        return []
    values = [
        [record["value"] for records in found for record in records if record["metric"] == metric]
        for metric in METRICS
    ]
    return [[name, *map(over_runs, values), str(len(found)), mean_seconds(found)]]


def picture(path: Path, run_dir: Path) -> None:
    """Posteriors of the first test document: Gibbs, and the finished VAE and Stein cells, seed 0.

    Errors: FileNotFoundError naming a folder without a finished run.
    """
    truth = _truth()
    test = documents(SHAPE).test.batch(torch.arange(TEST))
    stein, normal, *_ = rows()
    draws = {"Gibbs": truth.first[0]}
    for cell in (normal, stein):
        file = run_dir / cell.folder / MODEL
        if not file.exists():
            raise FileNotFoundError(f"{file}: run the experiment with this run_dir first")
        networks = build(cell)
        networks.load(load_file(file))
        draws[cell.row] = encoder_draws(networks, test[:1], truth.first.shape[1], 0)[0]
    save_posteriors(path, draws)
