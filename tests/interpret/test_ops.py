"""The public functions over the flows of GPUs, with Triton's launches in the interpreter.

The flows themselves run over the CUDA C++ kernels in tests/kernels, on an emulated device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch

import stein_kernels
from stein_kernels import reference, testing
from stein_kernels.gpu import routes
from stein_kernels.testing import gaussian_problem

FLOWS = {"small_set": (2, 19, 20), "packed": (2, 133, 18), "long_rows": (2, 9, 2051)}
MIXES = [(), ("weights",), ("query",), ("bandwidth",), ("weights", "query", "bandwidth")]
OPS = ("svgd_direction", "stein_divergence")


@pytest.fixture(autouse=True, scope="module")
def _interpreted() -> Iterator[None]:
    from stein_kernels.triton import launches

    with testing.gpu_flows("triton", launches):
        yield


@pytest.mark.parametrize(("flow", "shape"), FLOWS.items())
def test_each_shape_takes_its_flow(flow, shape):
    b, m, d = shape
    problem = routes.Problem(b, m, m, d, torch.float32, query=False)
    assert routes.choose("svgd_direction", problem, ("triton",)).flow == flow


@pytest.mark.parametrize("shape", FLOWS.values(), ids=FLOWS.keys())
@pytest.mark.parametrize(
    ("mix", "left_out"),
    [
        case
        for case in itertools.product(MIXES, (False, True))
        if not (case[1] and "query" in case[0])
    ],
)
@pytest.mark.parametrize("op", OPS)
def test_value_and_gradients(op, mix, left_out, shape):
    p = gaussian_problem(*shape, shift=10.0)
    oracle = p.double()
    names = ("x", "grad", *mix)
    results = []
    v = torch.randn(p.x.shape, generator=testing.generator(1))
    for library, problem in ((stein_kernels, p), (reference, oracle)):
        leaves = {name: testing.clone_leaf(getattr(problem, name)) for name in names}
        value = getattr(library, op)(
            *(leaves[name] for name in ("x", "grad")),
            leave_one_out=left_out,
            **{name: leaves[name] for name in mix},
        )
        cotangent = v[:, : value.shape[1], : value.shape[2] if value.dim() > 2 else 1]
        cotangent = cotangent.reshape(value.shape).to(value.dtype)
        results.append((value, torch.autograd.grad(value, list(leaves.values()), cotangent)))
    (got, gradients), (expected, wanted) = results
    testing.assert_relative_error(got, expected, 2e-6 if op == "svgd_direction" else 1e-5)
    for name, a, w in zip(names, gradients, wanted, strict=True):
        testing.assert_gradients_match(a, w, relative_l2=2e-5, name=name)


@pytest.mark.parametrize("allowed", ["highest", "high"])
def test_nan_stays_nan_on_the_tensor_cores(allowed):
    """A distance that is NaN is no distance of 0, whose kernel value would be 1."""
    p = gaussian_problem(1, 70, 20)
    p.x[0, 3, 5] = float("nan")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        phi = stein_kernels.svgd_direction(p.x, p.grad, bandwidth=2.0)
    finally:
        torch.set_float32_matmul_precision(before)
    assert phi.isnan().all()


@pytest.mark.parametrize("shape", list(FLOWS.values())[1:], ids=list(FLOWS)[1:])
@pytest.mark.parametrize("query", [False, True])
def test_gram(shape, query):
    p = gaussian_problem(*shape)
    y = p.query if query else None
    x, wide = testing.clone_leaf(p.x), testing.clone_leaf(p.x.double())
    got = stein_kernels.rbf_gram(x, y, bandwidth=p.bandwidth)
    y = None if y is None else y.double()
    expected = reference.rbf_gram(wide, y, bandwidth=p.bandwidth.double())
    testing.assert_relative_error(got, expected, 2e-6)
    v = torch.randn(expected.shape, generator=testing.generator(1))
    (actual,) = torch.autograd.grad(got, x, v)
    (wanted,) = torch.autograd.grad(expected, wide, v.double())
    testing.assert_gradients_match(actual, wanted, relative_l2=2e-5)


@pytest.mark.parametrize("rule", reference.RULES)
@pytest.mark.parametrize("shape", FLOWS.values(), ids=FLOWS.keys())
def test_the_rule_of_the_bandwidth(shape, rule):
    p = gaussian_problem(*shape)
    got = stein_kernels.svgd_direction(p.x, p.grad, bandwidth=rule)
    expected = reference.svgd_direction(p.x.double(), p.grad.double(), bandwidth=rule)
    testing.assert_relative_error(got, expected, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", FLOWS.values(), ids=FLOWS.keys())
def test_dtypes_and_strides(shape, dtype):
    p = gaussian_problem(*shape, dtype=dtype)
    x = torch.stack([p.x, p.x], -1)[..., 0]  # the last stride is 2
    grad = p.grad.mT.contiguous().mT
    got = stein_kernels.svgd_direction(x, grad, bandwidth=p.bandwidth)
    exact = reference.svgd_direction(p.x.double(), p.grad.double(), bandwidth=p.bandwidth.double())
    if dtype == torch.float64:
        testing.assert_relative_error(got, exact, 1e-12)
        return
    low = reference.svgd_direction(p.x, p.grad, bandwidth=p.bandwidth)
    testing.assert_within_reference_error(got, low, exact)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_less_than_float32_where_torch_is_told_so(precision):
    """The interpreter multiplies in float32, so this checks the formulas of those kernels alone."""
    p = gaussian_problem(1, 133, 18)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        got = stein_kernels.svgd_direction(p.x, p.grad, bandwidth=p.bandwidth)
    finally:
        torch.set_float32_matmul_precision(before)
    expected = reference.svgd_direction(
        p.x.double(), p.grad.double(), bandwidth=p.bandwidth.double()
    )
    testing.assert_relative_error(got, expected, 1e-5)


@pytest.mark.parametrize(("gap", "limit"), [(30.0, 2e-6), (1e3, 2e-5), (1e4, 3e-4)])
def test_distant_modes_cost_the_split_form_no_more_digits_than_documented(gap, limit):
    """docs/performance-gpu.md; up to 16 features they cost none."""
    p = gaussian_problem(133, 18)
    h = 2 * 18 / math.log(133)  # gaps of 11, 370 and 3,700 of its roots
    x = p.x.clone()
    x[::2] += gap / math.sqrt(18)
    phi = stein_kernels.svgd_direction(x, p.grad, bandwidth=h)
    exact = reference.svgd_direction(x.double(), p.grad.double(), bandwidth=h)
    testing.assert_relative_error(phi, exact, limit)
