"""The ops as torch knows them: schemas, fakes, autograd, vmap, autocast, determinism."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.library import opcheck

import stein_kernels as sk
from stein_kernels import _ops
from stein_kernels.testing import assert_relative_error, gaussian_problem

pytestmark = pytest.mark.parametrize("kernels", ["compiled", "composite", "cuda"], indirect=True)
# torch loads its forward-mode decompositions through torch.jit.script, which it deprecates itself
JIT_WARNING = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPS = ["svgd_direction", "stein_divergence"]


def sample_inputs(name, dtype, sizes, *, weighted=False, at_query=False, left_out=False, rule=""):
    """Arguments of the op of this name; (B, M, N, d) sizes."""
    b, m, n, d = sizes
    p = gaussian_problem(b, m, d, queries=n, dtype=dtype)
    x, grad = p.x, p.grad
    weights = p.weights if weighted else None
    query = p.query if at_query else None
    v = gaussian_problem(b, n if at_query else m, d, dtype=dtype, seed=1).x
    h = p.bandwidth
    pairs = (x, grad, weights, query)
    return {
        "median_distance": (x,),
        "rbf_gram": (x, query, h),
        "rbf_gram_backward": (x @ (x if query is None else query).mT, x, query, h),
        "svgd_direction": (*pairs, None if rule else h, rule, left_out),
        "svgd_direction_backward": (v, *pairs, h, left_out),
        "stein_divergence": (*pairs, h, left_out),
        "stein_divergence_backward": (v.sum(-1), *pairs, h, left_out),
    }[name]


def check(name, arguments):
    """Everything opcheck knows, with gradients of what is differentiable."""
    if not name.endswith("_backward") and name != "median_distance":
        arguments = tuple(
            value.requires_grad_() if torch.is_tensor(value) else value for value in arguments
        )
    opcheck(getattr(torch.ops.stein_kernels, name).default, arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(_ops.SCHEMAS))
def test_opcheck_dtypes(kernels, name, dtype):
    check(name, sample_inputs(name, dtype, (2, 5, 4, 3), weighted=True, at_query=True))


@pytest.mark.parametrize("options", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("name", [name for name in _ops.SCHEMAS if name != "median_distance"])
def test_opcheck_options(kernels, name, options):
    weighted, at_query, left_out = options
    if left_out and at_query:
        at_query = False
    arguments = sample_inputs(
        *(name, torch.float32, (2, 5, 4, 3)),
        weighted=weighted,
        at_query=at_query,
        left_out=left_out,
    )
    check(name, arguments)


@pytest.mark.parametrize(
    "sizes", [(0, 5, 4, 3), (2, 0, 4, 3), (2, 5, 0, 3), (2, 5, 4, 0), (1,) * 4]
)
@pytest.mark.parametrize("name", list(_ops.SCHEMAS))
def test_opcheck_sizes(kernels, name, sizes):
    check(name, sample_inputs(name, torch.float32, sizes, weighted=True, at_query=True))


@pytest.mark.parametrize("rule", ["liu_wang", "median", "median_squared"])
def test_opcheck_rules(kernels, rule):
    check("svgd_direction", sample_inputs("svgd_direction", torch.float32, (2, 5, 4, 3), rule=rule))


# --- vmap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, 0), (2, 1)])
def test_vmap(kernels, op, in_dims):
    """By the rule: torch warns when it loops instead, and warnings are errors here."""
    p = gaussian_problem(3, 7, 4)
    x, grad = (
        value[0] if axis is None else value.movedim(0, axis)
        for value, axis in zip((p.x, p.grad), in_dims, strict=True)
    )
    function = getattr(sk, op)
    actual = torch.vmap(function, in_dims)(x, grad)
    expected = torch.stack(
        [
            function(
                p.x[0] if in_dims[0] is None else p.x[i],
                p.grad[0] if in_dims[1] is None else p.grad[i],
            )
            for i in range(3)
        ]
    )
    assert_relative_error(actual, expected, 1e-6)


def test_vmap_over_options_and_out_dims(kernels):
    p = gaussian_problem(3, 7, 4)

    def direction(weights, query, bandwidth):
        return sk.svgd_direction(
            p.x[0], p.grad[0], weights=weights, query=query, bandwidth=bandwidth
        )

    actual = torch.vmap(direction, out_dims=1)(p.weights, p.query, p.bandwidth)
    expected = [direction(*(value[i] for value in p[2:])) for i in range(3)]
    assert_relative_error(actual, torch.stack(expected, 1), 1e-6)


@pytest.mark.parametrize("sizes", [(0, 7, 3), (0, 2, 7, 3), (2, 0, 7, 3), (0, 0, 7, 3)], ids=str)
def test_vmap_over_nothing(kernels, sizes):
    p = gaussian_problem(*sizes)
    x, h = p.x.requires_grad_(), p.bandwidth.requires_grad_()
    calls = {
        "phi": lambda x, g, h: sk.svgd_direction(x, g, bandwidth=h),
        "by a rule": sk.svgd_direction,
        "divergence": lambda x, g, h: sk.stein_divergence(x, g, bandwidth=h),
        "gram": lambda x, g, h: sk.rbf_gram(x, bandwidth=h),
        "h": lambda x, g: sk.median_bandwidth(x),
    }
    for name, call in calls.items():
        arguments = (x, p.grad, h)[: 2 if name in ("by a rule", "h") else 3]
        found, expected = torch.vmap(call)(*arguments), call(*arguments)
        assert found.shape == expected.shape
        if name != "h":
            gradients = torch.autograd.grad(found.sum(), arguments[0:3:2])
            assert [g.shape for g in gradients] == [v.shape for v in arguments[0:3:2]]


def test_vmap_nested_over_a_batch(kernels):
    p = gaussian_problem(2, 3, 4, 7, 5)
    expected = sk.svgd_direction(p.x, p.grad, query=p.query)
    call = torch.vmap(torch.vmap(lambda x, g, y: sk.svgd_direction(x, g, query=y)))
    assert_relative_error(call(p.x, p.grad, p.query), expected, 1e-6)


def test_vmap_of_the_other_functions(kernels):
    p = gaussian_problem(3, 7, 4)
    assert torch.equal(torch.vmap(sk.median_bandwidth)(p.x), sk.median_bandwidth(p.x))
    grams = torch.vmap(sk.rbf_gram)(p.x, p.query)
    assert_relative_error(grams, sk.rbf_gram(p.x, p.query), 1e-6)
    discrepancies = torch.vmap(sk.kernel_stein_discrepancy)(p.x, p.grad)
    expected = sk.kernel_stein_discrepancy(p.x, p.grad)
    torch.testing.assert_close(discrepancies, expected, rtol=1e-4, atol=1e-4)


def test_backward_through_vmap(kernels):
    p = gaussian_problem(3, 7, 4)
    inputs = [value.requires_grad_() for value in (p.x, p.grad, p.weights, p.query)]

    def gradients(call):
        return torch.autograd.grad(call(*inputs).square().sum(), inputs)

    def direction(x, grad, weights, query):
        return sk.svgd_direction(x, grad, weights=weights, query=query)

    for actual, expected in zip(
        gradients(torch.vmap(direction)), gradients(direction), strict=True
    ):
        assert_relative_error(actual, expected, 5e-6)


# --- autocast, functional derivatives, forward mode ----------------------------------------------


def test_autocast_runs_in_float32(kernels):
    p = gaussian_problem(9, 4)
    expected = sk.svgd_direction(p.x, p.grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = sk.svgd_direction(p.x, p.grad)
        lower = sk.svgd_direction(p.x.bfloat16(), p.grad)
        gram = sk.rbf_gram(p.x.bfloat16())
        divergence = sk.stein_divergence(p.x.bfloat16(), p.grad.bfloat16())
        discrepancy = sk.kernel_stein_discrepancy(p.x.bfloat16(), p.grad)
        bandwidth = sk.median_bandwidth(p.x)
    assert torch.equal(mixed, expected)
    results = (mixed, lower, gram, divergence, discrepancy, bandwidth)
    assert {result.dtype for result in results} == {torch.float32}


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_autocast_is_the_same_on_every_backend(kernels, backend):
    p = gaussian_problem(9, 4)
    x, grad, weights = p.x.bfloat16(), p.grad.half(), p.weights.bfloat16()
    calls = {
        "svgd_direction": ((x, grad), {"weights": weights, "leave_one_out": True}),
        "stein_divergence": ((x, grad), {"weights": weights, "bandwidth": p.bandwidth.half()}),
        "kernel_stein_discrepancy": ((x, grad), {"weights": p.weights}),
        "rbf_gram": ((x, p.query), {}),
        "median_bandwidth": ((x,), {}),
    }
    with sk.use_backend(backend):
        for name, (arguments, options) in calls.items():
            wide = {k: v.float() if torch.is_tensor(v) else v for k, v in options.items()}
            expected = getattr(sk, name)(*(value.float() for value in arguments), **wide)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = getattr(sk, name)(*arguments, **options)
            assert found.dtype == torch.float32
            assert torch.equal(found, expected)


TRANSFORMS = {
    "grad": torch.func.grad,
    "jacrev": torch.func.jacrev,
    "hessian": torch.func.hessian,
    "vmap of grad": lambda function: lambda x: torch.vmap(torch.func.grad(function))(x[None])[0],
    "grad of vmap": lambda function: torch.func.grad(lambda x: torch.vmap(function)(x[None]).sum()),
}


def total(op, grad):
    """The sum of what an op makes of x."""
    others = () if op == "rbf_gram" else (grad,)
    return lambda x: getattr(sk, op)(x, *others, bandwidth=2.0).sum()


@JIT_WARNING
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", [*OPS, "kernel_stein_discrepancy", "rbf_gram"])
def test_torch_func_names_the_way_out(kernels, op, transform):
    """pytorch#168393: where torch comes to do it, nothing is raised any more, and this fails."""
    p = gaussian_problem(5, 2)
    with pytest.raises(RuntimeError, match=rf"^{op}: .*torch\.func .*use_backend\('reference'\)"):
        TRANSFORMS[transform](total(op, p.grad))(p.x)


