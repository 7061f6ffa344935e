"""What the tests run on every rank: the functions on DTensors beside the same on whole tensors.

Every rank draws the same problem, so each has the result of one process to compare with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import stein_kernels
from stein_kernels import reference, testing, use_backend
from stein_kernels.optim import SVGDAdam


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
                numbers = sum(a.numel() for a in tree_leaves(args) if isinstance(a, Tensor))
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
    shared: bool = False  # what is given is the first set's, for all sets


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
    if case.shared:
        keywords = {name: value[0] for name, value in keywords.items()}
    return positional, keywords


def distribute(value: Tensor, kept: int, mesh: DeviceMesh, sharded: tuple[str, ...]) -> Tensor:
    """By mesh dimension: "features", "batch" (the first dimension) or "none"."""
    where = {
        "features": Shard(value.dim() - 1) if kept == 2 else Replicate(),
        "batch": Shard(0) if value.dim() > kept else Replicate(),
        "none": Replicate(),
    }
    # from a whole tensor that every rank has: nothing to send
    return distribute_tensor(value, mesh, [where[name] for name in sharded], src_data_rank=None)


def mesh_of(sharded: tuple[str, ...]) -> DeviceMesh:
    size = dist.get_world_size()
    shape = (size,) if len(sharded) == 1 else (2, size // 2)
    return init_device_mesh("cpu", shape)


def compare(case: Case, sharded: tuple[str, ...] = ("features",), backend: str = "auto") -> Outcome:
    """The function on DTensors, forward and backward, against the same on whole tensors."""
    function = getattr(stein_kernels, case.function)
    positional, keywords = arguments_of(case)
    mesh, options = mesh_of(sharded), dict(case.options)
    whole = [testing.clone_leaf(value) for value in (*positional, *keywords.values())]
    kept = [2] * len(positional) + [_KEPT[name] for name in keywords]
    parts: list[Any] = [
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
        cotangent = torch.randn(
            expected.shape, dtype=expected.dtype, generator=testing.generator(7)
        )
        expected.backward(cotangent)
        spread = distribute_tensor(cotangent, mesh, actual.placements, src_data_rank=None)
        with backward:
            actual.backward(spread)
        for part, value in zip(parts, whole, strict=True):
            if value.grad is not None:
                found = part.grad.full_tensor()
                gradient_error = max(gradient_error, testing.relative_error(found, value.grad))
                assert part.grad.placements == part.placements
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
    positional, _ = arguments_of(case)
    mesh = mesh_of(("features",))
    parts = [distribute(value, 2, mesh, ("features",)) for value in positional]
    actual = getattr(stein_kernels, case.function)(*parts, **dict(case.options))
    wide = [value.double() for value in positional]
    exact = getattr(reference, case.function)(*wide, **dict(case.options))
    return testing.relative_error(actual.full_tensor(), exact)


def adam(bandwidth: str, leave_one_out: bool) -> tuple[float, list[tuple[str, int]], tuple]:
    """Three steps of SVGDAdam on sharded particles: the error against one process, what a step
    moves, and the shape of this rank's moments."""
    particles = testing.gaussian_problem(6, 10, dtype=torch.float64).x
    mesh, moved = mesh_of(("features",)), Traffic()
    sharded = torch.nn.Parameter(distribute(particles, 2, mesh, ("features",)))
    whole = torch.nn.Parameter(particles.clone())
    options: dict[str, Any] = {"bandwidth": bandwidth, "leave_one_out": leave_one_out}
    for parameter in (sharded, whole):
        optimizer = SVGDAdam([parameter], lr=0.1, weight_decay=0.1, **options)
        for _ in range(3):
            optimizer.zero_grad()
            (0.5 * parameter.square()).sum().backward()
            with Traffic() as traffic:
                optimizer.step()
            if parameter is sharded:
                moved = traffic
                first = optimizer.state[parameter]["exp_avg"].to_local()
    found: Any = sharded.detach()
    return testing.relative_error(found.full_tensor(), whole), moved.calls, tuple(first.shape)


