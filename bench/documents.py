"""`python -m bench.documents`: how fast a large bag-of-words corpus comes as batches, and in what
memory; and the first layer of a recognition network on its sparse batches, by the words that occur,
against the dense product and torch.sparse.

The corpus is generated, of the size of RCV1-v2 (794,000 documents, 10,000 words): lengths and word
frequencies fall off as a power. It is written as an npz and read back in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from steinvae.models.mlp import TanhMlp

HIDDEN = 256
_TRIALS, _BOTH = 30, "ms, forward and backward"


def main() -> int:
    """Generate, measure in a fresh process, print; with --output append the records."""
    parser = argparse.ArgumentParser(prog="python -m bench.documents", description=__doc__)
    parser.add_argument("--documents", type=int, default=794_000)
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long batches are drawn")
    parser.add_argument("--output", type=Path, help="a .jsonl file for the records")
    parser.add_argument("--root", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.root is not None:
        print(json.dumps(measure(arguments)))
        return 0
    with tempfile.TemporaryDirectory() as root:
        generate(Path(root), arguments.documents, arguments.words)
        command = [sys.executable, "-m", "bench.documents", "--root", root, *sys.argv[1:]]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    numbers = json.loads(done.stdout)
    for metric, (value, unit) in numbers.items():
        print(f"{metric:<28} {value:,.4g} {unit}")
    if arguments.output is not None:
        append(arguments, numbers)
    return 0


def generate(root: Path, documents: int, words: int) -> None:
    """train.npz, test.npz and vocab.txt; 75 different words a document in the mean, as in RCV1."""
    stream = np.random.RandomState(0)
    frequency = 1 / (np.arange(words) + 20.0)
    frequency /= frequency.sum()
    for name, count in (("train", documents), ("test", max(1, documents // 80))):
        drawn = stream.geometric(1 / 90, size=count) + 5
        row = np.repeat(np.arange(count, dtype=np.int64), drawn)
        word = np.searchsorted(np.cumsum(frequency), stream.random_sample(len(row))).clip(
            0, words - 1
        )
        key, number = np.unique(row * words + word, return_counts=True)
        start = np.r_[0, np.cumsum(np.bincount(key // words, minlength=count))]
        arrays = {"indptr": start, "indices": (key % words).astype(np.int32)}
        arrays |= {"data": number.astype(np.int32), "shape": np.array([count, words])}
        np.savez(root / f"{name}.npz", format=np.array(b"csr"), **arrays)
    (root / "vocab.txt").write_text("".join(f"word{number}\n" for number in range(words)))


def measure(arguments: argparse.Namespace) -> dict[str, tuple[float, str]]:
    """In this process: loading, batches, peak memory, and the first layer both ways."""
    from steinvae.count_trunk import CountTrunk
    from steinvae.data import BatchSampler, load

    begun = time.perf_counter()
    train = load("bag_of_words", arguments.root).train
    loading = time.perf_counter() - begun
    sampler = BatchSampler(len(train), arguments.batch_size, 0)
    begun, step = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begun) < arguments.seconds:
        train.batch(sampler.indices(step))
        step += 1
    peak = peak_memory()
    counts = train.batch(sampler.indices(0))
    widths, draws = (train.features, HIDDEN), torch.Generator()
    dense, sparse = TanhMlp(widths, draws), CountTrunk(widths, draws)

    return {
        "loading": (loading, "s"),
        "documents_per_second": (step * arguments.batch_size / elapsed, "documents/s"),
        "peak_memory": (peak, "GB"),
        "dense_first_layer": (_milliseconds(lambda: dense(counts.to_dense().log1p())), _BOTH),
        "csr_first_layer": (_milliseconds(lambda: as_csr(dense, counts)), _BOTH),
        "embedding_bag_first_layer": (_milliseconds(lambda: sparse(counts)), _BOTH),
    }


def as_csr(layer: TanhMlp, counts: torch.Tensor) -> torch.Tensor:
    """The layer as a product of torch.sparse, whose CSR is in beta and says so at every start."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        sparse = counts.log1p().to_sparse_csr()  # the batch is COO
    return torch.sparse.mm(sparse, layer.last.weight.T) + layer.last.bias


def peak_memory() -> float:
    """Largest resident size of this process, GB. (ru_maxrss would include its parent's.)"""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1e6


def _milliseconds(layer: Callable[[], torch.Tensor]) -> float:
    """Median processor time of a forward and a backward pass on one thread."""
    torch.set_num_threads(1)
    taken = []
    for _ in range(_TRIALS):
        begun = time.process_time()
        layer().square().sum().backward()
        taken.append(time.process_time() - begun)
    return 1e3 * sorted(taken)[_TRIALS // 2]


def append(arguments: argparse.Namespace, numbers: dict[str, tuple[float, str]]) -> None:
    """One tidy record a number."""
    from steinvae.report import append_records, tidy_record

    setting = {name: getattr(arguments, name) for name in ("documents", "words", "batch_size")}
    records = [
        tidy_record(
            experiment="documents",
            method="bag_of_words",
            setting={**setting, "unit": unit},
            seed=0,
            metric=metric,
            value=value,
            stderr=None,
            n=1,
            estimator="processor time" if unit == _BOTH else "wall clock",
            seconds=arguments.seconds,
            device=f"cpu, {torch.get_num_threads()} threads",
        )
        for metric, (value, unit) in numbers.items()
    ]
    append_records(arguments.output, records)


if __name__ == "__main__":
    sys.exit(main())
