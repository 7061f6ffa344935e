"""``python -m bench.saving``: what a checkpoint costs the training beside it, and its table.

Windows of updates take turns: without a save, with one written in the foreground at its start, and
with one written in the background; the last two end when the checkpoint is on the disk. What a save
costs is the difference, wall clock; ``--draw`` only draws docs/surviving.md from the records.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from bench import records, tables
from bench.environment import ROOT, machine_slug
from bench.report import fill
from steinvae.config import Config, MethodConfig, ModelConfig, TrainerConfig
from steinvae.data.synthetic import drawn
from steinvae.report import append_records, tidy_record
from steinvae.trainer import Trainer

RESULTS = ROOT / "docs" / "results" / "saving.jsonl"
PAGE, MARKS = ROOT / "docs" / "surviving.md", ("<!-- saving:begin -->", "<!-- saving:end -->")
MODES = ("none", "foreground", "background")
EXPERIMENT = "saving"


class Case(NamedTuple):
    """Networks, and how many updates a window has: more than a save takes."""

    pixels: int
    updates: int
    model: ModelConfig
    method: MethodConfig


CASES = {
    "digits, 1 decoder": Case(64, 40, ModelConfig(), MethodConfig(theta_particles=1)),
    "MNIST, 100 decoders": Case(
        784,
        6,
        ModelConfig(codes=50, hidden=(200, 200)),
        MethodConfig(theta_particles=100, code_particles=100, pairing="strat"),
    ),
}


class Pixels(NamedTuple):
    """Uniform noise: what is learnt is of no account here."""

    count: int

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(count, self.count, generator=generator)


def window(trainer: Trainer, updates: int, mode: str) -> tuple[float, float]:
    """Seconds of a window, and of them those until `save` returned."""
    begun = time.perf_counter()
    stalled = begun
    if mode != "none":
        trainer._saver._in_background = mode == "background"
        tensors = trainer.tensors()
        trainer._sound(tensors)
        trainer.step += 1
        trainer.save(tensors)
        stalled = time.perf_counter()
    for step in range(updates):
        trainer.update(step, monitor=False)
    trainer.settle()
    return time.perf_counter() - begun, stalled - begun


def measure(name: str, rounds: int) -> list[records.Record]:
    """The records of a case."""
    case = CASES[name]
    config = replace(
        Config(), model=case.model, method=case.method, trainer=TrainerConfig(device="cpu")
    )
    torch.set_num_threads(1)
    dataset = drawn("noise", Pixels(case.pixels), train=512, validation=8, test=8)
    times: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, dataset, Path(folder))
        for mode in MODES:
            window(trainer, 2, mode)
        for round_ in range(rounds):
            for mode in MODES if round_ % 2 else reversed(MODES):
                times[mode].append(window(trainer, case.updates, mode))
        size = sum(tensor.nbytes for tensor in trainer.tensors().values())
    plain = [whole / case.updates for whole, _ in times["none"]]
    found = {("none", "step_seconds"): plain}
    for mode in MODES[1:]:
        lost = [
            saved - without
            for (saved, _), (without, _) in zip(times[mode], times["none"], strict=True)
        ]
        found[mode, "lost_seconds"] = lost
        found[mode, "stall_seconds"] = [stall for _, stall in times[mode]]
        step, every = records.median_and_error(plain)[0], config.trainer.checkpoint_every
        found[mode, "share"] = [each / (every * step) for each in lost]
    seconds = time.perf_counter() - begun
    made = []
    for (mode, metric), values in found.items():
        value, error = records.median_and_error(values)
        made.append(
            tidy_record(
                experiment=EXPERIMENT,
                method=mode,
                setting={
                    "case": name,
                    "megabytes": round(size / 1e6, 1),
                    "updates": case.updates,
                    "checkpoint_every": config.trainer.checkpoint_every,
                },
                seed=0,
                metric=metric,
                value=value,
                stderr=error,
                n=rounds,
                estimator="median",
                seconds=round(seconds, 1),
                device=f"{machine_slug()}, 1 thread for training",
            )
        )
    return made


def table(measured: list[dict]) -> str:
    """A line for each case and way to save."""
    header = ["networks", "MB", "written in the", "s / update", "s until it goes on"]
    header += ["s lost", "% of 500 updates"]
    rows = []
    by_key = {(r["setting"]["case"], r["method"], r["metric"]): r for r in measured}
    for case in CASES:
        for mode in MODES[1:]:
            step, stall, lost, share = (
                by_key[(case, *key)]
                for key in (
                    ("none", "step_seconds"),
                    (mode, "stall_seconds"),
                    (mode, "lost_seconds"),
                    (mode, "share"),
                )
            )
            rows.append(
                [
                    case,
                    f"{step['setting']['megabytes']:g}",
                    mode,
                    f"{step['value']:.3g}",
                    f"{stall['value']:.2g}",
                    f"{lost['value']:.2g} ± {lost['stderr']:.1g}",
                    f"{100 * share['value']:.2g}",
                ]
            )
    count, where = measured[0]["n"], measured[0]["device"]
    return f"{tables.markdown(header, rows)}\n\nMedians of {count} windows each, {where}."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.saving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--draw", action="store_true", help="only draw the table")
    arguments = parser.parse_args()
    if not arguments.draw:
        RESULTS.unlink(missing_ok=True)
        for name in CASES:
            append_records(RESULTS, measure(name, arguments.rounds))
    measured = records.read(RESULTS)
    return 0 if fill(PAGE, table(measured), *MARKS) else 1


if __name__ == "__main__":
    sys.exit(main())
