"""How fast a run goes: updates, images, decoder passes and their FLOP a second, and the time to go.

`throughput.jsonl` and `throughput.csv` have a line wherever `metrics.jsonl` has one. They are apart
from it because no clock repeats itself, and metrics do when a run is resumed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from steinvae.config import Config
from steinvae.logging import MetricsWriter
from steinvae.plan import make_plan

THROUGHPUT = "throughput"
"""Name of the files."""


@dataclass(frozen=True)
class Work:
    """What an update is made of, over all processes."""

    images: int
    decoder_passes: int | None
    """One code through one decoder, forward and backward; None where --plan does not know them."""

    flops: int | None
    """Of the decoder passes: two for each multiply-add, three products each way."""

    def rates(self, updates: int, seconds: float) -> dict[str, float]:
        """Of so many updates in so many seconds, by name."""
        done = {
            "updates": 1,
            "images": self.images,
            "decoder_passes": self.decoder_passes,
            "model_flops": self.flops,
        }
        return {
            f"{name}_per_second": updates * each / seconds
            for name, each in done.items()
            if each is not None and seconds > 0
        }


def work_of(config: Config) -> Work:
    """By arithmetic, as `--plan` has it: of decoders of examples, not of label decoders."""
    images = config.trainer.batch_size
    try:
        plan = make_plan(config)
    except ValueError:  # it says for what it has no arithmetic
        return Work(images, None, None)
    return Work(images, plan.decoder_passes, plan.flops)


class Throughput:
    """Writes the rates since the line before; use it as a context manager.

    Validation, logging and what a save holds up are in them: it is the time that passes.
    """

    def __init__(self, work: Work, beside: MetricsWriter, step: int, total: int) -> None:
        self._work, self._total = work, total
        self._writer = MetricsWriter(
            beside.run_dir, step or None, name=THROUGHPUT, tensorboard=beside.tensorboard
        )
        self._mark = (step, time.monotonic())

    def write(self, step: int) -> dict[str, float]:
        """A line for `step`, and what it says."""
        (before, then), now = self._mark, time.monotonic()
        self._mark = (step, now)
        rates = self._work.rates(step - before, now - then)
        if rates:
            rates["seconds_to_go"] = (self._total - step) / rates["updates_per_second"]
            self._writer.write(step, {f"throughput/{name}": rate for name, rate in rates.items()})
        return rates

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, from which the run goes on once more."""
        self._mark = (step, time.monotonic())
        self._writer.rewind(step)

    def __enter__(self) -> Throughput:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
