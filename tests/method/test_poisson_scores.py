"""Scores of encoders against draws whose distance is known, and the small study from end to end."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from steinvae.data.synthetic import Vectors
from steinvae.experiments import poisson_scores, poisson_small
from steinvae.experiments.poisson_cells import PoissonCell, build
from steinvae.experiments.poisson_scores import Truth, compare, diagnose, encoder_draws
from steinvae.experiments.poisson_small import documents, simulated
from steinvae.experiments.poisson_study import FLOOR
from steinvae.recognition import GaussianEncoder
from steinvae.report import read_records


def values(draws: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    return {each.metric: each.value for each in compare(draws, exact)}


def test_a_shift_is_its_w1_and_a_stretch_its_sd_ratio():
    """W1 of z + c from z is c; z stretched about its mean has its sd ratio. One topic of two has
    no mass and must not count."""
    exact = 5 + torch.randn(3, 400, 2, dtype=torch.float64)
    exact[..., 1] = 0.1 * torch.rand(3, 400, dtype=torch.float64)
    spread = exact.std(1, keepdim=True)
    same = values(exact, exact)
    assert same["w1_over_sd"] == 0
    assert same["sd_ratio"] == pytest.approx(1)
    shifted = values(exact + 0.3 * spread * torch.tensor([1.0, 99.0]), exact)
    assert shifted["w1_over_sd"] == pytest.approx(0.3)
    assert shifted["mmd2"] > 0.01
    centre = exact.mean(1, keepdim=True)
    stretched = values(centre + 2 * (exact - centre), exact)
    assert stretched["sd_ratio"] == pytest.approx(2)


def test_documents_without_mass_have_no_say_in_topics():
    exact = 5 + torch.randn(3, 400, 2, dtype=torch.float64)
    exact[2] = 0.1 * torch.rand(400, 2, dtype=torch.float64)
    centre, spread = exact.mean(1, keepdim=True), torch.tensor([1.0, 1.0, 50.0])[:, None, None]
    moved = centre + spread * (exact - centre)
    assert values(moved, exact)["sd_ratio"] == pytest.approx(1)
    assert values(moved, exact)["w1_over_sd"] == pytest.approx(0, abs=1e-12)
    assert values(moved, exact)["mmd2"] > 0.01


def test_chains_that_agree_and_chains_that_do_not():
    """By ArviZ: R-hat of independent draws is 1, their ESS their number; a chain 2 sd away is seen.

    The topic without mass has chains that disagree, and must not count.
    """
    pytest.importorskip("arviz_stats.base")
    chains = 5 + torch.randn(4, 500, 1, 2, dtype=torch.float64)
    chains[..., 1] = 0.1 * torch.arange(4)[:, None, None] + 0.01 * torch.rand(4, 500, 1)
    rhat, ess = (each.value for each in diagnose(Truth(chains)))
    assert rhat == pytest.approx(1, abs=0.01)
    assert 0.75 * 2_000 < ess < 1.25 * 2_000  # its own error is some 5 %
    chains[3] += 2
    rhat, ess = (each.value for each in diagnose(Truth(chains)))
    assert rhat > 1.3
    assert ess < 50


def test_halves_share_no_chain():
    truth = Truth(torch.arange(4.0)[:, None, None, None].expand(4, 5, 2, 3))
    assert set(truth.first.unique().tolist()) == {0.0, 1.0}
    assert set(truth.second.unique().tolist()) == {2.0, 3.0}
    assert truth.first.shape == (2, 10, 3)


def test_without_arviz_the_study_says_what_to_install_before_any_chain_runs(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "arviz_stats.base", None)
    monkeypatch.setattr(poisson_small, "ground_truth", lambda known: pytest.fail("sampled"))
    with pytest.raises(ImportError, match=r"arviz-stats.*stein-kernels\[mcmc\]"):
        poisson_small.run(None, [0], tmp_path / "records.jsonl", tmp_path)


def test_the_encoder_sees_root_counts_and_scores_are_positive():
    networks = build(PoissonCell(row="any"), simulated())
    encoder = networks.encoder
    assert isinstance(encoder, GaussianEncoder)
    counts = torch.poisson(torch.full((2, poisson_small.WORDS), 1.5))
    plain = encoder.trunk[1](2 * counts.sqrt()).tanh()  # type: ignore[index]
    torch.testing.assert_close(encoder.features(counts), plain)
    draws = encoder_draws(networks, counts, 7, seed=0)
    assert draws.shape == (2, 7, poisson_small.TOPICS)
    assert (draws > 0).all()


def test_simulated_documents_have_the_length_they_should():
    """E length = V a / b; its variance is E length + V a / b^2. Four standard errors."""
    rate, data = simulated().prior.rate, documents()
    assert isinstance(data.train, Vectors)
    lengths = data.train.rows.sum(-1)
    expected = poisson_small.TOPICS / rate
    error = ((expected + poisson_small.TOPICS / rate**2) / len(lengths)) ** 0.5
    assert expected == pytest.approx(poisson_small.LENGTH)
    assert abs(lengths.mean().item() - expected) < 4 * error


@pytest.fixture
def short(monkeypatch):
    """Two rows of three steps, a short Gibbs run, few documents."""
    monkeypatch.setattr(poisson_small, "TEST", 4)
    monkeypatch.setattr(poisson_small, "TRAINING", 64)
    whole = poisson_small.rows()
    few = [replace(whole[index], steps=3) for index in (0, 1)]
    monkeypatch.setattr(poisson_small, "rows", lambda: few)
    brief = partial(poisson_scores.posterior_draws, burn_in=5, draws=20, thin=1)
    monkeypatch.setattr(poisson_scores, "posterior_draws", brief)
    return few


def test_the_study_runs_once_and_draws_its_table_and_picture(short, tmp_path, capsys):
    pytest.importorskip("arviz_stats.base")
    output = tmp_path / "records.jsonl"
    text = poisson_small.run(None, [0], output, tmp_path / "runs")
    assert all(row in text for row in (short[0].row, short[1].row, FLOOR))
    assert "R-hat" in text
    poisson_small.picture(tmp_path / "one.png", tmp_path / "runs")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    before = output.read_text()
    assert poisson_small.run(None, [0], output, tmp_path / "runs") == text
    assert output.read_text() == before
    assert ", 0 to run" in capsys.readouterr().out


def test_a_picture_without_finished_runs_says_what_is_missing(short, tmp_path):
    with pytest.raises(FileNotFoundError, match="run the experiment"):
        poisson_small.picture(tmp_path / "one.png", tmp_path / "runs")


def test_every_committed_record_belongs_to_a_cell():
    """A record that no cell matches would be measured again."""
    table = poisson_small._table()
    keys = [(cell.method, cell.setting(table.setting)) for cell in table.rows]
    keys.append(("gibbs", table.floor_setting))
    records = read_records(Path(__file__).parents[2] / "docs" / "results" / "poisson_small.jsonl")
    assert all((each["method"], each["setting"]) in keys for each in records)
