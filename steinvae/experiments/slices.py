"""A command that works for so many minutes and is then run again, until nothing is left to do."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager

from steinvae.signals import OUT_OF_TIME, Interrupted, StopRequest


def add_slices(parser: ArgumentParser) -> None:
    """The option `--slice_minutes`."""
    parser.add_argument("--slice_minutes", type=float, help="stop then, to be continued")


def check_positive(**minutes: float | None) -> None:
    """Errors: ValueError that names an option of minutes that is not positive."""
    for name, value in minutes.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


@contextmanager
def time_slice(minutes: float | None) -> Iterator[StopRequest]:
    """What stops a training at a step boundary after `minutes`; None: no end but the work's.

    The block then ends as if it were done, and a line says so. A signal from outside goes on.
    """
    try:
        with StopRequest(None if minutes is None else 60 * minutes) as stop:
            yield stop
    except Interrupted as ending:
        if ending.number != OUT_OF_TIME:
            raise
        print(f"the slice of {minutes} minutes is over: run the same command to continue")
