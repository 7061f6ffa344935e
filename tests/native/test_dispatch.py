"""From the op to the launches of a backend: the parts of dispatch that need no GPU."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import stein_kernels
from stein_kernels import (
    _backends,
    _composite,
    _ops,
    _optim_ops,
    _schemas,
    _slice_ops,
    testing,
    use_backend,
)
from stein_kernels.gpu import dispatch, long_rows, routes
from stein_kernels.testing import assert_relative_error, gaussian_problem
from tests.native import cuda_shim

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((64, 100, 50), (4096, 20, 32), (64, 5000, 50), (1, 32768, 16), (1, 100_000, 64))
SHAPES += ((1, 1_000_000, 16), (1, 100, 2_000_000), (1, 20, 11_000_000), (1, 5000, 208_000))


@pytest.fixture(scope="module")
def launches():
    return cuda_shim.library()


@pytest.fixture
def emulated(launches, monkeypatch) -> None:
    """Dispatch as on a machine that has the CUDA library: tensors stay on the CPU."""
    monkeypatch.setattr(dispatch, "usable", lambda requested, device, built: ("cuda",))
    monkeypatch.setattr(dispatch, "launches", lambda backend: launches)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())


def test_both_backends_have_the_same_launches(launches):
    """Names and numbers of arguments, so that a flow may call either."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    from stein_kernels.triton import launches as triton

    for name in triton.__all__:
        (schema,) = torch._C._jit_get_schemas_for_operator(f"stein_kernels_cuda::{name}")
        parameters = inspect.signature(getattr(triton, name)).parameters
        assert [argument.name for argument in schema.arguments] == list(parameters), name


@pytest.mark.parametrize("shape", [(2, 9, 20), (1, 140, 18), (1, 9, 2100)], ids=str)
def test_an_op_runs_its_flow(emulated, shape):
    p = gaussian_problem(*shape)
    phi, h = dispatch.run("svgd_direction", (p.x, p.grad, None, None, None, "liu_wang", False))
    wanted, expected = _composite.svgd_direction(p.x, p.grad, None, None, None, "liu_wang", False)
    assert_relative_error(h, expected, 2e-6)
    assert_relative_error(phi, wanted, 2e-6)


def test_without_a_backend_the_torch_kernels_answer(monkeypatch):
    monkeypatch.setattr(dispatch, "usable", lambda requested, device, built: ())
    x = gaussian_problem(2, 9, 3).x
    assert torch.equal(dispatch.run("median_distance", (x,)), _composite.median_distance(x))


def test_a_device_without_kernels_is_told_of_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(
        _backends, "availability", lambda name: _backends.Availability(False, f"no {name}")
    )
    dispatch.usable.cache_clear()
    with pytest.warns(RuntimeWarning, match="without GPU kernels on cuda:1, .*cuda: no cuda; trit"):
        assert dispatch.usable("auto", torch.device("cuda:1"), False) == ()
    assert dispatch.usable("auto", torch.device("cuda:1"), False) == ()  # warnings are errors here
    dispatch.usable.cache_clear()


def test_a_fused_step_is_seen_by_graphs_that_saved_the_particles(emulated, monkeypatch):
    """Triton's launches write where torch does not see it; those of the emulation are ops of torch,
    so one that writes past it takes their place."""
    p = gaussian_problem(1, 9, 2100)  # longer than what the launches of small sets take
    x, m, v = p.x.clone(), torch.zeros_like(p.x), torch.zeros_like(p.x)

    def step(kernels, x, grad, first, second, *rest, precision):
        for each in (x, first, second):
            each.data.add_(1)  # which leaves the version alone

    monkeypatch.setattr(long_rows, "adam_step", step)
    before = [each._version for each in (x, m, v)]
    factors = torch.tensor([0.1, 30.0, 0.9, 0.1, 0.999, 0.001, 1e-8, 0.99, -1.0])
    _optim_ops._on_cuda(x, p.grad, m, v, factors, None, "liu_wang", False)
    assert torch.equal(x, p.x + 1)
    assert all(each._version > old for each, old in zip((x, m, v), before, strict=True))


