"""What the tests run on every rank: the functions on DTensors beside the same on whole tensors.

Every rank draws the same problem, so each has the result of one process to compare with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import stein_kernels
from stein_kernels import testing, use_backend


class Traffic(TorchDispatchMode):
    """The collectives of a block: the name of each, and how many numbers a rank hands in."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its collectives are seen when it has come to local tensors
        if func.namespace in ("_c10d_functional", "c10d", "_dtensor", "c10d_functional"):
            name = func._opname.strip("_")
            if name not in ("wait_tensor", "wrap_tensor_autograd"):  # which move nothing
                numbers = sum(a.numel() for a in args if isinstance(a, Tensor))
                self.calls.append((name, numbers))
        return func(*args, **(kwargs or {}))


class Case(NamedTuple):
    """A call: the name of the function, the shape of x, and what else it is given."""

    function: str
    shape: tuple[int, ...]
    given: tuple[str, ...] = ()  # fields of the problem passed as keywords
    options: tuple[tuple[str, Any], ...] = ()
    shift: float = 0.0
    dtype: torch.dtype = torch.float64


class Outcome(NamedTuple):
    """What one rank found."""

    error: float  # relative, against one process
    gradient_error: float  # the largest of the arguments
    placements: str
    traffic: list[tuple[str, int]]
    backward_traffic: list[tuple[str, int]]
    value: Tensor  # this rank's part


TAKES_SCORES = ("svgd_direction", "stein_divergence", "kernel_stein_discrepancy")
_KEPT = {"x": 2, "grad": 2, "weights": 1, "query": 2, "y": 2, "bandwidth": 0}


def arguments_of(case: Case) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Positional tensors and keyword tensors, on one process."""
    problem = testing.gaussian_problem(*case.shape, dtype=case.dtype, shift=case.shift)
    positional = [problem.x]
    if case.function in TAKES_SCORES:
        positional.append(problem.grad)
    keywords = problem.options(*(name for name in case.given if name != "y"))
    if "y" in case.given:
        keywords["y"] = problem.query
    return positional, keywords


def distribute(
    value: Tensor, kept: int, mesh: dist.DeviceMesh, sharded: tuple[str, ...]
) -> Tensor:
    """By mesh dimension: "features", "batch" (the first dimension) or "none"."""
    where = {
        "features": Shard(value.dim() - 1) if kept == 2 else Replicate(),
        "batch": Shard(0),
        "none": Replicate(),
    }
    # from a whole tensor that every rank has: nothing to send
    return distribute_tensor(value, mesh, [where[name] for name in sharded], src_data_rank=None)


def mesh_of(sharded: tuple[str, ...]) -> dist.DeviceMesh:
    size = dist.get_world_size()
    shape = (size,) if len(sharded) == 1 else (2, size // 2)
    return init_device_mesh("cpu", shape)


def compare(
    case: Case, sharded: tuple[str, ...] = ("features",), backend: str = "auto"
) -> Outcome:
    """The function on DTensors, forward and backward, against the same on whole tensors."""
    function = getattr(stein_kernels, case.function)
    positional, keywords = arguments_of(case)
    mesh, options = mesh_of(sharded), dict(case.options)
    whole = [testing.clone_leaf(value) for value in (*positional, *keywords.values())]
    kept = [2] * len(positional) + [_KEPT[name] for name in keywords]
    parts = [
        distribute(value, k, mesh, sharded).detach().requires_grad_()
        for value, k in zip((*positional, *keywords.values()), kept, strict=True)
    ]
    count = len(positional)
    with use_backend(backend):
        with Traffic() as forward:
            named = dict(zip(keywords, parts[count:], strict=True))
            actual = function(*parts[:count], **named, **options)
        named = dict(zip(keywords, whole[count:], strict=True))
        expected = function(*whole[:count], **named, **options)
    gradient_error, backward = 0.0, Traffic()
    if expected.requires_grad and expected.numel():
        cotangent = torch.randn(expected.shape, dtype=expected.dtype, generator=testing.generator(7))
        expected.backward(cotangent)
        spread = distribute_tensor(cotangent, mesh, actual.placements, src_data_rank=None)
        with backward:
            actual.backward(spread)
        for part, value in zip(parts, whole, strict=True):
            if value.grad is not None:
                found = part.grad.full_tensor()
                gradient_error = max(gradient_error, testing.relative_error(found, value.grad))
                assert part.grad.placements == part.placements, (part.grad.placements, kept)
    return Outcome(
        error=testing.relative_error(actual.full_tensor(), expected),
        gradient_error=gradient_error,
        placements=str(actual.placements),
        traffic=forward.calls,
        backward_traffic=backward.calls,
        value=actual.to_local().detach().clone(),
    )


def error_against_float64(case: Case) -> float:
    """Of the sharded function, against the specification in float64 on the same rounded inputs."""
    positional, keywords = arguments_of(case)
    mesh = mesh_of(("features",))
    parts = [distribute(value, 2, mesh, ("features",)) for value in positional]
    actual = getattr(stein_kernels, case.function)(*parts, **dict(case.options))
    wide = [value.double() for value in positional]
    exact = getattr(stein_kernels.reference, case.function)(*wide, **dict(case.options))
    return testing.relative_error(actual.full_tensor(), exact)
