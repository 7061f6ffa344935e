"""Text as bags of words: 20 Newsgroups, a small New York Times set, RCV1, and one's own files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steinvae.data.count_files import (
    Bags,
    Policy,
    read_docword,
    read_feat,
    read_lda_c,
    read_npz,
    read_vocabulary,
)
from steinvae.data.dataset import BadRecords
from steinvae.data.documents import CountDataset, split
from steinvae.data.files import find_files
from steinvae.data.registry import register_counts

READERS: dict[str, Callable[[Path, int, Policy], Bags]] = {
    ".feat": read_feat,
    ".svmlight": read_feat,
    ".docword": read_docword,
    ".ldac": read_lda_c,
    ".npz": read_npz,
}
"""By the end of a file's name."""

RCV1_WORDS = 10_000
RCV1_TEST = 10_000


@register_counts("20news")
def load_20news(root: Path | None, on_bad: BadRecords) -> CountDataset:
    """20 Newsgroups with 2,000 words as Miao et al. 2016 distribute it; text bodies, unstemmed.

    Files train.feat, test.feat and vocab.new in `root` or `root`/20news_nvdm.
    """
    files = (("train.feat",), ("test.feat",), ("vocab.new", "vocab.txt"))
    paths = find_files(root, "20 Newsgroups", (".", "20news_nvdm"), files)
    return _read("20news", paths, on_bad)


@register_counts("nyt")
def load_nyt(root: Path | None, on_bad: BadRecords) -> CountDataset:
    """9,172 articles of the New York Times with 10,000 words, as TopMost distributes them.

    Not the corpus of 133,000 articles of the literature. Files train_bow.npz, test_bow.npz and
    vocab.txt in `root` or `root`/nyt_topmost.
    """
    files = (("train_bow.npz",), ("test_bow.npz",), ("vocab.txt",))
    return _read("nyt", find_files(root, "NYT", (".", "nyt_topmost"), files), on_bad)


@register_counts("bag_of_words")
def load_files(root: Path | None, on_bad: BadRecords) -> CountDataset:
    """Files of one's own: train and test with one of the endings of `READERS`, and vocab.txt."""
    forms = [((f"train{end}",), (f"test{end}",), ("vocab.txt",)) for end in READERS]
    return _read("bag_of_words", find_files(root, "a bag of words", (".",), *forms), on_bad)


@register_counts("rcv1")
def load_rcv1(root: Path | None, on_bad: BadRecords) -> CountDataset:
    """RCV1-v2 by scikit-learn's `fetch_rcv1`, where it has been downloaded to `root`.

    It holds cosine-normalised log TF-IDF without the counts behind it, so a document here is the
    set of its words (counts of 1), over the 10,000 words of the most documents. The last 10,000
    documents are for testing; documents without any of those words are left out and counted.
    """
    from sklearn.datasets import fetch_rcv1

    home = None if root is None else str(root)
    found: Any = fetch_rcv1(data_home=home, download_if_missing=False, return_X_y=True)
    matrix = found[0].tocsr()
    present = np.bincount(matrix.indices, minlength=matrix.shape[1])
    best = np.sort(np.argsort(-present, kind="stable")[:RCV1_WORDS])
    matrix = matrix[:, best]
    matrix.sort_indices()
    filled = np.flatnonzero(np.diff(matrix.indptr))
    skipped = {"no frequent word": matrix.shape[0] - len(filled)}
    matrix = matrix[filled]
    cut = len(filled) - min(RCV1_TEST, len(filled) // 2)
    train, test = (_present(part) for part in (matrix[:cut], matrix[cut:]))
    names = tuple(f"term{column}" for column in best)
    return split("rcv1", train, test, names, skipped if skipped["no frequent word"] else {})


def _read(name: str, paths: Sequence[Path], on_bad: BadRecords) -> CountDataset:
    *splits, vocab = paths
    vocabulary, policy = read_vocabulary(vocab), Policy(on_bad)
    train, test = (READERS[path.suffix](path, len(vocabulary), policy) for path in splits)
    return split(name, train, test, vocabulary, policy.skipped)


def _present(matrix: Any) -> Bags:
    """A CSR matrix with counts of 1 in place of its entries."""
    ones = np.ones(matrix.nnz, dtype=np.int32)
    return Bags(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), ones)