@pytest.mark.parametrize("sizes", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_nothing_to_do_launches_nothing(emulated, sizes):
    x = torch.randn(sizes)
    phi, h = dispatch.run("svgd_direction", (x, x, None, None, None, "liu_wang", False))
    assert phi.shape == x.shape
    assert h.shape == sizes[:1]


@pytest.mark.parametrize("rule", ["liu_wang", "median"])
@pytest.mark.parametrize("left_out", [False, True])
def test_the_fused_step_of_adam(launches, rule, left_out):
    p = gaussian_problem(1, 9, 300)
    first, second = torch.zeros_like(p.x), torch.zeros_like(p.x)
    factors = torch.tensor([0.1, 30.0, 0.9, 0.1, 0.999, 0.001, 1e-8, 0.99, -1.0])
    x, m, v = (value.clone() for value in (p.x, first, second))
    assert long_rows.fuses(x, m, v)
    assert not long_rows.fuses(x, m.mT.contiguous().mT, v)  # Triton would misread it
    for _ in range(3):
        long_rows.adam_step(launches, x, p.grad, m, v, factors, None, rule, left_out)
    x64, m64, v64 = (value.double() for value in (p.x, first, second))
    grad, factors = p.grad.double(), factors.double()
    with testing.composite_kernels():
        for _ in range(3):
            _optim_ops.svgd_adam_step(x64, grad, m64, v64, factors, None, rule, left_out)
    for got, expected in ((x, x64), (m, m64), (v, v64)):
        assert_relative_error(got, expected, 1e-5)


@pytest.mark.parametrize("particles", [9, 140])
@pytest.mark.parametrize("at_query", [False, True])
def test_ops_on_a_slice(emulated, particles, at_query):
    """By the launches of long rows, against the torch kernels in float64."""
    p = gaussian_problem(2, particles, 150)
    y = p.query if at_query else None
    squared = _slice_ops._on_cuda("squared_distances")(p.x, y)
    wanted = _slice_ops.squared_distances(p.x.double(), None if y is None else y.double())
    assert_relative_error(squared, wanted, 2e-6)
    weights = torch.exp(-squared / p.bandwidth[:, None, None]) / particles
    for grad in (p.grad, None):
        arguments: Any = (weights, p.x, grad, y, p.bandwidth)
        phi = _slice_ops._on_cuda("weighted_direction")(*arguments)
        exact: Any = (v if v is None else v.double() for v in arguments)
        assert_relative_error(phi, _slice_ops.weighted_direction(*exact), 2e-6)
    if not at_query:
        median = _slice_ops._on_cuda("median_of_squared")(squared)
        assert_relative_error(median, _slice_ops.median_of_squared(wanted), 2e-6)


# --- what was asked for by name -------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch) -> Iterator[list[tuple[str, ...]]]:
    """Ops of the CPU key, each with the backend that it was told."""
    reason = _backends.availability("cpu").reason
    if not testing.has_compiled_kernels():
        pytest.skip(f"no backend to ask for by name: {reason}")
    found: list[tuple[str, ...]] = []

    def kernel(name: str) -> Any:
        schema = _ops.SCHEMAS[name]
        plain, count = (
            _schemas.of_values(schema, getattr(_composite, name)),
            _schemas.count_values(schema),
        )

        def run(*given: Any) -> Any:
            found.append((name, *given[count:]))
            return plain(*given)

        return run

    twice = _slice_ops._twice_displaced

    def displaced(*given: Any) -> Tensor:
        found.append(("twice_displaced", given[-1]))
        return twice(*given)

    monkeypatch.setattr(_slice_ops, "_twice_displaced", displaced)
    with testing._in_place_of_the_registered(kernel, "CPU"):
        yield found


def in_another_thread(function: Callable[[], Any]) -> None:
    """As autograd runs the backward passes of a GPU: nothing is known there of any block."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("op", ["svgd_direction", "stein_divergence", "rbf_gram"])
def test_gradients_are_made_by_the_backend_of_the_values(asked, op, compiled):
    p = gaussian_problem(9, 3)
    x = p.x.requires_grad_()

    def call(x: Tensor) -> Tensor:
        with use_backend("cpu"):
            return getattr(stein_kernels, op)(x, p.grad, bandwidth=4.0)

    value = (torch.compile(call, backend="aot_eager", fullgraph=True) if compiled else call)(x)
    assert (op, "cpu") in asked
    asked.clear()
    in_another_thread(lambda: value.sum().backward())
    assert asked == [(f"{op}_backward", "cpu")]
    assert x.grad is not None


def test_gradients_of_a_slice_are_made_by_the_backend_of_the_values(asked):
    ops = torch.ops.stein_kernels
    x, y = (value.clone().requires_grad_() for value in gaussian_problem(2, 9, 3)[:2])
    squared = ops.squared_distances(x, y, "cpu")
    products = ops.displaced_products(x, y, None, "cpu")
    phi = ops.weighted_direction(squared, x, y, None, x.new_ones(2), "cpu")
    asked.clear()
    in_another_thread(lambda: (squared.sum() + products.sum() + phi.sum()).backward())
    assert asked
    assert {backend for _, backend in asked} == {"cpu"}


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_op_has_a_route_on_every_choice_of_backends(shape, dtype, allowed):
    b, m, d = shape
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        for op in routes._POSITIONS:
            for query in (False, True):
                problem = routes.Problem(b, m, m, d, dtype, query)
                for backends in (("cuda",), ("triton",), ("cuda", "triton")):
                    route = routes.choose(op, problem, backends)
                    assert route.backend in backends
                    assert route.precision == "ieee" or dtype != torch.float64
                    assert route.precision == "ieee" or route.backend == "triton"
                    assert route.reason
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_regimes_take_the_flows_made_for_them():
    expected = ["small_set"] * 2 + ["packed"] * 4 + ["long_rows"] * 3
    for (b, m, d), flow in zip(SHAPES, expected, strict=True):
        problem = routes.Problem(b, m, m, d, torch.float32, query=False)
        assert routes.choose("svgd_direction", problem, ("cuda", "triton")).flow == flow


def test_plain_tf32_is_never_a_default():
    for b, m, d in SHAPES:
        problem = routes.Problem(b, m, m, d, torch.float32, query=False)
        for op in routes._POSITIONS:
            assert routes.choose(op, problem, ("triton",)).precision in ("ieee", "tf32x3")


@pytest.mark.parametrize(("told", "expected"), [("tf32", "tf32x3"), ("ieee", "ieee")])
def test_precision_may_be_told_by_either_interface(fresh_python, told, expected):
    """After torch's newer one, the older one raises where it is asked."""
    code = f"""
import torch
from stein_kernels.gpu.routes import Problem, precision_of
torch.backends.cuda.matmul.fp32_precision = {told!r}
print(precision_of("packed", Problem(1, 300, 300, 50, torch.float32, False)))
"""
    done = fresh_python(code)
    assert done.stdout.strip() == expected, done.stderr
