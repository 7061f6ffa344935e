"""SIGTERM, SIGINT or a span of time that ends as a request to stop at a step boundary.

Exit codes are the customary ones.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HANDLED = (signal.SIGTERM, signal.SIGINT)
OUT_OF_TIME = signal.SIGALRM
"""The signal by which a span of time ends."""


class Interrupted(SystemExit):
    """Ends the process with 128 + signal: 143 for SIGTERM, 130 for SIGINT."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.said = False
        """Whether the user has been told."""

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


def run_command(name: str, main: Callable[[], int]) -> int:
    """The exit code of `main`; where a signal ends it, one line says so, if nothing has yet.

    Outside a `StopRequest` that is SIGINT alone, also while modules are imported, and it ends the
    process at once: of an exception at any place libraries make other errors. A module that is not
    installed is a line too.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        with suppress(RuntimeError, OSError):  # where it was being written to
            sys.stdout.flush()
        if _speaks():
            os.write(sys.stderr.fileno(), f"{name}: {Interrupted(number)}\n".encode())
        os._exit(128 + number)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
    try:
        return main()
    except Interrupted as ending:
        if not ending.said and _speaks():
            print(f"{name}: {ending}", file=sys.stderr)
        raise
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("steinvae"):
            raise
        needed = (
            "commands need what the extra `train` installs (pip install 'stein-kernels[train]')"
        )
        print(f"{name}: {error}: {needed}", file=sys.stderr)
        return 1


def _speaks() -> bool:
    """Whether this process is alone, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


class StopRequest:
    """Whether a signal asked this run to stop.

    While `deferred()`, the first signal only sets `requested` and the loop stops where its state is
    whole; a second one, or one outside, raises `Interrupted` at once. Use as a context manager; the
    previous handlers come back at its end. `seconds` of wall time after it is entered, SIGALRM
    comes by itself.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.requested: int | None = None
        self._seconds = seconds
        self._deferring = False

    def __enter__(self) -> StopRequest:
        handled = HANDLED if self._seconds is None else (*HANDLED, OUT_OF_TIME)
        self._previous = {number: signal.signal(number, self._handle) for number in handled}
        if self._seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Until the block ends, the first signal waits for `check`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def check(self) -> None:
        """Raise `Interrupted` where a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        first = self.requested is None
        self.requested = number
        if not (first and self._deferring):
            raise Interrupted(number)
