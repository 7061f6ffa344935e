"""Figure 1 of Pu et al. 2017 (section 5.1): does a Stein encoder hold a posterior of two modes?

theta is known and the encoder alone is trained. sigma = 0.1 as printed makes every posterior one
Gaussian blob (its components are 0.14 apart); sigma = 10 gives the two modes that the figure shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from steinvae.data import step_generator
from steinvae.experiments.cells import Record, announce, read
from steinvae.experiments.document import further
from steinvae.experiments.known_posterior import Score, find, write_scores
from steinvae.experiments.mixture_cells import (
    TEST,
    MixtureCell,
    build,
    points,
)
from steinvae.experiments.mixture_plot import (
    by_mass,
    drawn_density,
    edges,
    exact_density,
    save_densities,
    shown_points,
)
from steinvae.experiments.mixture_scores import (
    COST,
    METRICS,
    PLAIN,
    POOL,
    TRAINING,
    floor,
    score,
)
from steinvae.experiments.mixture_tables import tables
from steinvae.model_file import MODEL, read_model
from steinvae.models.gaussian_mixture import section_5_1
from steinvae.networks import Networks
from steinvae.run import prepare_with, train
from steinvae.signals import StopRequest

NAME = "figure1"
BIMODAL, PRINTED = 10.0, 0.1
PICTURED = {
    "VAE": "VAE",
    "Planar flow": "planar flow",
    "Stein VAE, M = 10": "Stein, M = 10",
    "Stein VAE, M = 20": "Stein, M = 20",
    "Stein VAE, M = 50": "Stein, M = 50",
    "Stein VAE, M = 100": "Stein, M = 100",
    "Stein VAE, M = 100, 200 codes weighed, h x 0.3, 12,000 steps": "M = 100, 12,000 steps",
}
"""Rows of the table that have a column in the picture, and its title."""


def rows(noise: float) -> list[MixtureCell]:
    """A cell for each row of the table of one sigma.

    Rows with a "without" differ from the first in that, the plain ones in all that is not printed
    but the annealing; with the own term the direction is eq. 5.
    """
    stein = MixtureCell(row="Stein VAE, M = 50", noise=noise)
    cells = [
        stein,
        replace(stein, row="VAE", method="vae", temperature=1.0),
        replace(stein, row="Planar flow", method="planar_flow"),
    ]
    if noise == PRINTED:
        return cells
    sizes = [replace(stein, row=f"Stein VAE, M = {m}", particles=m) for m in (10, 20, 100)]
    long = replace(stein, row="Stein VAE, M = 50, 12,000 steps", steps=12_000)
    weighed = replace(stein, row="Stein VAE, M = 50, 200 codes weighed", mass_codes=200)
    name = "Stein VAE, M = 100, 200 codes weighed, h x 0.3"
    fine = replace(weighed, row=name, particles=100, factor=0.3)
    fine_long = replace(fine, row=f"{name}, 12,000 steps", steps=12_000)
    left = replace(stein, row="Stein VAE, M = 50, without moving masses", mass_rate=0.0)
    plain = replace(left, row="Stein VAE, M = 50, plain", normalised=False)
    small = [replace(plain, row=f"Stein VAE, M = {m}, plain", particles=m) for m in (10, 20)]
    own = replace(plain, row="Stein VAE, M = 50, plain, own term included", self_term="include")
    cold = replace(stein, row="Stein VAE, M = 50, without annealing", temperature=1.0)
    flow = replace(stein, row="Stein VAE, flow encoder, M = 50", encoder="flow")
    return [*cells, *sizes, long, weighed, fine, fine_long, left, plain, *small, own, cold, flow]


def run(root: str | None, seeds: Sequence[int], output: Path, run_dir: Path) -> str:
    """Train and score what has no records yet, and return the tables. `root` is not used."""
    both = (BIMODAL, PRINTED)  # seed by seed, so that a partial run compares the rows
    wanted = [replace(row, seed=seed) for seed in seeds for noise in both for row in rows(noise)]
    written = read(output)
    missing = [cell for cell in wanted if not _has_records(cell, written)]
    announce(len(wanted), output, [None for _ in missing])
    for seed in seeds:
        for noise in both:
            _run_floor(noise, seed, output)
    with StopRequest() as stop:
        for cell in missing:
            run_cell(cell, output, run_dir, stop)
    return table(output, seeds)


def _has_records(cell: MixtureCell, records: Sequence[Record]) -> bool:
    return bool(find(records, cell.method, cell.setting(), cell.seed))


def run_cell(cell: MixtureCell, output: Path, run_dir: Path, stop: StopRequest) -> None:
    """Train and score one cell."""
    model = section_5_1(cell.noise)
    dataset = points(model)
    networks = build(cell, model)
    trainer = prepare_with(networks, cell.config(run_dir), dataset)
    result = train(trainer, stop)
    found = score(networks, dataset.test.batch(torch.arange(TEST)), cell.seed)
    found.append(Score(COST, TRAINING, result["cpu_seconds"], None))
    seconds = result["seconds"]
    _write(output, cell.method, cell.setting(), cell.seed, found, seconds)
    plain = {each.metric: each.value for each in found if each.estimator == PLAIN}
    values = ", ".join(f"{name} {plain[name]:.3f}" for name in METRICS)
    print(f"{cell.row}, sigma {cell.noise:g}, seed {cell.seed}: {values} ({seconds:.0f} s)")


def _run_floor(noise: float, seed: int, output: Path) -> None:
    setting = {"sigma": noise}
    if find(read(output), "exact", setting, seed):
        return
    model = section_5_1(noise)
    test = points(model).test.batch(torch.arange(TEST))
    _write(output, "exact", setting, seed, floor(model, test, seed), 0.0)


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


def table(output: Path, seeds: Sequence[int]) -> str:
    """All tables, drawn from the records in `output`; empty where there are none of these seeds."""
    records = read(output)
    return "\n\n".join(
        f"**sigma = {noise:g}, {title}.**\n\n{drawn}"
        for noise, title in ((BIMODAL, "two modes"), (PRINTED, "as printed: one mode"))
        if (drawn := tables(records, noise, rows(noise), seeds))
    )


def load_networks(cell: MixtureCell, run_dir: Path) -> Networks:
    """The networks of a finished cell. Errors: FileNotFoundError naming its folder."""
    path = run_dir / cell.folder / MODEL
    if not path.exists():
        raise FileNotFoundError(f"{path}: run the experiment with this run_dir first")
    networks = build(cell, section_5_1(cell.noise))
    networks.load(read_model(path))
    return networks


def picture(path: Path, run_dir: Path) -> None:
    """Densities of the finished cells of sigma = 10, seed 0, beside the exact posterior.

    Three test points, and the others in a picture beside it, as in appendix E.
    """
    model = section_5_1(BIMODAL)
    test = points(model).test.batch(torch.arange(TEST))
    posterior = model.posterior(test)
    bins = edges(posterior)
    columns = [("exact", exact_density(posterior, bins))]
    noise = torch.randn(TEST, POOL, 2, generator=step_generator(0, 0, "picture"))
    by_row = {cell.row: cell for cell in rows(BIMODAL)}
    for row, title in PICTURED.items():
        if (run_dir / by_row[row].folder / MODEL).exists():
            with torch.no_grad():
                codes = load_networks(by_row[row], run_dir).encoder(test, noise)
            columns.append((title, drawn_density(codes, bins)))
    names = [f"x = ({a:.1f}, {b:.1f})" for a, b in test.tolist()]
    shown = shown_points(posterior)
    others = [point for point in by_mass(posterior) if point not in shown]
    for file, chosen in ((path, shown), (further(path), others)):
        own = [(title, densities[chosen]) for title, densities in columns]
        save_densities(file, bins, own, [names[point] for point in chosen])
