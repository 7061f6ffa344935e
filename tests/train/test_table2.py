"""Table 2: cells as they are meant, records once, both perplexities, and a table from records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steinvae.config import Config
from steinvae.density import Annealing, Suite, evenly_spaced
from steinvae.experiments import table2
from steinvae.experiments.measured import has_all, measure_all
from steinvae.experiments.table2_cells import CORPORA, ROWS, cells
from steinvae.experiments.table2_draw import draw
from steinvae.model_file import load_model
from steinvae.perplexity import perplexity
from steinvae.run import load_data
from steinvae.trainer import Trainer

WORDS, TEST = 30, 24
COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "results" / "table2.jsonl"
ROW = "deep Poisson, Stein VIWAE"


@pytest.fixture
def root(tmp_path):
    """20 Newsgroups in its own files: words of one half of the vocabulary, or of the other."""
    stream = np.random.RandomState(0)
    for name, count in (("train", 80), ("test", TEST)):
        lines = []
        for _ in range(count):
            words = stream.randint(2) * WORDS // 2 + stream.choice(WORDS // 2, 6, replace=False)
            entries = (f"{word + 1}:{stream.randint(1, 4)}" for word in sorted(words))
            lines.append(" ".join(["1", *entries]))
        (tmp_path / f"{name}.feat").write_text("\n".join(lines) + "\n")
    (tmp_path / "vocab.new").write_text("".join(f"word{number}\n" for number in range(WORDS)))
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    """Little effort: 5 samples, 2 chains of 3 temperatures on 4 documents, 4 steps."""
    effort = {"samples": 5, "annealing": Annealing(temperatures=3, chains=2, pilot_chains=1)}
    for name in ("ALL_OWN", "ALL_FITTED", "ON_SUBSET"):
        monkeypatch.setattr(table2, name, replace(getattr(table2, name), **effort))
    monkeypatch.setattr(table2, "SUBSET", 4)

    def timed(cell, dataset, run_dir):
        trainer = replace(cell.config.trainer, max_steps=4, validate_every=2)
        return replace(cell, config=replace(cell.config, trainer=trainer))

    monkeypatch.setattr(table2, "timed", timed)


@pytest.mark.parametrize("corpus", CORPORA)
def test_cells_differ_in_their_method_alone(corpus):
    made = cells(corpus, None, (0, 1))
    keys = {(c.config.method.name, c.config.seed, str(c.setting())) for c in made}
    assert len(keys) == len(made) == 2 * len(ROWS)
    for deep in (False, True):
        own = [cell.config for cell in made if ROWS[cell.row].deep is deep]
        shared = {(c.model.hidden, c.model.layers, c.optimizer, c.trainer.batch_size) for c in own}
        assert len(shared) == 1
        assert {c.decoder for c in own} == {"deep_poisson" if deep else "softmax"}


def test_records_are_made_once_and_hold_both_perplexities(
    root, small, tmp_path, monkeypatch, capsys
):
    output, run_dir = tmp_path / "records.jsonl", tmp_path / "runs"
    arguments = (str(root), (0,), output, run_dir)
    shown = table2.run(*arguments, corpus="20news", row=ROW)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    monkeypatch.setattr(Trainer, "update", lambda *_, **__: pytest.fail("trained again"))
    assert f"1 cell: 0 have records in {output}, 1 to run" in capsys.readouterr().out
    assert table2.run(*arguments, corpus="20news", row=ROW) == shown
    assert f"1 cell: 1 has records in {output}, 0 to run" in capsys.readouterr().out
    assert len(output.read_text().splitlines()) == len(records)

    config: Config = next(c for c in cells("20news", str(root), (0,)) if c.row == ROW).config
    dataset = load_data(config)
    folder = next((run_dir / "20news").iterdir())
    networks = load_model(folder, config, WORDS)
    suite = Suite(estimators=("elbo",), samples=5)
    elbo, iw = measure_all(networks, dataset.test.batch(torch.arange(TEST)), suite)
    for finding, name in ((elbo, "elbo(5)"), (iw, "s_elbo(5)")):
        assert finding.per_image is not None
        expected = perplexity(finding.per_image, dataset.test.lengths)
        found = {r["metric"]: r for r in records if (r["estimator"], r["n"]) == (name, TEST)}
        assert found["perplexity_corpus"]["value"] == pytest.approx(expected.corpus)
        one = found["perplexity_per_document"]
        assert one["value"] == pytest.approx(expected.per_document)
        assert one["stderr"] == pytest.approx(expected.per_document_error)
    few = {r["estimator"] for r in records if r["n"] == 4 and "perplexity" in r["metric"]}
    assert few == {"elbo(5)", "s_elbo(5)", "ais(3x2)"}
    assert len(evenly_spaced(TEST, 4)) == 4


def test_table_holds_what_was_measured_and_says_what_was_not(root, small, tmp_path):
    output = tmp_path / "records.jsonl"
    table2.run(str(root), (0,), output, tmp_path / "runs", corpus="20news", row=ROW)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    shown = draw(records, (0,), 4)
    line = next(each for each in shown.splitlines() if each.startswith(f"| {ROW}"))
    cells_of = [cell.strip() for cell in line.split("|")[2:-1]]
    iw = next(
        r["value"]
        for r in records
        if (r["estimator"], r["metric"], r["n"]) == ("s_elbo(5)", "perplexity_per_document", TEST)
    )
    assert cells_of[:3] == ["837, 829", "1", f"{iw:,.0f}"]
    assert cells_of[-1] == "4"
    assert "Not measured yet." in shown  # the other corpus
    limit = 0.9 * next(r["value"] for r in records if r["method"] == "unigram")
    verdict = "yes" if iw <= limit else "**no**"
    assert f"| {iw:,.1f} | {limit:,.1f} | {verdict} (one seed)" in " ".join(shown.split())


def changed(record: dict, seed: int = 0, times: float = 1.0, **setting: object) -> dict:
    """The record as of another seed, of other settings, or with another value."""
    setting = {**record["setting"], **setting}
    return {**record, "seed": seed, "value": times * record["value"], "setting": setting}


def shown_by(records: list[dict]) -> str:
    return " ".join(draw(records, (0, 1), table2.SUBSET).split())


@pytest.fixture
def committed() -> list[dict]:
    return [json.loads(line) for line in COMMITTED.read_text().splitlines()]


@pytest.fixture
def of_viwae(committed) -> list[dict]:
    return [
        record
        for record in committed
        if (record["method"], record["setting"]["data"]) == ("stein_viwae", "20news")
        and record["setting"].get("minutes") == 5.0
    ]


def test_rows_are_compared_on_the_seeds_that_both_have(committed, of_viwae):
    """A worse second seed of one row says nothing of a row that has the first alone."""
    second = [changed(record, seed=1, times=1.02) for record in of_viwae]
    before, after = shown_by(committed), shown_by([*committed, *second])
    claim = "Stein VIWAE at most Stein VAE | 891.4 | 897.0 | yes (one seed)"
    assert claim in before
    assert claim in after
    assert "| 900 ± 9 |" in after
    assert "at most 0.9 of the unigram | 900.3 | 1,085.3 |" in after


def test_runs_of_another_time_have_a_table_of_their_own(committed, of_viwae):
    longer = [changed(record, times=0.9, minutes=30.0, steps=40_000) for record in of_viwae]
    before, after = shown_by(committed), shown_by([*committed, *longer])
    own = after.index("### 20 Newsgroups, 2,000 words, 30 minutes a run")
    assert after[:own].strip() == before[:own].strip()
    table = after[own : after.index("### New York Times")]
    assert "40,000 |" in table
    assert "at most Stein VAE" not in table


def test_a_run_that_is_not_measured_yet_leaves_the_table_as_it_was(committed, of_viwae):
    """All numbers of a row are of one run, and a seed without numbers is none."""
    trained = [record for record in of_viwae if record["estimator"] == "training"]
    begun = [changed(record, steps=9_000) for record in trained]
    begun += [changed(record, seed=1) for record in trained]
    assert shown_by([*committed, *begun]) == shown_by(committed)


def test_errors_over_documents_are_those_of_the_columns(committed, of_viwae):
    unigram = [record for record in committed if record["method"] == "unigram"]
    per_document = [r for r in of_viwae if r["metric"] == "perplexity_per_document"]
    few = [r["stderr"] for r in per_document if r["n"] == table2.SUBSET]
    every = [r["stderr"] for r in per_document if r["n"] > table2.SUBSET]
    expected = (
        f"{min(every):.1f} to {max(every):.1f} of all documents, "
        f"{min(few):.1f} to {max(few):.1f} of the subset"
    )
    assert len(few) == 3
    assert expected in shown_by([*unigram, *of_viwae])


def test_what_the_document_shows_is_not_run_again():
    """Cells of a few minutes are found in a clone that has no run folders."""
    output = COMMITTED
    (cell,) = (each for each in cells("nyt", None, (0,)) if each.row == "NVDM: VAE")
    suites = [(table2.ALL_OWN, 918), (table2.ON_SUBSET, table2.SUBSET)]
    assert has_all(cell, suites, output)
    (slower,) = (each for each in cells("nyt", None, (0,), 9.0) if each.row == "NVDM: VAE")
    assert not has_all(slower, suites, output)


def test_impossible_minutes_are_named(tmp_path):
    arguments = (None, (0,), tmp_path / "r.jsonl", tmp_path)
    with pytest.raises(ValueError, match=r"^minutes must be positive, got -1"):
        table2.run(*arguments, minutes=-1.0)
    with pytest.raises(ValueError, match=r"^slice_minutes must be positive, got 0"):
        table2.run(*arguments, slice_minutes=0.0)