def autocast(name: str) -> tuple[str, float]:
    """Under autocast, on mixed half types: the dtype, and the error against the widened whole."""
    function = getattr(stein_kernels, name)
    problem = testing.gaussian_problem(6, 5)
    given = [problem.x.bfloat16(), problem.grad.half()][: 1 + (name in TAKES_SCORES)]
    parts = [distribute(value, 2, mesh_of(("features",)), ("features",)) for value in given]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = function(*parts)
    expected = function(*(value.float() for value in given))
    return str(actual.dtype), testing.relative_error(actual.full_tensor(), expected)


def refusals() -> list[str]:
    """The messages of calls that may not work, each the same on every rank and without traffic."""
    mesh = mesh_of(("features",))
    x = testing.gaussian_problem(6, 5).x
    features, particles, whole = (
        distribute_tensor(x, mesh, [where], src_data_rank=None)
        for where in (Shard(1), Shard(0), Replicate())
    )
    partial = DTensor.from_local(x, mesh, [Partial()], run_check=False)
    weights = torch.ones(6)
    shorter = distribute_tensor(x[:, :4], mesh, [Shard(1)], src_data_rank=None)
    other = distribute_tensor(x, init_device_mesh("cpu", (1, mesh.size())), [Replicate(), Shard(1)])
    direction = stein_kernels.svgd_direction
    calls = [
        lambda: direction(particles, particles),
        lambda: direction(partial, partial),
        lambda: direction(features, whole),
        lambda: direction(features, x),
        lambda: direction(x, features),
        lambda: direction(features, features, weights=weights),
        lambda: direction(features, shorter),
        lambda: direction(features, other),
        lambda: direction(features, features.double()),
        lambda: direction(features, features, bandwidth=-1.0),
        lambda: stein_kernels.median_bandwidth(features, rule="mean"),
        lambda: direction(features, features, weights),  # type: ignore[misc]
        lambda: direction(features, x=features, grad=features),  # type: ignore[misc]
        lambda: direction(features),  # type: ignore[misc]
        lambda: direction(features, features, sigma=1.0),  # type: ignore[misc]
    ]
    messages = []
    with Traffic() as traffic:
        for call in calls:
            try:
                messages.append(f"no refusal: {call()}")
            except (TypeError, ValueError) as error:
                messages.append(f"{type(error).__name__}: {error}")
    assert not traffic.calls
    return messages


def compiled() -> tuple[float, float, list[int]]:
    """A step with a sharded direction as one graph: errors of value and gradient, and how many
    all-reduces the graphs of forward and backward hold."""
    from functorch.compile import make_boxed_func  # type: ignore[attr-defined]
    from torch._dynamo.backends.common import aot_autograd

    collectives = []

    def count(graph, _):
        names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        assert not [name for name in names if "gather" in name or "all_to_all" in name]
        collectives.append(sum("all_reduce" in name for name in names))
        return make_boxed_func(graph.forward)

    (x, grad), _ = arguments_of(Case("svgd_direction", (6, 5)))
    mesh = mesh_of(("features",))

    def step(x: Tensor, grad: Tensor) -> Tensor:
        return x + 0.1 * stein_kernels.svgd_direction(x, grad)

    parts: list[Any] = [
        distribute(value, 2, mesh, ("features",)).requires_grad_() for value in (x, grad)
    ]
    whole = [testing.clone_leaf(value) for value in (x, grad)]
    backend = aot_autograd(fw_compiler=count)
    actual: Any = torch.compile(step, fullgraph=True, backend=backend)(*parts)
    expected = step(*whole)
    for value in (actual, expected):
        value.square().sum().backward()
    return (
        testing.relative_error(actual.full_tensor(), expected),
        testing.relative_error(parts[0].grad.full_tensor(), whole[0].grad),
        collectives,
    )
