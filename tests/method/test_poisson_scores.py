"""Scores of encoders against draws whose distance is known, and the small study from end to end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steinvae.data.synthetic import Vectors
from steinvae.experiments import poisson_cells, poisson_scores, poisson_small
from steinvae.experiments.poisson_cells import PoissonCell, build, documents, simulated
from steinvae.experiments.poisson_scores import compare, encoder_draws, split_rhat
from steinvae.recognition import GaussianEncoder


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


def test_split_rhat_of_chains_that_agree_and_that_do_not():
    """Chains that differ by 2 sd have R-hat near sqrt(1 + B/W), here over 1.5."""
    chains = torch.randn(4, 1_000, dtype=torch.float64)
    assert split_rhat(chains).item() == pytest.approx(1, abs=0.01)
    moved = chains + 2 * torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    assert split_rhat(moved).item() > 1.3
    drifting = chains + torch.linspace(0, 3, 1_000, dtype=torch.float64)
    assert split_rhat(drifting).item() > 1.1


def test_arviz_has_the_same_split_rhat():
    base = pytest.importorskip("arviz_stats.base")
    chains = torch.randn(4, 500, dtype=torch.float64) + 0.2 * torch.arange(4)[:, None]
    found = base.array_stats.rhat(chains.numpy(), chain_axis=0, draw_axis=1, method="split")
    assert split_rhat(chains).item() == pytest.approx(float(found), rel=1e-10)


def test_the_encoder_sees_root_counts_and_scores_are_positive():
    networks = build(PoissonCell(row="any"))
    encoder = networks.encoder
    assert isinstance(encoder, GaussianEncoder)
    counts = torch.poisson(torch.full((2, poisson_cells.WORDS), 1.5))
    plain = encoder.trunk[1](2 * counts.sqrt()).tanh()  # type: ignore[index]
    torch.testing.assert_close(encoder.features(counts), plain)
    draws = encoder_draws(networks, counts, 7, seed=0)
    assert draws.shape == (2, 7, poisson_cells.TOPICS)
    assert (draws > 0).all()


def test_simulated_documents_have_the_length_they_should():
    """E length = V a / b; its variance is E length + V a / b^2. Four standard errors."""
    model, data = simulated(1.0), documents(1.0)
    assert isinstance(data.train, Vectors)
    lengths = data.train.rows.sum(-1)
    expected = poisson_cells.TOPICS / model.rate
    error = ((expected + poisson_cells.TOPICS / model.rate**2) / len(lengths)) ** 0.5
    assert expected == pytest.approx(poisson_cells.LENGTH)
    assert abs(lengths.mean().item() - expected) < 4 * error


@pytest.fixture
def short(monkeypatch):
    """Two rows of three steps, a short Gibbs run, few documents."""
    for module in (poisson_cells, poisson_small):
        monkeypatch.setattr(module, "TEST", 4)
    monkeypatch.setattr(poisson_cells, "TRAINING", 64)
    whole = poisson_small.rows()
    few = [replace(whole[index], steps=3) for index in (0, 1)]
    monkeypatch.setattr(poisson_small, "rows", lambda: few)

    def brief(tokens, topics, prior, *, seed, chains):
        shape = {"burn_in": 5, "draws": 20, "thin": 1}
        return poisson_scores_draws(tokens, topics, prior, seed=seed, chains=chains, **shape)

    poisson_scores_draws = poisson_scores.posterior_draws
    monkeypatch.setattr(poisson_scores, "posterior_draws", brief)
    poisson_small._truth.cache_clear()
    yield few
    poisson_small._truth.cache_clear()


def test_the_study_runs_once_and_draws_its_table_and_picture(short, tmp_path, capsys):
    output = tmp_path / "records.jsonl"
    text = poisson_small.run(None, [0], output, tmp_path / "runs")
    assert all(row in text for row in (short[0].row, short[1].row, poisson_small.FLOOR))
    assert "R-hat" in text
    poisson_small.picture(tmp_path / "one.png", tmp_path / "runs")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    before = output.read_text()
    assert poisson_small.run(None, [0], output, tmp_path / "runs") == text
    assert output.read_text() == before
    assert "already in" in capsys.readouterr().out


def test_a_picture_without_finished_runs_says_what_is_missing(short, tmp_path):
    with pytest.raises(FileNotFoundError, match="run the experiment"):
        poisson_small.picture(tmp_path / "one.png", tmp_path / "runs")
