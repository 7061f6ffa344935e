"""Figure 2: topics and truth are made once and kept, cells run once, tables come from records."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from steinvae import reproduce
from steinvae.data.count_files import Bags
from steinvae.data.documents import CountDataset, split
from steinvae.experiments import figure2, news_topics, poisson_scores
from steinvae.experiments.poisson_study import FLOOR
from steinvae.gibbs import Chain, Prior, Tokens
from steinvae.report import read_records

ROOT = Path(__file__).resolve().parents[2]
WORDS = 30


def bags(rng: np.random.Generator, documents: int) -> Bags:
    counts = csr_array(1 + rng.poisson(1.0, (documents, WORDS)) * rng.integers(0, 2, WORDS))
    return Bags(
        counts.indptr.astype(np.int64),
        counts.indices.astype(np.int32),
        counts.data.astype(np.int32),
    )


@pytest.fixture
def small(monkeypatch) -> CountDataset:
    """80 documents of 30 words for 20 Newsgroups, 4 topics, two rows of three steps."""
    rng = np.random.default_rng(0)
    names = tuple(f"word{index}" for index in range(WORDS))
    dataset = split("20news", bags(rng, 80), bags(rng, 9), names, {})
    monkeypatch.setattr(news_topics, "load", lambda name, root: dataset)
    for module in (news_topics, figure2):
        for name, value in {"WORDS": WORDS, "TOPICS": 4, "SWEEPS": 12, "TEST": 3}.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(news_topics, "AVERAGED", 4)
    few = [replace(cell, steps=3, particles=5) for cell in figure2.rows()[:2]]
    monkeypatch.setattr(figure2, "rows", lambda: few)
    brief = partial(poisson_scores.posterior_draws, burn_in=5, draws=20, thin=1)
    monkeypatch.setattr(poisson_scores, "posterior_draws", brief)
    return dataset


def test_tokens_of_documents_are_those_of_their_counts(small):
    found = Tokens.of_documents(small.train)
    rebuilt = np.zeros(found.shape)
    np.add.at(rebuilt, (found.documents, found.words), 1)
    every = np.arange(len(small.train))
    dense = small.train.batch(news_topics.torch.from_numpy(every)).to_dense().numpy()
    np.testing.assert_array_equal(rebuilt, dense)


def test_interrupted_topics_are_those_of_one_run(small, tmp_path, monkeypatch):
    """Interrupted within the average; a chain of other documents is refused by its file's name."""
    prior, whole, halves = Prior(rate=0.1), tmp_path / "whole.npz", tmp_path / "halves.npz"
    topics = news_topics.topics_of(small, prior, whole)

    def interrupt(chain: Chain) -> None:
        if chain.sweeps == 10:
            chain.save(halves)
            raise KeyboardInterrupt

    monkeypatch.setattr(news_topics, "_print", interrupt)
    with pytest.raises(KeyboardInterrupt):
        news_topics.topics_of(small, prior, halves)
    monkeypatch.undo()
    monkeypatch.setattr(news_topics, "TOPICS", 4)
    monkeypatch.setattr(news_topics, "SWEEPS", 12)
    monkeypatch.setattr(news_topics, "AVERAGED", 4)
    np.testing.assert_array_equal(news_topics.topics_of(small, prior, halves), topics)
    fewer = replace(small, train=small.test)
    with pytest.raises(ValueError, match=r"halves\.npz: expected z and theta"):
        news_topics.topics_of(fewer, prior, halves)


def test_figure2_runs_once_and_draws_from_what_it_kept(small, tmp_path, monkeypatch, capsys):
    pytest.importorskip("arviz_stats.base")
    output, runs, picture = tmp_path / "records.jsonl", tmp_path / "runs", tmp_path / "one.png"
    arguments = ["figure2", "--seeds=0", f"--output={output}", f"--run_dir={runs}"]
    assert reproduce.main([*arguments, "--data.root=anywhere"]) == 0
    text = capsys.readouterr().out
    assert all(cell.row in text for cell in figure2.rows())
    assert FLOOR in text
    assert "R-hat" in text
    first = output.read_bytes()

    def gone(*arguments: object) -> None:
        raise FileNotFoundError("data.root: no files")

    monkeypatch.setattr(news_topics, "load", gone)  # nothing is needed twice
    assert reproduce.main(arguments) == 0
    assert reproduce.main([*arguments, "--draw", f"--picture={picture}"]) == 0
    for file in (picture, tmp_path / "one_more.png"):
        assert file.read_bytes().startswith(b"\x89PNG")
    assert output.read_bytes() == first
    with np.load(runs / "gibbs.npz") as saved:
        assert saved["chains"].shape == (4, 20, 3, 4)
    with np.load(runs / "known.npz") as saved:
        changed = dict(saved) | {"topics": saved["topics"][::-1]}
    np.savez(runs / "known.npz", **changed)
    assert reproduce.main([*arguments, "--draw", f"--picture={picture}"]) == 1
    assert "gibbs.npz: draws for other topics" in capsys.readouterr().err


def test_another_vocabulary_is_refused(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(news_topics, "WORDS", 2_000)
    arguments = ["figure2", "--seeds=0", f"--output={tmp_path / 'r.jsonl'}"]
    assert reproduce.main([*arguments, f"--run_dir={tmp_path}"]) == 1
    assert "expected 2000 words, 20news has 30" in capsys.readouterr().err


def test_cells_are_told_apart_and_every_committed_record_belongs_to_one():
    table = figure2._table()
    keys = [(cell.method, cell.setting(table.setting)) for cell in table.rows]
    keys.append(("gibbs", table.floor_setting))
    assert all(keys.count(key) == 1 for key in keys)
    assert len({cell.folder(figure2.SHAPE) for cell in table.rows}) == len(table.rows)
    records = read_records(ROOT / "docs" / "results" / "figure2.jsonl")
    assert all((each["method"], each["setting"]) in keys for each in records)
