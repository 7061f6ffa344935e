"""What a number was measured on: processor, versions, commit. No host names."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def cores() -> int:
    """Cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@functools.cache
def processor() -> str:
    """The processor's model name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def device_name() -> str:
    """Model, family and number of cores: a virtual machine may hide all but its maker's name."""
    numbers = [_cpuinfo().get(key, "") for key in ("cpu family", "model")]
    family = f" (family {numbers[0]}, model {numbers[1]})" if all(numbers) else ""
    return f"{processor()}{family}, {cores()} cores"


def machine_slug() -> str:
    """The name of this machine's file of results, by its processor's name and cores alone."""
    return re.sub(r"[^a-z0-9]+", "-", f"{processor()}, {cores()} cores".lower()).strip("-")


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().split("\n\n", 1)[0] if path.exists() else ""
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


@functools.cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("pykeops",):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # optional: its methods are skipped with a reason
    return found


@functools.cache
def commit() -> str:
    """Short hash of the commit, "-dirty" where tracked files differ; "unknown" without git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", ":!bench/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-dirty" if changed else "")


def set_threads(count: int) -> None:
    """Threads of torch and of any other OpenMP runtime in the process: KeOps may bring its own."""
    from threadpoolctl import threadpool_limits  # here: a GPU machine may not have it

    torch.set_num_threads(count)
    threadpool_limits(limits=count)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()
