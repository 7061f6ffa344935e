"""Processes with a gloo group, started once: a test sends them a function and gets what each made.

Functions go by name, so they stand in modules that are imported as ``tests.distributed.<name>``.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

SECONDS = 120  # that a function may take; a rank that waits for another for ever fails here
PRELOADED = [
    "torch._dynamo",
    "torch.distributed.tensor",
    "stein_kernels.testing",
    "stein_kernels._sharding",
]


def _serve(rank: int, size: int, store: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        while (job := pipe.recv()) is not None:
            function, arguments = job
            try:
                pipe.send((True, function(*arguments)))
            except Exception:
                pipe.send((False, traceback.format_exc()))
    finally:
        dist.destroy_process_group()


class Ranks:
    """``size`` processes of one group."""

    def __init__(self, size: int, folder: Path) -> None:
        self.size = size
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)  # so that only one process imports torch
        self._processes, self._pipes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            arguments = (rank, size, str(folder / "store"), there)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returns on every rank."""
        answers = []
        try:
            for pipe in self._pipes:
                pipe.send((function, arguments))
            for rank, pipe in enumerate(self._pipes):
                if not pipe.poll(SECONDS):
                    pytest.fail(f"rank {rank} of {self.size} did not answer in {SECONDS} s")
                answers.append(pipe.recv())
        except (BrokenPipeError, EOFError):
            codes = [process.exitcode for process in self._processes]
            pytest.fail(f"a rank ended; exit codes {codes}")
        failures = [f"rank {r}:\n{answer}" for r, (fine, answer) in enumerate(answers) if not fine]
        if failures:
            pytest.fail("\n".join(failures))
        return [answer for _, answer in answers]

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                pipe.send(None)
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()


@pytest.fixture(scope="session")
def started(tmp_path_factory):
    """Gives the processes of a group by their number; the same ones for every test."""
    groups: dict[int, Ranks] = {}

    def of(size: int) -> Ranks:
        if size not in groups:
            groups[size] = Ranks(size, tmp_path_factory.mktemp("ranks"))
        return groups[size]

    yield of
    for group in groups.values():
        group.close()


@pytest.fixture(scope="session", params=[2, 4], ids=lambda size: f"{size} ranks")
def ranks(request, started):
    """2 and 4 processes."""
    return started(request.param)
