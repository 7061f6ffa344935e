"""torch.compile and torch.export see one op: no graph break, no recompilation, the same values.

The graph is traced once, whatever kernel then runs, so one implementation is enough: the default.
"""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

import stein_kernels as sk
from stein_kernels.testing import assert_relative_error, gaussian_problem, poison_empty

# torch loads inductor through torch.jit, which it deprecates itself
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*deprecated")


@pytest.fixture(autouse=True)
def _unpoisoned():
    """Inductor's own buffers are its own affair, and filling them recompiles."""
    with poison_empty(False):
        yield


@pytest.fixture(scope="module")
def compiled_step():
    """One traced function for the whole file: each trace takes seconds."""

    @torch.compile(fullgraph=True, dynamic=True)
    def step(x, grad, weights, query, left_out: bool):
        phi = sk.svgd_direction(x, grad, weights=weights, query=query)
        moved = x + 0.1 * sk.svgd_direction(x, grad, leave_one_out=left_out)
        return moved, phi, sk.kernel_stein_discrepancy(x, grad), sk.rbf_gram(x, query)

    return step


def eager_step(x, grad, weights, query, left_out):
    phi = sk.svgd_direction(x, grad, weights=weights, query=query)
    moved = x + 0.1 * sk.svgd_direction(x, grad, leave_one_out=left_out)
    return moved, phi, sk.kernel_stein_discrepancy(x, grad), sk.rbf_gram(x, query)


@pytest.mark.parametrize("sizes", [(2, 9, 4, 5), (3, 17, 6, 8), (2, 33, 6, 8)])
def test_dynamic_shapes(compiled_step, sizes):
    b, m, d, n = sizes
    p = gaussian_problem(b, m, d, queries=n)
    for actual, expected in zip(compiled_step(*p[:4], True), eager_step(*p[:4], True), strict=True):
        assert_relative_error(actual, expected, 1e-5)


def test_one_graph_serves_every_size():
    seen = []

    def count(graph, _):
        seen.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    torch._dynamo.reset()
    call = torch.compile(sk.svgd_direction, fullgraph=True, dynamic=True, backend=count)
    for m in (5, 9, 17):
        p = gaussian_problem(2, m, 3)
        assert torch.equal(call(p.x, p.grad), sk.svgd_direction(p.x, p.grad))
    assert len(seen) == 1
    assert seen[0].count("stein_kernels.svgd_direction") == 1


def test_one_graph_serves_every_size_of_the_rule_alone():
    torch._dynamo.reset()
    graphs = CompileCounter()
    call = torch.compile(sk.kernel_stein_discrepancy, fullgraph=True, dynamic=True, backend=graphs)
    for m in (5, 9, 17, 33):
        p = gaussian_problem(1, m, 3)
        expected = sk.kernel_stein_discrepancy(p.x, p.grad)
        assert_relative_error(call(p.x, p.grad), expected, 1e-5)
    assert graphs.frame_count == 1


def test_a_number_for_the_bandwidth_may_change():
    torch._dynamo.reset()
    graphs = CompileCounter()
    call = torch.compile(sk.svgd_direction, fullgraph=True, backend=graphs)
    p = gaussian_problem(1, 9, 4)
    for h in (3.0, 2.0, 1.0, 0.5, 2):
        assert torch.equal(
            call(p.x, p.grad, bandwidth=h), sk.svgd_direction(p.x, p.grad, bandwidth=h)
        )
    assert graphs.frame_count <= 3  # a constant, any float, any integer


def test_export_of_any_number_of_particles():
    class Rule(torch.nn.Module):
        def forward(self, x):
            return sk.median_bandwidth(x)

    many = torch.export.Dim("many", min=2)
    program = torch.export.export(Rule(), (torch.randn(9, 3),), dynamic_shapes=({0: many},))
    x = torch.randn(21, 3)
    assert_relative_error(program.module()(x), sk.median_bandwidth(x), 1e-6)


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean")  # of shapes compared
@pytest.mark.parametrize(
    "trace",
    [
        lambda call, x: make_fx(call, tracing_mode="symbolic")(x),
        lambda call, x: torch.jit.trace(call, x, check_trace=False),
    ],
    ids=["make_fx", "jit"],
)
@pytest.mark.parametrize("op", ["kernel_stein_discrepancy", "median_bandwidth"])
def test_older_traces_keep_the_number_of_particles_open(op, trace):
    def call(x):
        return getattr(sk, op)(x, *(() if op == "median_bandwidth" else (-x,)))

    traced = trace(call, torch.randn(6, 3))
    x = torch.randn(15, 3)
    torch.testing.assert_close(traced(x), call(x))


def test_the_same_tensor_twice():
    p = gaussian_problem(2, 9, 4)
    call = torch.compile(
        lambda x, y: sk.svgd_direction(x, x, query=y), fullgraph=True, backend="aot_eager"
    )
    assert_relative_error(call(p.x, p.x), sk.svgd_direction(p.x, p.x, query=p.x), 1e-6)


def test_backward():
    p = gaussian_problem(2, 9, 4)
    inputs = [value.requires_grad_() for value in (p.x, p.grad, p.weights, p.bandwidth)]

    def loss(x, grad, weights, bandwidth):
        options = {"weights": weights, "bandwidth": bandwidth}
        phi = sk.svgd_direction(x, grad, **options)
        return phi.square().sum() + sk.stein_divergence(x, grad, **options).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(*inputs), inputs)
    expected = torch.autograd.grad(loss(*inputs), inputs)
    for got, wanted in zip(actual, expected, strict=True):
        assert_relative_error(got, wanted, 1e-5)


# dynamo makes an object of the class, which torch deprecates itself
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("op", ["svgd_direction", "stein_divergence", "rbf_gram"])
def test_inside_the_backward_of_a_function(op):
    p = gaussian_problem(2, 9, 4)

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sum()

        @staticmethod
        def backward(ctx, v):  # type: ignore[override]
            (x,) = ctx.saved_tensors
            others = () if op == "rbf_gram" else (p.grad,)
            return x * (v * getattr(sk, op)(x, *others, bandwidth=p.bandwidth)).sum()

    def gradient(call):
        x = p.x.clone().requires_grad_()
        return torch.autograd.grad(call(x), x)[0]

    compiled = torch.compile(lambda x: Scaled.apply(x), fullgraph=True, backend="aot_eager")
    assert_relative_error(gradient(compiled), gradient(Scaled.apply), 1e-6)


def test_export_keeps_one_node():
    class Step(torch.nn.Module):
        def forward(self, x, grad):
            return x + 0.1 * sk.svgd_direction(x, grad, leave_one_out=True)

    p = gaussian_problem(2, 9, 4)
    particles = torch.export.Dim("particles", min=2)
    shapes = {"x": {1: particles}, "grad": {1: particles}}
    exported = torch.export.export(Step(), (p.x, p.grad), dynamic_shapes=shapes)
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert [name for name in targets if "stein_kernels" in name] == [
        "stein_kernels.svgd_direction.default"
    ]
    more = gaussian_problem(2, 13, 4)
    assert_relative_error(exported.module()(more.x, more.grad), Step()(more.x, more.grad), 1e-6)


def test_bad_arguments_are_refused_while_tracing():
    call = torch.compile(sk.svgd_direction, fullgraph=True, backend="eager", dynamic=False)
    p = gaussian_problem(2, 9, 4)
    with pytest.raises(Exception, match="grad must have the shape of x"):
        call(p.x, p.grad[:, :3])
