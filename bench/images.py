"""`python -m bench.images --data.root DIR`: how fast images are loaded, against bare Pillow.

DIR holds imagenet_sample_short256_q92.tar: photographs of ImageNet, whose short side is 256. They
are loaded as they are, and enlarged to ImageNet's median size, a short side of 375.

Bare Pillow does the same work an image and no more, in a loop: read the file, decode, resize to a
short side of 256, crop 224 x 224. The loader has two processes and all it promises: order, crops,
labels, batches. Both are measured in processor time, of every process that takes part, which other
programs on the machine do not lengthen much; methods take turns.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from bench import records
from bench.environment import ROOT, commit, device_name, machine_slug, versions
from bench.report import fill
from steinvae.data import BatchSampler
from steinvae.data.images import ImageLoader, decode, load_image_folder, load_packed
from steinvae.data.images.faults import Faults
from steinvae.data.images.listing import read_bytes, walk
from steinvae.data.images.loader import Steps
from steinvae.data.images.packing import pack

EXPERIMENT = "image_loading"
SAMPLE = "imagenet_sample_short256_q92.tar"
BATCH, WORKERS, SIDE, CROP = 64, 2, 256, 224
CLASSES, EACH = 10, 64  # images of the tree; the rest of the sample is not needed
SHORT_SIDES = (256, 375)
TITLES = {
    "pillow_decoding": "bare Pillow, decoding alone",
    "pillow": "bare Pillow, the same work",
    "files": f"`ImageLoader`, files, {WORKERS} processes",
    "threads": f"the same by {WORKERS} threads",
    "packed": f"`ImageLoader`, packed, {WORKERS} processes",
}
BEGIN, END = "<!-- images:begin -->", "<!-- images:end -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.images", description=__doc__)
    parser.add_argument("--data.root", dest="root", type=Path, help="of the sample")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each method")
    parser.add_argument("--draw", action="store_true", help="measure nothing: docs/images.md alone")
    arguments = parser.parse_args()
    results = records.RESULTS / f"{machine_slug()}.jsonl"
    if not arguments.draw:
        torch.set_num_threads(1)
        found = [measure(arguments.root, short, arguments.rounds) for short in SHORT_SIDES]
        records.replace(results, [record for part in found for record in part])
    text = table([r for r in records.read(results) if r["experiment"] == EXPERIMENT])
    fill(ROOT / "docs" / "images.md", text, BEGIN, END)
    print(text)


def measure(root: Path, short: int, rounds: int) -> list[records.Record]:
    """Records of all methods on images of one size."""
    with tempfile.TemporaryDirectory() as name:
        tree, out = Path(name) / "tree", Path(name) / "out"
        files = grow(root / SAMPLE, tree, short)
        pack(tree, out, side=SIDE)
        train, packed = load_image_folder(tree).train, load_packed(out).train
        steps = len(train) // BATCH
        turns: dict[str, Callable[[], float]] = {
            "pillow_decoding": lambda: loop(files, bare_decoding),
            "pillow": lambda: loop(files, bare),
            "files": Turns(ImageLoader(train, BATCH, 0, workers=WORKERS), steps),
            "threads": lambda: threads(Steps(train, BatchSampler(len(train), BATCH, 0), 0), steps),
            "packed": Turns(ImageLoader(packed, BATCH, 0, workers=WORKERS), steps),
        }
        begun = time.perf_counter()
        taken = {name: [] for name in turns}
        for _ in range(rounds):
            for name, turn in turns.items():
                taken[name].append(turn())
    seconds = time.perf_counter() - begun
    return [record(short, name, values, seconds) for name, values in taken.items()]


def grow(sample: Path, tree: Path, short: int) -> list[Path]:
    """A tree of `CLASSES` classes with JPEG files of a short side; returns the training files."""
    files = [(f, member) for f in walk(sample, Faults()) for member in f.members]
    paths = []
    for number, (folder, member) in enumerate(files[: CLASSES * EACH]):
        data = read_bytes(folder.container, member)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if short != min(image.size):
            width, height = (short * edge // min(image.size) for edge in image.size)
            file = io.BytesIO()
            large = image.resize((width, height), Image.Resampling.BICUBIC)
            large.save(file, "JPEG", quality=92)
            data = file.getvalue()
        for split in ("train", "val") if number < CLASSES else ("train",):
            path = tree / split / f"n{number % CLASSES}" / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        paths.append(tree / "train" / f"n{number % CLASSES}" / f"{number}.JPEG")
    return paths


def bare_decoding(path: Path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


def bare(path: Path) -> np.ndarray:
    """Decoded, resized and cropped in the middle."""
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    width, height = (SIDE * edge // min(image.size) for edge in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - CROP) // 2, (height - CROP) // 2
    return np.asarray(image.crop((left, top, left + CROP, top + CROP)))


def loop(files: list[Path], function: Callable[[Path], np.ndarray]) -> float:
    """Processor seconds an image of a plain loop."""
    begun = time.process_time()
    for path in files:
        function(path)
    return (time.process_time() - begun) / len(files)


def threads(work: Steps, steps: int) -> float:
    """The loader's work by threads of this process, as it might be done instead."""
    with ThreadPoolExecutor(WORKERS) as pool:
        begun = time.process_time()
        for _ in pool.map(work.__getitem__, range(steps)):
            continue
        return (time.process_time() - begun) / (steps * BATCH)


