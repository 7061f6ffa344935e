"""M parameter vectors of one network in a single (M, P) buffer, with a view per layer.

Shapes: M particles, P parameters of one particle. The buffer is what Stein directions, optimisers
and checkpoints see; the views are what a batched forward pass sees. They share storage, so an
in-place update of the buffer is an update of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Parameter:
    """One parameter of the network: its name, its shape for one particle, and how it starts."""

    name: str
    shape: tuple[int, ...]
    scale: float
    """Standard deviation of the initial normal draw; 0 starts at zero."""


class ParticleEnsemble:
    """M independent draws of a network's parameters, kept flat.

    The initial scale is per layer (fan-in), not the prior N(0, I) that Algorithm 1 prints: tanh
    layers of 200 units saturate under unit-variance weights.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        particles: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        self.parameters = tuple(parameters)
        draws = [
            torch.randn(particles, prod(item.shape), generator=generator) * item.scale
            for item in self.parameters
        ]
        self.flat = torch.cat(draws, dim=1).to(device)
        """(M, P) float32; updated in place by the optimiser, never by autograd."""

    @property
    def particles(self) -> int:
        """M."""
        return self.flat.shape[0]

    def leaves(self) -> dict[str, Tensor]:
        """Fresh autograd leaves, name -> (M, *shape), that share the buffer's storage."""
        graph = torch.is_grad_enabled()
        return {
            name: view.detach().requires_grad_(graph)
            for name, view in self.views(self.flat).items()
        }

    def views(self, flat: Float[Tensor, "M P"]) -> dict[str, Tensor]:
        """Views of any buffer of this shape, name -> (M, *shape)."""
        views, start = {}, 0
        for item in self.parameters:
            stop = start + prod(item.shape)
            views[item.name] = flat[:, start:stop].view(self.particles, *item.shape)
            start = stop
        return views
