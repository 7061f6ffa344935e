"""A device that captures, on the CPU: it repeats recorded operations on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_Result = TypeVar("_Result")

FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh")
"""Operations that a CUDA graph cannot hold: they read the device, or copy numbers of Python's."""


class Tape(TorchDispatchMode):
    """`captured.Recorder`: no Python of the function is run again, and no new memory is seen.

    The function is run while it is recorded, where a CUDA graph would only note it; so the first
    replay does nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.captures = 0
        self.replays = 0

    def warm_up(self, function: Callable[[], _Result]) -> _Result:
        return function()

    def capture(self, function: Callable[[], _Result]) -> tuple[_Result, Callable[[], object]]:
        self.captures += 1
        operations = self._operations = []
        with self:
            result = function()
        done = [False]

        def replay() -> None:
            self.replays += 1
            with torch._C._AutoDispatchBelowAutograd():  # gradients are among the operations
                for operation in operations if done[0] else ():
                    _repeat(*operation)
            done[0] = True

        return result, replay

    def forget(self) -> None:
        """Tensors are kept by what replays them alone."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._opname not in FORBIDDEN
        found = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, found))
        return found


def _repeat(func: Callable[..., Any], args: Any, kwargs: Any, before: Any) -> None:
    """Put the operation's result where it was, unless it is a view or in place."""
    now = func(*args, **kwargs)
    for old, new in zip(tree_leaves(before), tree_leaves(now), strict=True):
        if not isinstance(old, Tensor):
            continue
        assert old.shape == new.shape
        if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
            old.copy_(new)
