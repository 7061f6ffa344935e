"""What a run computes on: the device, the threads, and how float32 is multiplied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from steinvae.config import Config


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto takes a GPU when torch sees one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("trainer.device is cuda, but torch sees no GPU")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def use_threads(config: Config) -> None:
    """Set the number of CPU threads of this process as trainer.threads says; 0 leaves torch's."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)


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
