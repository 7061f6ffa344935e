"""What a run computes on: the device, threads and memory, and how float32 is multiplied."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from steinvae.config import Config

GPU_SHARE = 32
"""Numbers that are worked on at once on a GPU, for one on a CPU: launches are what costs there."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, bytes."""


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto takes a GPU when torch sees one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("trainer.device is cuda, but torch sees no GPU")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def prepare_process(config: Config) -> None:
    """Set the number of CPU threads of this process as trainer.threads says, 0 leaves torch's, and
    `keep_freed_memory`. On a GPU convolutions multiply float32 as float32, which is not torch's
    default, and repeat their results bit for bit."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
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


def at_once(numbers: int, device: torch.device) -> int:
    """How many numbers to work on at once where a CPU takes `numbers`."""
    return numbers * (GPU_SHARE if device.type == "cuda" else 1)


def send(values: Tensor, device: torch.device) -> Tensor:
    """`values` on the device. No GPU is waited for: its copy is from pinned memory, which torch
    keeps until it is made."""
    if device.type == "cuda" and values.device.type == "cpu" and not values.is_sparse:
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Within, products and convolutions of float32 as trainer.precision says: tf32 allows TF32, all
    others leave what torch has been told."""
    if precision != "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
