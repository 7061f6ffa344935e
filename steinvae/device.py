"""What a run computes on: the device, threads and memory, and how float32 is multiplied."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from steinvae.config import Config

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, bytes."""


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto takes a GPU when torch sees one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("trainer.device is cuda, but torch sees no GPU")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def prepare_process(config: Config) -> None:
    """Set the number of CPU threads of this process as trainer.threads says, 0 leaves torch's; and
    `keep_freed_memory`."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Have this process keep the blocks that a step frees for the next one.

    glibc maps large blocks one by one and gives them back to the kernel, whose fresh pages cost a
    sixth of a step with 20 decoders. Afterwards a process holds the memory of its largest step,
    and what lies between blocks of different sizes.
    False, and nothing is changed, where the C library is another or its `MALLOC_` variables or
    `GLIBC_TUNABLES` are set.
    """
    told = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    library = None if told or platform.libc_ver()[0] != "glibc" else ctypes.CDLL(None)
    if library is None:
        return False
    kept = (library.mallopt(_MMAP_THRESHOLD, 2**30), library.mallopt(_TRIM_THRESHOLD, 2**30))
    return all(kept)


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Within, products of float32 matrices as trainer.precision says: tf32 allows TF32, all others
    leave what torch has been told."""
    if precision != "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        yield
    finally:
        torch.set_float32_matmul_precision(before)
