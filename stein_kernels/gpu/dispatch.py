"""What torch calls for a tensor on a CUDA device: choose the route, get the launches, run the flow.

Where neither Triton nor the CUDA library is there, the torch kernels of ``_composite`` run.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any

import torch

from stein_kernels import _backends, _composite, _extension
from stein_kernels.gpu import flows, routes

BACKENDS = ("cuda", "triton")


def run(op: str, arguments: tuple[Any, ...], requested: str = "auto") -> Any:
    """Run an op of ``_ops.SCHEMAS`` on CUDA tensors, by the backend that was asked for."""
    at = arguments[routes.position(op)]
    backends = backends_for(at.device, requested)
    if not backends:
        return getattr(_composite, op)(*arguments)
    problem = routes.problem_of(op, arguments)
    route = routes.choose(op, problem, backends)
    with torch.cuda.device(at.device):
        return flows.run(op, problem, route, launches(route.backend), arguments)


def backends_for(device: torch.device, requested: str = "auto") -> tuple[str, ...]:
    """``usable`` now. Torch leaves an argument out that is its default."""
    return usable(requested, device, _extension.cuda_status(build=False).module is not None)


@functools.cache
def usable(requested: str, device: torch.device, built: bool) -> tuple[str, ...]:
    """The backends to choose among: the one asked for by name, or all that the device runs.

    ``built`` (whether the CUDA library is loaded) is a key of the cache: a build ends its validity.

    Warns:
        RuntimeWarning: there is none, and the torch kernels will run; once a device.
    """
    if requested in BACKENDS:
        return (requested,)
    with torch.cuda.device(device):
        found = {name: _backends.availability(name) for name in BACKENDS}
    there = tuple(name for name, each in found.items() if each.available)
    if not there:
        why = "; ".join(f"{name}: {each.reason}" for name, each in found.items())
        warnings.warn(
            f"stein_kernels runs without GPU kernels on {device}, on slower torch ones: {why}",
            RuntimeWarning,
            stacklevel=2,
        )
    return there


@functools.cache
def launches(backend: str) -> Any:
    """The launches of a backend."""
    if backend == "triton":
        return importlib.import_module("stein_kernels.triton.launches")
    return torch.ops.stein_kernels_cuda
