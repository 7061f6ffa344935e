"""`python -m tests.faults.kill_runs FOLDER KILLS_OF_ONE KILLS_OF_TWO`: training runs that SIGKILL
ends at random moments, continued and compared with a run that nothing interrupted.

One process imports torch and forks the runs, of one process and of two. Prints a list of {"kills",
"runs", "leftovers"}, or fails.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from steinvae import checkpoint
from steinvae.checkpoint import clean, lock_run_dir
from steinvae.config import Config, EvaluationConfig, MethodConfig, ModelConfig, TrainerConfig
from steinvae.data import load
from steinvae.distributed import ShardedTrainer, World
from steinvae.logging import MetricsWriter, Progress
from steinvae.run import follow
from steinvae.signals import StopRequest
from steinvae.trainer import Trainer

STEPS = 60
CONFIG = Config(
    model=ModelConfig(codes=3, hidden=(6,)),
    method=MethodConfig(theta_particles=2, code_particles=4),
    trainer=TrainerConfig(
        max_steps=STEPS,
        batch_size=8,
        log_every=1,
        validate_every=7,
        checkpoint_every=2,
        device="cpu",
    ),
    evaluation=EvaluationConfig(images=4, validation_images=4, validation_samples=4),
)
DATA = load("digits")


def warm_up(folder: Path) -> None:
    """What torch does but once, here and not in every fork; no thread may stay."""
    settings = replace(CONFIG.trainer, max_steps=8, save_in_background=False)
    trainer = Trainer(replace(CONFIG, trainer=settings), DATA, folder)
    with MetricsWriter(folder, None) as metrics, Progress(8, rank=1) as progress:
        trainer.fit(metrics, progress, StopRequest())


def train(run_dir: Path, rank: int, ranks: int, store: Path, told: int) -> None:
    """One process of a run, continued where the folder has one; tells "." when its loop begins and
    each step whose checkpoint is on the disk."""
    if ranks > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks
        )
        trainer = ShardedTrainer(CONFIG, DATA, run_dir, World())
    else:
        trainer = Trainer(CONFIG, DATA, run_dir)
    trainer.resume()
    write = trainer._saver._write

    def tell(step, *arguments):
        write(step, *arguments)
        os.write(told, f"{step}\n".encode())

    trainer._saver._write = tell  # type: ignore[method-assign]
    os.write(told, b".")
    if rank > 0:
        follow(trainer, StopRequest())
        return
    with (
        lock_run_dir(run_dir),
        MetricsWriter(run_dir, trainer.step or None) as metrics,
        Progress(STEPS, rank=1) as progress,
    ):
        trainer.fit(metrics, progress, StopRequest())


def start(run_dir: Path, ranks: int, store: Path) -> tuple[list[int], int]:
    """The processes of a run, and what rank 0 tells."""
    store.parent.mkdir(exist_ok=True)
    store.unlink(missing_ok=True)
    reader, writer = os.pipe()
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            try:
                train(run_dir, rank, ranks, store, writer if rank == 0 else os.open(os.devnull, 1))
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    os.close(writer)
    return children, reader


def check(run_dir: Path, told: bytes) -> int:
    """Every visible checkpoint is whole, and no step that was told is gone; returns leftovers."""
    folder = run_dir / "checkpoints"
    hidden = sum(name.startswith(".") for name in os.listdir(folder)) if folder.exists() else 0
    clean(run_dir)
    steps = [checkpoint.load(path).step for path in folder.glob("*")] if folder.exists() else []
    assert not [name for name in steps if name > STEPS]
    saved = told.replace(b".", b"").split()
    assert max(steps, default=-1) >= (int(saved[-1]) if saved else -1), "a saved step is gone"
    return hidden


def compare(run_dir: Path, whole: Path) -> None:
    """The run ended as the one that nothing interrupted, bit for bit."""
    name = f"checkpoints/step-{STEPS:08d}"
    one, other = checkpoint.load(run_dir / name), checkpoint.load(whole / name)
    assert all(torch.equal(one.tensors[key], value) for key, value in other.tensors.items())
    untimed = {"seconds": 0, "cpu_seconds": 0}
    assert one.state | untimed == other.state | untimed
    for file in ("metrics.jsonl", "metrics.csv"):
        assert (run_dir / file).read_bytes() == (whole / file).read_bytes(), file


def kill(folder: Path, ranks: int, kills: int) -> dict[str, int]:
    """Kill runs at random moments, each continued until it ends."""
    begun = time.monotonic()
    children, reader = start(folder / "whole", ranks, folder / "store")
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * ranks
    longest = 0.3 * (time.monotonic() - begun)  # so that a run is killed some five times
    os.close(reader)
    done, ended = {"kills": 0, "runs": 0, "leftovers": 0}, -1
    while done["kills"] < kills or ended != 0:
        run_dir = folder / f"run-{done['runs']}"
        children, reader = start(run_dir, ranks, folder / "store")
        told = os.read(reader, 1)
        assert told == b".", "a run did not begin"
        victims = random.sample(children, ranks)
        if done["kills"] < kills:
            time.sleep(random.uniform(0.0, longest))
            for child in victims:
                os.kill(child, signal.SIGKILL)
                time.sleep(random.uniform(0.0, 0.02))  # in which a survivor goes on
        first, *others = (os.waitpid(child, 0)[1] for child in victims)
        ended = max(first, *others, 0)
        with os.fdopen(reader, "rb") as file:
            told += file.read()
        done["leftovers"] += check(run_dir, told)
        if ended == 0:
            compare(run_dir, folder / "whole")
            done["runs"] += 1
        else:
            own = (0, signal.SIGKILL)  # a process may have ended before its signal came
            assert first in own, "a run failed by itself"
            alone = first == signal.SIGKILL  # who loses a peer may fail before its own signal comes
            assert alone or set(others) <= set(own), "a run failed by itself"
            done["kills"] += 1
    return done


def main() -> int:
    """FOLDER, and how often to kill a run of one process and one of two."""
    folder, *kills = Path(sys.argv[1]), *map(int, sys.argv[2:])
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # latest() warns of a torn checkpoint
    random.seed(0)
    warm_up(folder / "warm")
    found = [kill(folder / str(ranks), ranks, each) for ranks, each in enumerate(kills, start=1)]
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
