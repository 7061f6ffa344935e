"""Processes that read ahead: their errors are those of the work, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import active_children

import pytest
from torch.utils.data import Dataset

from steinvae.data.images.processes import Results


class Fails(Dataset[int]):
    """Item 1 is an error."""

    def __getitem__(self, number: int) -> int:
        if number == 1:
            raise FileNotFoundError("no such image")
        return number


class OddError(Exception):
    """Pickle cannot make it again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class FailsOddly(Dataset[int]):
    def __getitem__(self, number: int) -> int:
        raise OddError("two", "words")


class Sleeps(Dataset[int]):
    def __getitem__(self, number: int) -> int:
        time.sleep(0.05)
        return os.getpid()


@pytest.fixture
def gone() -> Callable[[], bool]:
    """Whether this process has no more children than before, within half a minute."""
    before = set(active_children())

    def wait() -> bool:
        end = time.monotonic() + 30
        while set(active_children()) - before and time.monotonic() < end:
            time.sleep(0.05)
        return not set(active_children()) - before

    return wait


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_work_is_raised_as_it_was(workers, gone):
    results = Results(Fails(), range(3), workers)
    assert next(results) == 0
    with pytest.raises(FileNotFoundError) as caught:
        next(results)
    assert str(caught.value) == "no such image"
    assert list(results) == []
    assert gone()


def test_an_error_that_cannot_be_sent_is_named():
    with pytest.raises(RuntimeError, match=r"^OddError: two words$"):
        next(Results(FailsOddly(), range(3), 1))


def test_a_process_that_is_killed_is_an_error_and_leaves_none(gone):
    results = Results(Sleeps(), range(1000), 2)
    os.kill(next(results), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(results)
    assert gone()


UNCAUGHT = """
from steinvae.data.images.processes import Results
from tests.images.test_processes import {work}

if __name__ == "__main__":
    for number in Results({work}(), range(1000), 2):
        {then}
"""


@pytest.mark.parametrize(
    ("work", "then"), [("Fails", "pass"), ("Sleeps", "import os; os.kill(number, 9)")]
)
def test_an_error_that_nobody_catches_ends_the_process(tmp_path, work, then):
    """At exit multiprocessing waits without end for children that a traceback holds."""
    script = tmp_path / "script.py"
    script.write_text(UNCAUGHT.format(work=work, then=then))
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Error" in done.stderr
