"""SIGKILL at random moments of a save loop and of training: no torn checkpoint, never backwards.

One fresh process forks the victims (a fork costs milliseconds, an import of torch seconds).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = 30

PROGRAM = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
import torch
from steinvae.checkpoint import clean, latest, load, prune, save

torch.set_num_threads(1)
warnings.simplefilter("error")  # latest() warns of a torn checkpoint
run_dir, kills = Path(sys.argv[1]), int(sys.argv[2])
random.seed(0)

def victim(step, acknowledge):
    while True:
        tensors = {"x": torch.full((20_000,), float(step)), "y": torch.full((9,), float(step))}
        save(run_dir, step, tensors, {"step": step})
        os.write(acknowledge, f"{step}\\n".encode())
        prune(run_dir, 2)
        save(run_dir, step, tensors, {"step": step})  # replaces the one just written
        step += 1

steps, leftovers = [], 0
for _ in range(kills):
    reader, writer = os.pipe()
    start = steps[-1] + 1 if steps else 0
    child = os.fork()
    if child == 0:
        try:
            victim(start, writer)
        finally:
            os._exit(1)  # only a fault in save ends the loop
    os.close(writer)
    told = os.read(reader, 64)  # waits until the loop is running
    time.sleep(random.uniform(0.0, 0.02))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), "the victim failed by itself"
    with os.fdopen(reader, "rb") as file:
        told += file.read()
    leftovers += sum(name.startswith(".") for name in os.listdir(run_dir / "checkpoints"))
    clean(run_dir)
    assert not [n for n in os.listdir(run_dir / "checkpoints") if n.startswith(".")]
    for path in (run_dir / "checkpoints").iterdir():
        found = load(path)  # every visible checkpoint is whole
        assert found.state == {"step": found.step}
        assert (found.tensors["x"] == found.step).all() and (found.tensors["y"] == found.step).all()
    steps.append(load(latest(run_dir)).step)
    assert steps[-1] >= int(told.split()[-1]), "a checkpoint that save() had returned is gone"
print(json.dumps({"steps": steps, "leftovers": leftovers}))
"""


def test_sigkill_never_tears_and_never_goes_backwards(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(KILLS)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    steps = report["steps"]
    assert len(steps) == KILLS
    assert all(earlier < later for earlier, later in itertools.pairwise(steps))
    assert report["leftovers"] > 0  # the kills did hit saves half-way


def test_killed_training_ends_as_if_it_had_not_been(tmp_path):
    """30 kills of runs of one process, 6 of runs of two: bit for bit, metrics included."""
    command = [sys.executable, "-m", "tests.faults.kill_runs", str(tmp_path), "30", "6"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    for report, kills in zip(json.loads(answer.stdout), (30, 6), strict=True):
        assert report["kills"] == kills
        assert report["runs"] >= 1
    assert json.loads(answer.stdout)[0]["leftovers"] > 0  # the kills did hit saves half-way