class Turns:
    """An epoch of a loader at every call: processor seconds an image, over all its processes."""

    def __init__(self, loader: ImageLoader, steps: int) -> None:
        self._batches: Iterator | None = None
        self._loader, self._steps = loader, steps

    def __call__(self) -> float:
        before = {process.pid for process in multiprocessing.active_children()}
        if self._batches is None:
            self._batches = iter(self._loader)
            for _ in range(2 * WORKERS + 1):  # every worker has started
                next(self._batches)
            mine = {process.pid for process in multiprocessing.active_children()} - before
            self._workers = [pid for pid in mine if pid is not None]
        begun = self._seconds()
        for _ in range(self._steps):
            next(self._batches)
        return (self._seconds() - begun) / (self._steps * BATCH)

    def _seconds(self) -> float:
        return time.process_time() + sum(processor_seconds(pid) for pid in self._workers)


def processor_seconds(pid: int) -> float:
    """User and system time of another process, from its start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def record(short: int, method: str, values: list[float], seconds: float) -> records.Record:
    value, error = records.median_and_error(values)
    shape = f"short side {short}, {BATCH} x 3 x {CROP} x {CROP}"
    return {
        "experiment": EXPERIMENT,
        "method": method,
        "setting": {"shape": shape, "threads": 1, "simplejpeg": decode.decode_jpeg is not None},
        "seed": 0,
        "metric": "cpu_seconds_per_image",
        "value": value,
        "stderr": error,
        "n": len(values),
        "estimator": "median",
        "seconds": seconds,
        "device": device_name(),
        "versions": versions() | {"pillow": PIL.__version__},
        "commit": commit(),
    }


def table(found: list[records.Record]) -> str:
    """Milliseconds an image, and how much of bare Pillow's speed that is."""
    shapes = list(dict.fromkeys(r["setting"]["shape"] for r in found))
    value = {(r["method"], r["setting"]["shape"]): r["value"] for r in found}
    lines = ["| | " + " | ".join(f"{s.split(',')[0]}, ms | of bare Pillow" for s in shapes) + " |"]
    lines.append("| --- |" + " ---: |" * 2 * len(shapes))
    for method, title in TITLES.items():
        cells = [
            f"{1e3 * value[method, s]:.2f} | {value['pillow', s] / value[method, s]:.0%}"
            for s in shapes
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    first = found[0]
    decoder = "simplejpeg" if first["setting"]["simplejpeg"] else "Pillow"
    lines += [
        "",
        f"Processor time an image, every process counted; {decoder} decodes in the loader. "
        f"{first['device']}, torch {first['versions']['torch']}, "
        f"pillow {first['versions']['pillow']}; medians of {first['n']}, the methods taking turns; "
        f"commit {first['commit']}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
