"""Work dealt out to other processes: torch's DataLoader, whose workers end with their parent."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Result = TypeVar("Result")


def results(
    work: Dataset[Result], order: Sequence[int], workers: int, *, pin_memory: bool = False
) -> Iterator[Result]:
    """`work[i]` for the i in `order`, in that order, two ahead for each of `workers` processes.

    0 workers: in this process. Workers are spawned, since a fork would copy locks that threads of
    torch hold. They ignore SIGTERM and SIGINT, which a scheduler sends to the whole group: their
    parent decides when they stop, and they end when it has ended.
    """
    many: dict[str, Any] = {"multiprocessing_context": "spawn", "worker_init_fn": _start}
    return iter(
        DataLoader(
            work,
            batch_size=None,  # an item is a whole result
            sampler=order,
            num_workers=workers,
            pin_memory=pin_memory,
            **(many if workers else {}),
        )
    )


def _start(worker: int) -> None:
    del worker
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
