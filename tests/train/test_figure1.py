"""Figure 1: cells are told apart, run once, and tables come from records alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steinvae import reproduce
from steinvae.experiments import figure1, mixture_cells, mixture_scores
from steinvae.experiments.figure1 import BIMODAL, PRINTED, rows
from steinvae.experiments.mixture_cells import build, points
from steinvae.experiments.mixture_plot import drawn_density, edges, exact_density
from steinvae.models.gaussian_mixture import section_5_1
from steinvae.report import append_records, read_records, tidy_record

ROOT = Path(__file__).resolve().parents[2]


def test_cells_are_told_apart():
    cells = [*rows(BIMODAL), *rows(PRINTED)]
    assert len({(cell.method, str(cell.setting())) for cell in cells}) == len(cells)
    assert len({cell.folder for cell in cells}) == len(cells)
    assert set(figure1.PICTURED) <= {cell.row for cell in rows(BIMODAL)}
    for cell in cells:
        config = cell.config(Path("runs"))
        assert config.method.fixed_theta
        assert config.trainer.max_steps == config.optimizer.decay_steps == cell.steps


def test_every_committed_record_belongs_to_a_cell():
    """A record that no cell matches would be measured again."""
    cells = [*rows(BIMODAL), *rows(PRINTED)]
    known = [(cell.method, cell.setting()) for cell in cells]
    known += [("exact", {"sigma": noise}) for noise in (BIMODAL, PRINTED)]
    records = read_records(ROOT / "docs" / "results" / "figure1.jsonl")
    assert all((each["method"], each["setting"]) in known for each in records)
    keys = [
        (r["method"], str(r["setting"]), r["seed"], r["metric"], r["estimator"]) for r in records
    ]
    assert len(set(keys)) == len(keys)


def record(cell, seed: int, metric: str, value: float) -> dict:
    return tidy_record(
        experiment="figure1",
        method=cell.method,
        setting=cell.setting(),
        seed=seed,
        metric=metric,
        value=value,
        stderr=0.1,
        n=10,
        estimator=mixture_scores.PLAIN,
        seconds=7.0,
        device="cpu",
    )


def test_table_has_means_over_the_seeds_that_are_there(tmp_path):
    """Seeds 0 and 2 of one cell, values 1 and 3: mean 2, standard error 1; nothing else a row."""
    cell, output = rows(BIMODAL)[0], tmp_path / "records.jsonl"
    for seed, value in ((0, 1.0), (2, 3.0)):
        append_records(
            output, [record(cell, seed, metric, value) for metric in mixture_scores.METRICS]
        )
    append_records(output, [record(cell, 2, "cpu_seconds", 7.2) | {"estimator": "training"}])
    text = figure1.table(output, (0, 1, 2))
    line, resampled = [line for line in text.splitlines() if line.startswith("| Stein")]
    assert line.count("2.000 ± 1.000") == len(mixture_scores.METRICS)
    assert re.search(r"\| 0, 2 +\| +7 \|", line)
    assert "±" not in resampled  # no records of it
    assert figure1.table(tmp_path / "none.jsonl", (0,)).count("Stein") == 0


@pytest.mark.parametrize("method", ["stein_vae", "vae", "planar_flow"])
def test_encoders_start_with_codes_of_the_right_reach(method):
    """The modes lie up to 7 from 0; a fresh encoder reaches beyond 2, its theta is the true one."""
    (cell,) = [each for each in rows(BIMODAL)[:3] if each.method == method]
    model = section_5_1(BIMODAL)
    networks = build(cell, model)
    codes = networks.encoder(points(model).test.rows, torch.randn(10, 500, 2))
    assert codes.abs().max() > 2
    torch.testing.assert_close(networks.theta.flat[0], model.theta.flatten().float())


def test_densities_integrate_to_one():
    model = section_5_1(BIMODAL)
    posterior = model.posterior(points(model).test.rows)
    bins = edges(posterior)
    area = (bins[1] - bins[0]) ** 2
    exact = exact_density(posterior, bins)
    draws = posterior.draw(20_000, torch.Generator().manual_seed(0))
    drawn = drawn_density(draws, bins)
    for density in (exact, drawn):
        assert abs(area * density.sum((1, 2)) - 1).max() < 5e-3
    # Total variation between a density and its histogram: half of sum sqrt(2 p / (pi n)).
    noise = 0.5 * ((2 / torch.pi * exact * area / 20_000) ** 0.5).sum((1, 2))
    assert (0.5 * area * abs(exact - drawn).sum((1, 2)) < 1.5 * noise).all()


def test_reproduce_runs_scores_draws_and_does_not_run_again(tmp_path, monkeypatch, capsys):
    """One cell of 6 steps, end to end."""
    short = replace(rows(BIMODAL)[0], steps=6, particles=4)
    monkeypatch.setattr(figure1, "rows", lambda noise: [short] if noise == BIMODAL else [])
    monkeypatch.setattr(figure1, "PICTURED", {short.row: "Stein"})
    monkeypatch.setattr(figure1, "POOL", 50)
    monkeypatch.setattr(mixture_scores, "POOL", 200)
    monkeypatch.setattr(mixture_scores, "DRAWS", 50)
    monkeypatch.setattr(mixture_cells, "TRAINING", 100)
    output, picture = tmp_path / "records.jsonl", tmp_path / "picture.png"
    arguments = ["figure1", "--seeds=0", f"--output={output}", f"--run_dir={tmp_path / 'runs'}"]
    assert reproduce.main([*arguments, f"--picture={picture}"]) == 0
    first = output.read_bytes()
    assert "Stein VAE, M = 50" in capsys.readouterr().out
    for file in (picture, tmp_path / "picture_more.png"):
        assert file.read_bytes().startswith(b"\x89PNG")
    assert reproduce.main(arguments) == 0
    assert reproduce.main([*arguments, "--draw"]) == 0
    assert output.read_bytes() == first
