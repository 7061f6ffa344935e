"""First derivatives of the fused kernels, for every mix of arguments; second by the reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import stein_kernels as sk
from stein_kernels import reference
from stein_kernels.testing import (
    assert_gradients_match,
    assert_relative_error,
    gaussian_problem,
)

FUSED = pytest.mark.parametrize("kernels", ["compiled", "composite", "cuda"], indirect=True)
REFERENCE = pytest.mark.parametrize("kernels", ["reference"], indirect=True)
OPS = ["svgd_direction", "stein_divergence"]
OPTIONAL = ["weights", "query", "bandwidth"]
MIXES = [mix for n in range(4) for mix in itertools.combinations(OPTIONAL, n)]


def leaves(p, names=("x", "grad", "weights", "query", "bandwidth")):
    return {name: getattr(p, name).detach().clone().requires_grad_() for name in names}


def caller(op, names, **fixed):
    """The op as a function of the tensors of these names alone, in order."""

    def call(*tensors):
        return getattr(sk, op)(**dict(zip(names, tensors, strict=True)), **fixed)

    return call


@pytest.mark.parametrize("kernels", ["compiled", "composite"], indirect=True)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("query", [False, True])
@pytest.mark.parametrize("gap", [20.0, 200.0, 1e4])
@pytest.mark.parametrize("knows", [False, True], ids=["h of a mode", "h of a rule"])
@pytest.mark.parametrize("shape", [(100, 2), (60, 20), (400, 20), (20, 4500)], ids=str)
def test_gradients_with_modes_far_apart(kernels, op, query, gap, knows, shape):
    """No term is as large as the distance: the bandwidth's gradient would have the wrong sign.

    A rule's bandwidth is of the size of the gap, where modes have half of the particles each.
    """
    p = gaussian_problem(*shape, queries=40)
    y = x = p.x.clone()
    x[::2] += gap
    if query:
        y = x[:40] + 0.3
    v = torch.randn(len(y), shape[1])
    v = v if op == "svgd_direction" else v[:, 0]
    bandwidth = reference.median_bandwidth(x).item() if knows else float(shape[1])

    def gradients(call, dtype):
        wanted = [value.to(dtype).requires_grad_() for value in (x, p.grad, p.weights)]
        wanted += [torch.tensor(bandwidth, dtype=dtype, requires_grad=True)]
        wanted += [y.to(dtype).requires_grad_()] if query else []
        a, grad, weights, h, *at = wanted
        options = {"query": at[0]} if query else {}
        value = call(a, grad, weights=weights, bandwidth=h, **options)
        found = torch.autograd.grad((value * v.to(dtype)).sum(), wanted)
        return [value.detach(), *found]

    exact = gradients(getattr(reference, op), torch.float64)
    for actual, expected in zip(gradients(getattr(sk, op), torch.float32), exact, strict=True):
        limit = 1e-3 if actual.dim() == 0 else 1e-5
        assert_relative_error(actual, expected, limit)


@pytest.mark.parametrize("kernels", ["compiled", "composite"], indirect=True)
@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e9, 1e12])
@pytest.mark.parametrize("of", ["x", "grad"])
def test_gradient_of_the_divergence_in_small_and_large_units(kernels, scale, of):
    """(2/h)^2 is beyond float32, what it is multiplied with brings it back."""
    p = gaussian_problem(20, 3)
    scaled = {"x": p.x * scale, "grad": p.grad / scale}

    def gradient(call, dtype):
        wide = {name: value.to(dtype) for name, value in scaled.items()}
        wanted = wide[of].requires_grad_()
        return torch.autograd.grad((scale**2 * call(**wide)).sum(), wanted)[0]

    exact = gradient(reference.stein_divergence, torch.float64)
    assert_relative_error(gradient(sk.stein_divergence, torch.float32), exact, 1e-5)


@pytest.mark.parametrize("kernels", ["compiled", "composite"], indirect=True)
@pytest.mark.parametrize("query", [False, True])
def test_bandwidths_gradient_of_the_gram_matrix_with_modes_far_apart(kernels, query):
    p = gaussian_problem(100, 3, queries=40)
    x = p.x.clone()
    x[::2] += 1e4
    v = torch.randn(100, 40 if query else 100)

    def gradient(call, dtype):
        h = torch.tensor(3.0, dtype=dtype, requires_grad=True)
        y = (x[:40] + 0.3).to(dtype) if query else None
        return torch.autograd.grad((call(x.to(dtype), y, bandwidth=h) * v.to(dtype)).sum(), h)[0]

    exact = gradient(reference.rbf_gram, torch.float64)
    assert_relative_error(gradient(sk.rbf_gram, torch.float32), exact, 1e-5)


# --- against finite differences, in float64 ------------------------------------------------------


@FUSED
@pytest.mark.parametrize("left_out", [False, True], ids=["v", "u"])
@pytest.mark.parametrize("mix", MIXES, ids="-".join)
@pytest.mark.parametrize("op", OPS)
def test_every_mix_of_arguments(kernels, op, mix, left_out):
    if left_out and "query" in mix:
        mix = tuple(name for name in mix if name != "query")
    p = gaussian_problem(2, 5, 3, queries=4, dtype=torch.float64)
    names = ("x", "grad", *mix)
    fixed = {} if "bandwidth" in mix else {"bandwidth": p.bandwidth}
    fixed["leave_one_out"] = left_out
    assert gradcheck(caller(op, names, **fixed), tuple(leaves(p, names).values()))


@FUSED
@pytest.mark.parametrize("names", [("x", "bandwidth"), ("x", "y", "bandwidth")])
def test_gram(kernels, names):
    p = gaussian_problem(2, 5, 3, queries=4, dtype=torch.float64)
    values = {"x": p.x, "y": p.query, "bandwidth": p.bandwidth}
    inputs = tuple(values[name].requires_grad_() for name in names)
    assert gradcheck(caller("rbf_gram", names), inputs)


@FUSED
@pytest.mark.parametrize("statistic", ["u", "v"])
@pytest.mark.parametrize("mix", [(), ("weights",), ("bandwidth",), ("weights", "bandwidth")])
def test_discrepancy(kernels, statistic, mix):
    p = gaussian_problem(2, 5, 3, dtype=torch.float64)
    names = ("x", "score", *mix)
    values = {"x": p.x, "score": p.grad, "weights": p.weights, "bandwidth": p.bandwidth}
    fixed = {} if "bandwidth" in mix else {"bandwidth": p.bandwidth}
    inputs = tuple(values[name].requires_grad_() for name in names)
    assert gradcheck(
        caller("kernel_stein_discrepancy", names, statistic=statistic, **fixed), inputs
    )


@FUSED
@pytest.mark.parametrize("op", OPS)
def test_the_same_tensor_in_two_roles_collects_both_gradients(kernels, op):
    p = gaussian_problem(5, 3, dtype=torch.float64)
    x = p.x.requires_grad_()
    assert gradcheck(lambda x: getattr(sk, op)(x, x * 0.5, query=x, bandwidth=p.bandwidth), (x,))


@FUSED
def test_one_bandwidth_for_a_whole_batch_collects_every_set(kernels):
    p = gaussian_problem(3, 5, 2, dtype=torch.float64)
    h = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda h: sk.svgd_direction(p.x, p.grad, bandwidth=h), (h,))


# --- float32 against the reference in float64 ----------------------------------------------------


@FUSED
@pytest.mark.parametrize("shift", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("shape", [(3, 65, 3), (2, 40, 33), (1, 17, 300)])
@pytest.mark.parametrize("left_out", [False, True], ids=["v", "u"])
@pytest.mark.parametrize("op", OPS)
def test_float32(kernels, op, shape, shift, left_out):
    p = gaussian_problem(*shape, queries=21, shift=shift)
    names = ["x", "grad", "weights", "bandwidth"] + ([] if left_out else ["query"])
    v = torch.randn_like(p.x if left_out else p.query)
    v = v if op == "svgd_direction" else v[..., 0]

    def gradients(function, problem):
        inputs = leaves(problem, names)
        out = function(**inputs, leave_one_out=left_out)
        return torch.autograd.grad(out, list(inputs.values()), v.to(out.dtype))

    actual = gradients(getattr(sk, op), p)
    expected = gradients(getattr(reference, op), p.double())
    for name, got, wanted in zip(names, actual, expected, strict=True):
        assert got.dtype == torch.float32
        # the terms of a bandwidth's gradient cancel over all pairs of the set
        limit = 1e-5 if name == "bandwidth" else 5e-6
        assert_gradients_match(got, wanted, relative_l2=limit, row_ratio=0.02, name=name)


@FUSED
def test_gram_in_float32(kernels):
    p = gaussian_problem(2, 65, 7, queries=33, shift=100.0)
    v = torch.randn(2, 65, 33)
    got, wanted = [], []
    for out, q, function in ((got, p, sk.rbf_gram), (wanted, p.double(), reference.rbf_gram)):
        inputs = [value.requires_grad_() for value in (q.x, q.query, q.bandwidth)]
        gram = function(inputs[0], inputs[1], bandwidth=inputs[2])
        out.extend(torch.autograd.grad(gram, inputs, v.to(gram.dtype)))
    for name, actual, expected in zip(("x", "y", "bandwidth"), got, wanted, strict=True):
        assert_gradients_match(actual, expected, relative_l2=5e-6, row_ratio=0.02, name=name)


@pytest.mark.parametrize(
    ("kernels", "itself"),
    [
        *[("compiled", True), ("compiled", False), ("composite", True), ("composite", False)],
        ("cuda", True),  # what those lose of a copy stands in docs/design.md
    ],
    indirect=["kernels"],
)
@pytest.mark.parametrize("shape", [(1, 2, 100), (2, 60, 100), (1, 33, 300)], ids=str)
def test_gram_of_small_values_beside_a_diagonal_of_ones(kernels, itself, shape):
    """The pair (i, i) has k = 1 and no gradient: its rounding would be all there is."""
    p = gaussian_problem(*shape)
    v = torch.rand(*shape[:2], shape[1])

    def gradients(call, dtype):
        x = p.x.to(dtype).requires_grad_()
        h = torch.full(shape[:1], shape[2] / 4, dtype=dtype, requires_grad=True)
        y = {} if itself else {"y": x.detach().clone()}
        return torch.autograd.grad((call(x, **y, bandwidth=h) * v.to(dtype)).sum(), (x, h))

    exact = gradients(reference.rbf_gram, torch.float64)
    for actual, expected in zip(gradients(sk.rbf_gram, torch.float32), exact, strict=True):
        assert_relative_error(actual, expected, 1e-5)


# --- who receives a gradient ---------------------------------------------------------------------


@pytest.mark.parametrize("rule", reference.RULES)
def test_the_bandwidth_of_a_rule_is_a_constant(kernels, rule):
    """The gradient is that of the same bandwidth given as a tensor."""
    p = gaussian_problem(2, 9, 3, dtype=torch.float64)
    v = torch.randn_like(p.x)

    def gradient(bandwidth):
        x = p.x.clone().requires_grad_()
        return torch.autograd.grad(sk.svgd_direction(x, p.grad, bandwidth=bandwidth), x, v)[0]

    constant = sk.median_bandwidth(p.x, rule=rule)
    assert not constant.requires_grad
    torch.testing.assert_close(gradient(rule), gradient(constant), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("alone", [False, True], ids=["no weight", "one has all"])
def test_weights_that_leave_none_to_the_others(kernels, op, alone):
    """W/(W - w_j) is 0 there by convention, and its gradient is none, not NaN."""
    p = gaussian_problem(2, 5, 3, dtype=torch.float64)
    weights = torch.zeros_like(p.weights)
    weights[:, 0] = float(alone)
    options = {"weights": weights.requires_grad_(), "bandwidth": p.bandwidth}
    value = getattr(sk, op)(p.x, p.grad, leave_one_out=True, **options)
    (gradient,) = torch.autograd.grad(value.square().sum() + value.sum(), weights)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@FUSED
@pytest.mark.parametrize("op", [*OPS, "kernel_stein_discrepancy"])
@pytest.mark.parametrize("rest", [1e-3, 1e-7, 1e-12])
def test_one_weight_is_nearly_all(kernels, op, rest):
    """W - w_j cancels in float32; what the others leave is as exact as ever."""
    p = gaussian_problem(1, 20, 5)
    weights = torch.full((1, 20), rest / 19).index_fill(1, torch.tensor([3]), 1.0)
    options = {} if op == "kernel_stein_discrepancy" else {"leave_one_out": True}

    def both(dtype, call):
        w = weights.to(dtype).requires_grad_()
        x, grad, h = p.x.to(dtype), p.grad.to(dtype), p.bandwidth.to(dtype)
        value = call(x, grad, weights=w, bandwidth=h, **options)
        return value, torch.autograd.grad(value.sum(), w)[0]

    value, gradient = both(torch.float32, getattr(sk, op))
    exact, exact_gradient = both(torch.float64, getattr(reference, op))
    assert_relative_error(value, exact, 2e-6)
    assert_relative_error(value[..., 3:4], exact[..., 3:4], 1e-5)
    assert_relative_error(gradient, exact_gradient, 1e-4)


@FUSED
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("only", ["x", "grad", "weights", "query", "bandwidth"])
def test_one_argument_alone_receives_its_gradient(kernels, op, only):
    p = gaussian_problem(2, 9, 3, dtype=torch.float64)
    everything = leaves(p)
    out = getattr(sk, op)(**everything)
    v = torch.randn_like(out)
    expected = dict(
        zip(everything, torch.autograd.grad(out, list(everything.values()), v), strict=True)
    )
    inputs = {name: value.detach() for name, value in everything.items()}
    inputs[only].requires_grad_()
    out = getattr(sk, op)(**inputs)
    out.backward(v)
    for name, value in inputs.items():
        if name == only:
            torch.testing.assert_close(value.grad, expected[name], rtol=1e-12, atol=1e-14)
        else:
            assert value.grad is None


def test_nothing_asks_for_a_gradient(kernels):
    p = gaussian_problem(9, 3)
    assert not sk.svgd_direction(p.x, p.grad).requires_grad
    with torch.no_grad():
        assert not sk.svgd_direction(p.x.requires_grad_(), p.grad).requires_grad


@FUSED
def test_backward_runs_twice_on_a_retained_graph(kernels):
    p = gaussian_problem(9, 3)
    x = p.x.requires_grad_()
    loss = sk.svgd_direction(x, p.grad).square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)


@FUSED
def test_an_argument_changed_in_place_before_backward_is_refused(kernels):
    p = gaussian_problem(9, 3)
    x = p.x.clone().requires_grad_()
    loss = sk.svgd_direction(x, p.grad, bandwidth=p.bandwidth).sum()
    with torch.no_grad():
        x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- second order --------------------------------------------------------------------------------


@REFERENCE
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("left_out", [False, True], ids=["v", "u"])
def test_the_reference_is_differentiable_twice(kernels, op, left_out):
    p = gaussian_problem(4, 2, dtype=torch.float64)
    names = ("x", "grad", "weights", "bandwidth")
    call = caller(op, names, leave_one_out=left_out)
    assert gradgradcheck(call, tuple(leaves(p, names).values()))


@FUSED
@pytest.mark.parametrize("op", [*OPS, "rbf_gram"])
def test_the_fused_kernels_refuse_second_order(kernels, op):
    p = gaussian_problem(4, 2)
    x = p.x.requires_grad_()
    arguments = (x,) if op == "rbf_gram" else (x, p.grad)
    out = getattr(sk, op)(*arguments, bandwidth=p.bandwidth)
    (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"{op}.*first derivatives only.*use_backend\('refer"):
        first.sum().backward()
