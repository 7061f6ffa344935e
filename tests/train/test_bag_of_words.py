"""Bag-of-words files: round trips in every format, what a bad line is, and the three splits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from steinvae.data import CountDataset, count_files, load
from steinvae.data.bag_of_words import READERS
from steinvae.data.count_files import Bags, Policy, read_vocabulary
from steinvae.data.documents import Documents, split

WORDS = 12
Rows = list[dict[int, int]]

BAGS = st.lists(
    st.dictionaries(st.integers(0, WORDS - 1), st.integers(1, 10**9 - 1), min_size=1, max_size=5),
    min_size=1,
    max_size=6,
)


def as_feat(rows: Rows) -> str:
    return "".join(f"3 {' '.join(f'{w + 1}:{n}' for w, n in row.items())}\n" for row in rows)


def as_lda_c(rows: Rows) -> str:
    lines = (f"{len(row)} {' '.join(f'{w}:{n}' for w, n in row.items())}" for row in rows)
    return "\n".join(lines)  # without a newline at the end


def as_docword(rows: Rows) -> str:
    lines = [f"{d} {w + 1} {n}" for d, row in enumerate(rows, 1) for w, n in row.items()]
    head = [str(len(rows)), str(WORDS), str(len(lines))]
    return "\r\n".join([*head, *lines]) + "\r\n"


WRITERS: dict[str, Callable[[Rows], str]] = {
    ".feat": as_feat,
    ".ldac": as_lda_c,
    ".docword": as_docword,
}


def write_npz(path: Path, rows: Rows) -> None:
    dense = np.zeros((len(rows), WORDS), dtype=np.int64)
    for row, bag in enumerate(rows):
        dense[row, list(bag)] = list(bag.values())
    sparse.save_npz(path, sparse.csr_matrix(dense))


def dictionaries(bags: Bags) -> Rows:
    ends = zip(bags.start[:-1], bags.start[1:], strict=True)
    return [
        dict(zip(bags.words[a:b].tolist(), bags.counts[a:b].tolist(), strict=True)) for a, b in ends
    ]


@pytest.mark.parametrize("end", sorted({*WRITERS, ".npz"}))
@given(rows=BAGS, piece=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_in_pieces_of_any_size(tmp_path_factory, end, rows, piece):
    path = tmp_path_factory.mktemp("bags") / f"train{end}"
    if end == ".npz":
        write_npz(path, rows)
    else:
        path.write_bytes(WRITERS[end](rows).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(count_files, "_PIECE", piece)
        bags = READERS[end](path, WORDS, Policy())
    assert dictionaries(bags) == rows
    for a, b in zip(bags.start[:-1], bags.start[1:], strict=True):
        assert (np.diff(bags.words[a:b]) > 0).all()


GOOD = "1 2:1 5:2\n"
BAD = [
    (".feat", "1 2:-1\n", "negative"),
    (".feat", "1 -2:1\n", "negative"),
    (".feat", "1 2:1.5\n", "fractional"),
    (".feat", "1 2:x\n", "no digit"),
    (".feat", "1 2:nan\n", "no digit"),
    (".feat", "1 2:1 # note\n", "no digit"),
    (".feat", "1 2:1234567890\n", "more than nine digits"),
    (".feat", "1 0:1\n", "outside the vocabulary"),
    (".feat", "1 13:1\n", "outside the vocabulary"),
    (".feat", "1 2:0\n", "count of 0"),
    (".feat", "1 2:1 2:3\n", "twice"),
    (".feat", "1\n", "empty document"),
    (".feat", "\n", "another form"),
    (".feat", "1 2\n", "another form"),
    (".feat", "1 2:\n", "another form"),
    (".feat", "1 2::3\n", "another form"),
    (".feat", "1 2:3:4\n", "another form"),
    (".feat", "2:3 4:5\n", "another form"),
    (".feat", "1 2 3:4\n", "another form"),
    (".ldac", "2 3:1\n", "promises"),
    (".ldac", "1 12:1\n", "outside the vocabulary"),
]


@pytest.mark.parametrize(("end", "line", "reason"), BAD)
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path, end, line, reason):
    path = tmp_path / f"train{end}"
    good = GOOD if end == ".feat" else "2 2:1 5:2\n"
    path.write_text(good + line + good)
    with pytest.raises(ValueError, match=rf"train{end}:2: .*{reason}"):
        READERS[end](path, WORDS, Policy())
    policy = Policy("skip")
    kept = READERS[end](path, WORDS, policy)
    first = 1 if end == ".feat" else 2
    assert dictionaries(kept) == [{first: 1, first + 3: 2}] * 2
    assert sum(policy.skipped.values()) == 1
    assert reason in next(iter(policy.skipped))


DOCWORD = "2\n12\n3\n1 2 1\n{}\n2 5 2\n"


@pytest.mark.parametrize(
    ("line", "where", "reason"),
    [
        ("1 13 1", ":5: ", "outside the vocabulary"),
        ("1 3 0", ":5: ", "count of 0"),
        ("1 3 -1", ":5: ", "negative"),
        ("1 3", ":5: ", "another form"),
        ("3 3 1", ":5: ", "another form"),
        ("1 3:1", ":5: ", "another form"),
        ("1 2 7", ":5: ", "twice"),
    ],
)
def test_bad_docword_entries(tmp_path, line, where, reason):
    path = tmp_path / "train.docword"
    path.write_text(DOCWORD.format(line))
    with pytest.raises(ValueError, match=f"{path.name}{where}.*{reason}"):
        READERS[".docword"](path, WORDS, Policy())
    policy = Policy("skip")
    assert dictionaries(READERS[".docword"](path, WORDS, policy)) == [{1: 1}, {4: 2}]
    assert policy.skipped.total() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\n12\n2\n1 2 1\n3 5 2\n", "document 2 has no line: an empty document"),
        ("1\n11\n1\n1 2 1\n", "expected W = 12"),
        ("1\n12\n2\n1 2 1\n", "expected 2 entries.*got 1"),
        ("1 2\n12\n2\n1 2 1\n", "expected lines D, W and NNZ"),
    ],
)
def test_docword_must_keep_its_promises(tmp_path, text, message):
    path = tmp_path / "train.docword"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        READERS[".docword"](path, WORDS, Policy())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([0.0, 1.5], "fractional"),
        ([-1.0, 2.0], "negative"),
        ([np.nan, 1.0], "no digit"),
        ([0, 0], "empty"),
    ],
)
def test_bad_rows_of_an_npz(tmp_path, row, reason):
    path = tmp_path / "train.npz"
    dense = np.array([[1.0, 2.0], row, [0.0, 3.0]])
    sparse.save_npz(path, sparse.csr_matrix(dense))
    with pytest.raises(ValueError, match=rf"train.npz:2: .*{reason}"):
        READERS[".npz"](path, 2, Policy())
    policy = Policy("skip")
    assert dictionaries(READERS[".npz"](path, 2, policy)) == [{0: 1, 1: 2}, {1: 3}]
    assert policy.skipped.total() == 1


def test_npz_faults_of_form(tmp_path):
    path = tmp_path / "train.npz"
    sparse.save_npz(path, sparse.csr_matrix(np.eye(3)))
    with pytest.raises(ValueError, match="expected 2 columns"):
        READERS[".npz"](path, 2, Policy())
    np.savez(path, data=np.ones(2))
    with pytest.raises(ValueError, match="lacks 'format'"):
        READERS[".npz"](path, 2, Policy())
    arrays = {"format": b"csr", "shape": (1, 3), "indptr": [0, 2], "indices": [1, 1]}
    np.savez(path, **arrays, data=[1, 2])
    with pytest.raises(ValueError, match="twice"):
        READERS[".npz"](path, 3, Policy())
    np.savez(path, **{**arrays, "indptr": [0, 3]}, data=[1, 2])
    with pytest.raises(ValueError, match="indptr"):
        READERS[".npz"](path, 3, Policy())
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="complete npz"):
        READERS[".npz"](path, 3, Policy())


def test_vocabulary_is_one_word_a_line(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("who 6494\nout 6114\n")
    assert read_vocabulary(path) == ("who", "out")
    path.write_text("who\n\n")
    with pytest.raises(ValueError, match=r"vocab.txt:2.*blank"):
        read_vocabulary(path)
    path.write_text("who\nwho\n")
    with pytest.raises(ValueError, match="'who' more than once"):
        read_vocabulary(path)


def test_batches_are_the_rows(tmp_path):
    rows: Rows = [{0: 2, 3: 1}, {1: 5}, {2: 1, 11: 7}]
    path = tmp_path / "train.npz"
    write_npz(path, rows)
    documents = Documents(READERS[".npz"](path, WORDS, Policy()), WORDS, np.arange(3))
    dense = torch.zeros(3, WORDS)
    for number, row in enumerate(rows):
        dense[number, list(row)] = torch.tensor(list(row.values())).float()
    chosen = torch.tensor([2, 0, 2])
    assert torch.equal(documents.batch(chosen).to_dense(), dense[chosen])
    row, word, count = documents.entries(chosen)
    again = torch.zeros(3, WORDS).index_put((row, word), count)
    assert torch.equal(again, dense[chosen])
    assert documents.lengths.tolist() == [3, 5, 8]
    assert torch.equal(documents.totals, dense.sum(0).double())
    with pytest.raises(ValueError, match=r"0\.\.2, got 0\.\.3"):
        documents.batch(torch.tensor([0, 3]))
    with pytest.raises(TypeError, match="int64"):
        documents.batch(torch.tensor([0.0]))


def test_validation_is_cut_from_training_the_same_way_for_ever():
    count = 100
    bags = Bags(
        np.arange(count + 1), np.zeros(count, np.int32), np.arange(1, count + 1, dtype=np.int32)
    )
    made = [split("made", bags, bags, ("word",), {}) for _ in range(2)]
    assert (len(made[0].train), len(made[0].validation), len(made[0].test)) == (95, 5, 100)
    lengths = [part.lengths.tolist() for part in (made[0].train, made[0].validation)]
    assert sorted(lengths[0] + lengths[1]) == list(range(1, count + 1))
    assert lengths[1] == made[1].validation.lengths.tolist() == [3, 27, 56, 76, 87]


def test_own_files_and_the_setting(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.feat").write_text("1 1:2\n1 2:1\n1 9:1\n")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"train\.feat:3: a word outside"):
        load("bag_of_words", tmp_path)
    data = load("bag_of_words", tmp_path, bad_records="skip")
    assert isinstance(data, CountDataset)
    assert data.skipped == {"a word outside the vocabulary": 2}
    assert (len(data.train), len(data.validation), len(data.test)) == (1, 1, 2)
    assert (data.vocabulary, data.title) == (("a", "b"), "bag_of_words")
    with pytest.raises(FileNotFoundError, match=r"train\.npz"):
        load("bag_of_words", tmp_path / "elsewhere")


def test_rcv1_is_the_set_of_the_frequent_words(monkeypatch):
    weights = sparse.csr_matrix(
        [[0.5, 0.0, 0.2], [0.1, 0.3, 0.0], [0.0, 0.9, 0.4], [0.0, 0.0, 1.0]] * 3
    )

    def fetch(data_home, download_if_missing, return_X_y):
        assert (data_home, download_if_missing, return_X_y) == ("anywhere", False, True)
        return weights, None

    monkeypatch.setattr("sklearn.datasets.fetch_rcv1", fetch)
    module = sys.modules["steinvae.data.bag_of_words"]
    monkeypatch.setattr(module, "RCV1_WORDS", 2)
    data = load("rcv1", "anywhere")
    assert isinstance(data, CountDataset)
    assert data.vocabulary == ("term0", "term2")  # 6, 6 and 9 documents: the first of equals
    both = [data.train, data.validation, data.test]
    assert sum(len(part) for part in both) == 12
    assert {int(n) for part in both for n in part.bags.counts} == {1}


@pytest.mark.parametrize(
    ("name", "sizes", "words", "tokens"),
    [
        ("20news", (10_705, 563, 7_505), 2_000, (1_128_881, 720_898)),
        ("nyt", (7_842, 412, 918), 10_000, (1_447_992, 160_048)),
    ],
)
def test_real_sets_have_their_published_sizes(data_root, name, sizes, words, tokens):
    data = load(name, data_root)
    assert isinstance(data, CountDataset)
    assert (len(data.train), len(data.validation), len(data.test)) == sizes
    assert len(data.vocabulary) == data.train.features == words
    seen = (data.train.lengths.sum() + data.validation.lengths.sum(), data.test.lengths.sum())
    assert seen == tokens
