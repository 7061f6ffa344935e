"""Checkpoints written beside the training: the loop waits for a copy, not for the disk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steinvae import checkpoint


class Saver:
    """Writes checkpoints of a run and drops old ones, in a thread where `in_background`.

    One is written at a time, from a copy that belongs to it: `save` returns when the tensors may
    change again, and waits first for the save before it, whose error it raises. Use as a context
    manager: at the end of the block everything is on the disk.
    """

    def __init__(self, run_dir: Path, keep: int, *, in_background: bool) -> None:
        self._run_dir, self._keep = run_dir, keep
        self._in_background = in_background
        self._owned: dict[str, Tensor] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        before: Callable[[], None] | None = None,
    ) -> None:
        """Write the checkpoint of `step`, after `before()`: what must be on the disk by then."""
        if not self._in_background:
            self._write(step, tensors, state, before)
            return
        self.wait()
        self._own(tensors)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint")
        owned = copy.deepcopy(dict(state))
        self._writing = self._thread.submit(self._write, step, self._owned, owned, before)

    def wait(self) -> None:
        """Until the last save is on the disk; raises its error."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()  # waits, also where the loop failed
            self._thread, self._owned = None, {}

    def _write(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        before: Callable[[], None] | None,
    ) -> None:
        if before is not None:
            before()
        checkpoint.save(self._run_dir, step, tensors, state)
        checkpoint.prune(self._run_dir, self._keep, written=step)

    def _own(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy into host memory that stays from save to save: page-locked for a GPU, and on a CPU
        without the page faults of new memory, which cost as much as the copy."""
        kept, self._owned = self._owned, {}
        on_gpu = False
        for name, tensor in tensors.items():
            tensor = tensor.detach()
            on_gpu = on_gpu or tensor.is_cuda
            buffer = kept.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._owned[name] = buffer.copy_(tensor, non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
