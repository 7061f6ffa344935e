"""Every op on a CUDA device against the reference in float64 on the CPU.

The shapes take every flow: small sets, packed clouds (direct and split form), long rows of whole
sets (aligned and not) and of larger ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

import stein_kernels
from stein_kernels import reference, testing
from stein_kernels.gpu import dispatch
from stein_kernels.optim import SVGDAdam
from stein_kernels.testing import Problem, gaussian_problem

pytestmark = pytest.mark.gpu

SHAPES = [(3, 20, 32), (2, 101, 50), (2, 300, 3), (1, 300, 17), (2, 270, 128), (2, 65, 700)]
SHAPES += [(1, 20, 2051), (1, 100, 2100), (1, 140, 2304)]
LONGEST = (1, 20, 40_000)  # a program has several blocks of features
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


@pytest.mark.parametrize("shape", [*SHAPES, LONGEST], ids=str)
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
@pytest.mark.parametrize("shape", [*SHAPES, (1, 2000, 8), (3, 1, 4), (2, 2, 2), LONGEST], ids=str)
def test_median(backend, shape, rule):
    x = gaussian_problem(*shape).x
    got = stein_kernels.median_bandwidth(x.cuda(), rule=rule)
    expected = reference.median_bandwidth(x.double(), rule=rule)
    assert (got.cpu().double() / expected - 1).abs().max() <= 2e-6


@pytest.mark.parametrize("particles", [20_000, 50_000])
def test_median_of_many_pairs_has_half_of_them_on_either_side(backend, particles):
    """Counted in float64: 2e8 and 1.2e9 pairs, which are sampled, bracketed and passed over."""
    x = gaussian_problem(1, particles, 3).x[0].cuda()
    median = stein_kernels.median_bandwidth(x, rule="median").double()
    wide, below, equal = x.double(), 0, 0
    for rows in wide.split(1000):
        distance = torch.cdist(rows, wide, compute_mode="donot_use_mm_for_euclid_dist")
        below += int((distance < median * (1 - 1e-6)).sum())
        equal += int(((distance / median - 1).abs() <= 1e-6).sum())
    below -= particles  # the pairs (i, i), at distance 0
    half = particles * (particles - 1) / 2  # of the ordered pairs
    assert below <= half <= below + equal


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


@pytest.fixture(params=["high", "medium"])
def allowed(request) -> Iterator[str]:
    """What torch.set_float32_matmul_precision has been told."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


TENSOR_SHAPES = pytest.mark.parametrize(
    "shape", [(1, 1000, 16), (1, 1000, 64), (1, 140, 2304)], ids=str
)


@TENSOR_SHAPES
def test_tensor_cores_where_allowed(backend, shape, allowed):
    p = gaussian_problem(*shape)
    got = stein_kernels.svgd_direction(p.x.cuda(), p.grad.cuda()).cpu()
    testing.assert_relative_error(
        got,
        reference.svgd_direction(p.x.double(), p.grad.double()),
        1e-5 if allowed == "high" else 5e-2,
    )


@TENSOR_SHAPES
@pytest.mark.parametrize("query", [False, True])
def test_gradients_on_tensor_cores(backend, shape, query, allowed):
    """Of the direction, the divergence and the Gram matrix, with all their inputs."""
    p = gaussian_problem(*shape)
    names = ("x", "grad", "query") if query else ("x", "grad")
    further = {"query": "query"} if query else {}

    def gradients(library, problem: Problem) -> list[torch.Tensor]:
        leaves = {name: testing.clone_leaf(getattr(problem, name)) for name in names}
        options = {key: leaves[name] for key, name in further.items()}
        h = problem.bandwidth
        phi = library.svgd_direction(leaves["x"], leaves["grad"], bandwidth=h, **options)
        divergence = library.stein_divergence(leaves["x"], leaves["grad"], bandwidth=h, **options)
        gram = library.rbf_gram(leaves["x"], *options.values(), bandwidth=h)
        total = phi.square().sum() + divergence.square().sum() + gram.square().sum()
        return list(torch.autograd.grad(total, list(leaves.values())))

    limits = {"high": (1e-4, 0.05), "medium": (0.1, 0.5)}
    limit, of_rows = limits[allowed]
    exact = gradients(reference, p.double())
    for name, a, w in zip(names, gradients(stein_kernels, to_device(p)), exact, strict=True):
        testing.assert_gradients_match(a.cpu(), w, relative_l2=limit, row_ratio=of_rows, name=name)


@pytest.mark.parametrize("op", ["svgd_direction", "stein_divergence", "rbf_gram"])
@pytest.mark.parametrize("shape", [(2, 40, 20), (1, 300, 17), (1, 20, 2051)], ids=str)
def test_gradients_are_made_by_the_backend_of_the_values(backend, op, shape, monkeypatch):
    """Autograd runs them in a thread of its own."""
    p, seen = to_device(gaussian_problem(*shape)), []
    launches = dispatch.launches
    monkeypatch.setattr(dispatch, "launches", lambda name: seen.append(name) or launches(name))
    x = testing.clone_leaf(p.x)
    arguments = (x,) if op == "rbf_gram" else (x, p.grad)
    getattr(stein_kernels, op)(*arguments).sum().backward()
    assert len(seen) >= 2
    assert set(seen) == {backend}


@pytest.mark.parametrize("shape", [(40, 20), (300, 17), (20, 2051)], ids=str)
def test_a_bandwidth_may_begin_anywhere(backend, shape):
    p = gaussian_problem(*shape)
    several = (torch.arange(1.0, 4.0) * shape[1]).cuda().requires_grad_()
    for op in ("svgd_direction", "stein_divergence", "rbf_gram"):
        arguments = (p.x,) if op == "rbf_gram" else (p.x, p.grad)
        on_device = [value.cuda() for value in arguments]
        got = getattr(stein_kernels, op)(*on_device, bandwidth=several[1])
        wide = [value.double() for value in arguments]
        exact = getattr(reference, op)(*wide, bandwidth=2.0 * shape[1])
        testing.assert_relative_error(got.detach().cpu(), exact, GRADIENT_LIMIT)
        got.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(20, 300), (20, 2051), (100, 2100), (140, 2304), LONGEST[1:]], ids=str
)
def test_steps_of_adam(backend, shape, dtype):
    p = gaussian_problem(*shape, dtype=dtype)
    moved = []
    for name, device in ((backend, "cuda"), ("reference", "cpu")):
        with stein_kernels.use_backend(name):
            particles = torch.nn.Parameter(p.x.to(device, copy=True))
            adam = SVGDAdam([particles], lr=1e-2, maximize=True)
            for _ in range(3):
                particles.grad = p.grad.to(device)
                adam.step()
        moved.append((particles.detach().cpu() - p.x).double())
    # a first step is the sign of a direction: where that is near 0 it may be either
    wrong = (moved[0] - moved[1]).abs() > (1e-4 if dtype == torch.float32 else 2e-2)
    assert wrong.double().mean() < 1e-3


@pytest.mark.parametrize("shape", [(2, 40, 20), (2, 300, 17), (2, 20, 2051)], ids=str)
def test_nan_stays_in_its_set(backend, shape):
    p = to_device(gaussian_problem(*shape))
    whole = stein_kernels.svgd_direction(p.x, p.grad)
    p.x[0, 0, 0] = float("nan")
    spoiled = stein_kernels.svgd_direction(p.x, p.grad)
    assert spoiled[0].isnan().all()
    assert torch.equal(spoiled[1], whole[1])


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


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
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
