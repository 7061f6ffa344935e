"""Every op on a CUDA device against the reference in float64 on the CPU.

The shapes take every flow: small sets, packed clouds (direct and split form), long rows.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import stein_kernels
from stein_kernels import reference, testing
from stein_kernels.testing import Problem, gaussian_problem

pytestmark = pytest.mark.gpu

SHAPES = [(3, 20, 32), (2, 101, 50), (2, 300, 3), (1, 300, 17), (2, 270, 128), (2, 65, 700)]
MIXES = [(), ("weights",), ("query",), ("weights", "query"), ("bandwidth",)]
DIRECTION_LIMIT, GRADIENT_LIMIT = 2e-6, 2e-5


def to_device(problem: Problem) -> Problem:
    return Problem(*(value.cuda() for value in problem))


def call(library, op: str, p: Problem, mix: tuple[str, ...], left_out: bool) -> torch.Tensor:
    return getattr(library, op)(p.x, p.grad, leave_one_out=left_out, **p.options(*mix))


CASES = [
    (mix, left_out)
    for mix, left_out in itertools.product(MIXES, (False, True))
    if not (left_out and "query" in mix)
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("mix", "left_out"), CASES)
@pytest.mark.parametrize("op", ["svgd_direction", "stein_divergence"])
def test_value_and_gradients(backend, op, mix, left_out, shape):
    problem = gaussian_problem(*shape, shift=100.0)
    device = Problem(*map(testing.clone_leaf, to_device(problem)))
    oracle = Problem(*map(testing.clone_leaf, problem.double()))
    got = call(stein_kernels, op, device, mix, left_out)
    expected = call(reference, op, oracle, mix, left_out)
    limit = DIRECTION_LIMIT if op == "svgd_direction" else GRADIENT_LIMIT
    testing.assert_relative_error(got.cpu(), expected, limit)
    v = torch.randn(expected.shape, dtype=torch.float64, generator=testing.generator(1))
    names = ("x", "grad", *mix)
    actual = torch.autograd.grad(got, [getattr(device, name) for name in names], v.float().cuda())
    wanted = torch.autograd.grad(
        expected, [getattr(oracle, name) for name in names], v.float().double()
    )
    for name, a, w in zip(names, actual, wanted, strict=True):
        testing.assert_gradients_match(a.cpu(), w, relative_l2=GRADIENT_LIMIT, name=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("query", [False, True])
def test_gram(backend, shape, query):
    problem = gaussian_problem(*shape)
    y = ("query",) if query else ()
    device, oracle = to_device(problem), problem.double()
    x, wide = testing.clone_leaf(device.x), testing.clone_leaf(oracle.x)
    got = stein_kernels.rbf_gram(x, *device.options(*y).values(), bandwidth=device.bandwidth)
    expected = reference.rbf_gram(wide, *oracle.options(*y).values(), bandwidth=oracle.bandwidth)
    testing.assert_relative_error(got.cpu(), expected, DIRECTION_LIMIT)
    v = torch.randn(expected.shape, generator=testing.generator(1))
    (actual,) = torch.autograd.grad(got, x, v.cuda())
    (wanted,) = torch.autograd.grad(expected, wide, v.double())
    testing.assert_gradients_match(actual.cpu(), wanted, relative_l2=GRADIENT_LIMIT)


@pytest.mark.parametrize("rule", reference.RULES)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 2000, 8), (3, 1, 4), (2, 2, 2)], ids=str)
def test_median(backend, shape, rule):
    x = gaussian_problem(*shape).x
    got = stein_kernels.median_bandwidth(x.cuda(), rule=rule)
    expected = reference.median_bandwidth(x.double(), rule=rule)
    assert (got.cpu().double() / expected - 1).abs().max() <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dtypes(backend, dtype, shape):
    p = gaussian_problem(*shape, dtype=dtype)
    got = stein_kernels.svgd_direction(p.x.cuda(), p.grad.cuda()).cpu()
    exact = reference.svgd_direction(p.x.double(), p.grad.double())
    if dtype == torch.float64:
        testing.assert_relative_error(got, exact, 1e-12)
    else:
        testing.assert_within_reference_error(got, reference.svgd_direction(p.x, p.grad), exact)


@pytest.mark.parametrize("shift", [0.0, 1e2, 1e4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_common_shift_costs_nothing(backend, shape, shift):
    p = gaussian_problem(*shape, shift=shift)
    got = stein_kernels.svgd_direction(p.x.cuda(), p.grad.cuda()).cpu()
    testing.assert_relative_error(
        got, reference.svgd_direction(p.x.double(), p.grad.double()), DIRECTION_LIMIT
    )


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("shape", [(1, 1000, 16), (1, 1000, 64)], ids=str)
def test_tensor_cores_where_allowed(backend, shape, precision):
    p = gaussian_problem(*shape)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        got = stein_kernels.svgd_direction(p.x.cuda(), p.grad.cuda()).cpu()
    finally:
        torch.set_float32_matmul_precision(before)
    limit = 1e-5 if precision == "high" else 5e-2
    testing.assert_relative_error(
        got, reference.svgd_direction(p.x.double(), p.grad.double()), limit
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_bits_twice_and_in_a_graph(backend, shape):
    """A captured graph replays every launch; nothing in an op reads the device."""
    p = to_device(gaussian_problem(*shape))
    first = stein_kernels.svgd_direction(p.x, p.grad)
    assert torch.equal(first, stein_kernels.svgd_direction(p.x, p.grad))
    with testing.poison_empty(False):
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            captured = stein_kernels.svgd_direction(p.x, p.grad)
        graph.replay()
    assert torch.equal(first, captured)


def test_nothing_waits_for_the_device(backend):
    p = to_device(gaussian_problem(2, 300, 20))
    leaf = testing.clone_leaf(p.x)
    stein_kernels.svgd_direction(leaf, p.grad).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stein_kernels.svgd_direction(leaf, p.grad).sum().backward()
        stein_kernels.stein_divergence(leaf, p.grad).sum().backward()
        stein_kernels.rbf_gram(leaf).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiles_without_a_break(backend):
    p = to_device(gaussian_problem(2, 40, 20))
    step = torch.compile(
        lambda x, g: x + 0.1 * stein_kernels.svgd_direction(x, g), fullgraph=True, backend="eager"
    )
    expected = p.x + 0.1 * stein_kernels.svgd_direction(p.x, p.grad)
    assert torch.equal(step(p.x, p.grad), expected)


def test_no_matrix_of_pairs_is_stored(backend):
    """20,000 particles: the matrix would take 1.6 GB, the inputs 1.3 MB each."""
    p = to_device(gaussian_problem(20_000, 16, queries=1))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    stein_kernels.svgd_direction(p.x, p.grad)
    assert torch.cuda.max_memory_allocated() - before < 100e6


def test_every_offset_is_64_bit(backend):
    """46,342^2 kernel values are more than 2^31; the last row of the Gram matrix must be right."""
    x = torch.randn(46_342, 2, device="cuda")
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("less than 12 GB of device memory are free")
    gram = stein_kernels.rbf_gram(x.bfloat16(), bandwidth=1.0)
    expected = stein_kernels.rbf_gram(x[-3:].bfloat16(), x[-3:].bfloat16(), bandwidth=1.0)
    assert torch.equal(gram[-3:, -3:], expected)
