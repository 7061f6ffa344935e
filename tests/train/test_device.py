"""Memory that a training process keeps from step to step."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

if platform.libc_ver()[0] != "glibc":
    pytest.skip("mallopt is glibc's; this C library is another", allow_module_level=True)

STEPS = """
import resource, statistics, sys, torch
from steinvae.device import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None

def step():
    large = [torch.ones(2**20 * size) for size in (1, 2, 20)]  # 92 MB
    return sum(each[0] for each in large)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

each = []
for _ in range(25):
    before = faults()
    step()
    each.append(faults() - before)
print(kept, statistics.median(each))
"""


def run(word: str, **variables: str) -> tuple[str, float]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, word],
        env={**clean, **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    kept, faults = done.stdout.split()
    return kept, float(faults)


def test_a_step_finds_the_pages_of_the_one_before():
    """4 KB a page, or 2 MB where the kernel gives huge ones. The median, for a step whose largest
    block finds its hole taken grows the heap once more, whenever that comes."""
    kept, faults = run("keep")
    assert kept == "True"
    assert faults < 5
    assert run("leave")[1] > 40


def test_whoever_has_tuned_the_allocator_is_left_alone():
    assert run("keep", MALLOC_ARENA_MAX="2")[0] == "False"
    assert run("keep", GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0] == "False"
