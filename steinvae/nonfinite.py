"""Updates left out because something was not finite, counted where they happen: on the device.

Nothing here waits for the device but `NonFinite.read` and `all_finite`, which the loop asks where
it looks at its numbers anyway: to log and to save.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class NonFiniteError(RuntimeError):
    """Losses, gradients or parameters were NaN or infinite, more than the settings allow."""


class LeftOut(NamedTuple):
    """What has been left out."""

    total: int
    """Updates, in the whole run."""

    in_a_row: int
    """Up to the last update."""

    longest: int
    """In a row, since `NonFinite.forget`."""

    last: int
    """Index of the last one; -1 where there was none since the run was started or resumed."""


class NonFinite:
    """Counts updates that were left out, without a synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart(0, 0)

    def restart(self, total: int, in_a_row: int) -> None:
        """Continue counting from a checkpoint's numbers."""
        self._counts = torch.tensor([total, in_a_row, 0, -1], device=self._device)

    def note(self, left_out: Tensor, step: int | Tensor) -> None:
        """Update `step` was made or left out, a boolean scalar on the device."""
        total, in_a_row, longest, last = self._counts.unbind()
        in_a_row = (in_a_row + 1) * left_out
        last = torch.where(left_out, step, last)
        counts = [total + left_out, in_a_row, torch.maximum(longest, in_a_row), last]
        self._counts.copy_(torch.stack(counts))

    def read(self) -> LeftOut:
        """The counts; waits for the device."""
        return LeftOut(*self._counts.tolist())

    def forget(self) -> None:
        """Of the updates in a row, keep those that may go on."""
        self._counts[2] = self._counts[1]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no entry is NaN or infinite; waits for the device."""
    floating = [each for each in tensors if each.is_floating_point() and each.numel()]
    return bool(torch.nn.utils.get_total_norm(floating, float("inf")).isfinite())