@JIT_WARNING
@pytest.mark.parametrize("op", [*OPS, "kernel_stein_discrepancy", "rbf_gram"])
def test_the_reference_has_torch_func(kernels, op):
    p = gaussian_problem(5, 2, dtype=torch.float64)
    function = total(op, p.grad)
    (expected,) = torch.autograd.grad(function(p.x.requires_grad_()), p.x)
    x = p.x.detach()
    with sk.use_backend("reference"):
        for transform in ("grad", "vmap of grad", "grad of vmap"):
            assert_relative_error(TRANSFORMS[transform](function)(x), expected, 1e-12)
        assert torch.func.hessian(function)(x).isfinite().all()


def test_torch_func_of_what_an_op_is_constant_for(kernels):
    p = gaussian_problem(5, 2)
    phi = sk.svgd_direction(p.x, p.grad)
    by_others = torch.func.grad(lambda x: (sk.svgd_direction(p.x, p.grad) * x).sum())
    by_detached = torch.func.grad(lambda x: (sk.svgd_direction(x.detach(), p.grad) * x).sum())
    assert torch.equal(by_others(p.x), phi)
    assert torch.equal(by_detached(p.x), phi)
    found = torch.func.grad(lambda x: sk.median_bandwidth(x) * x.sum())(p.x)
    assert_relative_error(found, sk.median_bandwidth(p.x).expand(5, 2), 1e-6)


