"""Work dealt out to other processes: torch's DataLoader, whose workers end with their parent."""

from __future__ import annotations

import atexit
import pickle
import signal
import traceback
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

Result = TypeVar("Result")

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_open: weakref.WeakSet[Results[Any]] = weakref.WeakSet()


class Results(Iterator[Result], Generic[Result]):
    """`work[i]` for the i in `order`, in that order, two ahead for each of `workers` processes.

    0 workers: in this process. Workers are spawned, since a fork would copy locks that threads of
    torch hold. They never see SIGTERM and SIGINT, which a scheduler sends to the whole group: their
    parent decides when they stop, and they end when it has ended.

    An error of the work is raised here as it was there; one of a process itself, such as its death,
    is torch's RuntimeError.
    """

    def __init__(
        self,
        work: Dataset[Result],
        order: Sequence[int],
        workers: int,
        *,
        pin_memory: bool = False,
    ) -> None:
        loader = DataLoader(
            _Answers(work),
            batch_size=None,  # an item is a whole result
            sampler=order,
            num_workers=workers,
            pin_memory=pin_memory,
            multiprocessing_context="spawn" if workers else None,
        )
        with _blocked_signals():
            self._iterator: Iterator[Any] | None = iter(loader)
        if workers:
            _open.add(self)
            # At exit multiprocessing terminates its children by SIGTERM and waits for them without
            # end, and torch waits 5 s for each: this must come before both, so be the last to come.
            atexit.unregister(_close_all)
            atexit.register(_close_all)

    def __next__(self) -> Result:
        if self._iterator is None:
            raise StopIteration
        try:
            result, error = next(self._iterator)
        except Exception as death:
            # The frames hold the iterator, and so the workers, which would outlive this process
            traceback.clear_frames(death.__traceback__)
            self.close()
            raise
        if error is not None:
            self.close()
            raise error
        return result

    def close(self) -> None:
        """End the workers, after what they are at."""
        self._iterator = None


class _Answers(Dataset[tuple[Any, Exception | None]]):
    """Results and errors alike: torch would send an error's traceback as its message."""

    def __init__(self, work: Dataset[Any]) -> None:
        self._work = work

    def __getitem__(self, number: int) -> tuple[Any, Exception | None]:
        try:
            return self._work[number], None
        except Exception as error:
            return None, _sendable(error)


def _sendable(error: Exception) -> Exception:
    """The error, or a RuntimeError that names it where another process could not read it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _close_all() -> None:
    for results in list(_open):
        results.close()


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Processes that are spawned here inherit the mask, from their first instruction on.

    Signals for this process wait until the end of the block.
    """
    resource_tracker.ensure_running()  # when it starts, it takes the signals out of the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