@JIT_WARNING
@pytest.mark.parametrize("op", [*OPS, "kernel_stein_discrepancy", "rbf_gram"])
def test_forward_mode_is_refused(kernels, op):
    """Dropped tangents would be a silent zero."""
    p = gaussian_problem(9, 4)
    with forward_ad.dual_level():
        x = forward_ad.make_dual(p.x, torch.ones_like(p.x))
        arguments = (x,) if op == "rbf_gram" else (x, p.grad)
        with pytest.raises(RuntimeError, match=r"forward-mode.*use_backend\('reference'\)"):
            getattr(sk, op)(*arguments, bandwidth=p.bandwidth)


@JIT_WARNING
def test_the_reference_has_forward_mode(kernels):
    p = gaussian_problem(5, 2, dtype=torch.float64)
    tangent = torch.randn_like(p.x)
    with sk.use_backend("reference"), forward_ad.dual_level():
        x = forward_ad.make_dual(p.x, tangent)
        phi = sk.svgd_direction(x, p.grad, bandwidth=1.0)
        forward = forward_ad.unpack_dual(phi).tangent
    assert forward is not None
    step = 1e-6
    ahead, behind = (
        sk.svgd_direction(p.x + sign * step * tangent, p.grad, bandwidth=1.0) for sign in (1, -1)
    )
    assert_relative_error(forward, (ahead - behind) / (2 * step), 1e-8)


# --- determinism ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 20, 8), (1, 600, 3), (1, 300, 40), (1, 12, 30000)])
def test_same_bits_twice_and_on_any_number_of_threads(kernels, shape):
    p = gaussian_problem(*shape)

    def everything():
        inputs = [value.clone().requires_grad_() for value in (p.x, p.grad, p.bandwidth)]
        x, grad, h = inputs
        phi = sk.svgd_direction(x, grad, bandwidth=h)
        divergence = sk.stein_divergence(x, grad, bandwidth=h)
        total = phi.square().sum() + divergence.square().sum()
        gradients = torch.autograd.grad(total, inputs)
        return (phi, divergence, sk.median_bandwidth(p.x), sk.rbf_gram(p.x), *gradients)

    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 1, 2):
            torch.set_num_threads(count)
            runs.append(everything())
    finally:
        torch.set_num_threads(threads)
    for again, on_two, first in zip(runs[1], runs[2], runs[0], strict=True):
        assert torch.equal(again, first)
        if kernels == "compiled":  # torch's own matrix product may split its sums by threads
            assert torch.equal(on_two, first)
