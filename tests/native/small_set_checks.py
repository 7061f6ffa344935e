"""What the launches of small sets must get right, over either backend's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stein_kernels import reference
from stein_kernels.gpu import small_set
from stein_kernels.testing import (
    Problem,
    assert_gradients_match,
    assert_relative_error,
    assert_within_reference_error,
    gaussian_problem,
    generator,
)

LIMIT = {torch.float32: 2e-6, torch.float64: 1e-13}
GRADIENT_LIMIT = {torch.float32: 5e-6, torch.float64: 1e-12}
CANCELLATION = 20  # dh is a sum over pairs of both signs, some 300 times smaller than its terms


def unscaled(values: Tensor, weights: Tensor | None, leave_one_out: bool) -> Tensor:
    """The reference's direction without W/(W - w_j), which ``functional`` multiplies in."""
    if weights is None or not leave_one_out:
        return values
    total = weights.sum(-1, keepdim=True)
    return values * ((total - weights) / total)[..., None]


def expected(p: Problem, bandwidth: Any, weighted: bool, leave_one_out: bool) -> Tensor:
    weights = p.weights if weighted else None
    phi = reference.svgd_direction(
        p.x, p.grad, weights=weights, bandwidth=bandwidth, leave_one_out=leave_one_out
    )
    return unscaled(phi, weights, leave_one_out)


def direction(
    kernels: Any, p: Problem, bandwidth: Any, weighted: bool, leave_one_out: bool
) -> tuple[Tensor, Tensor]:
    given = None if isinstance(bandwidth, str) else bandwidth
    rule = bandwidth if isinstance(bandwidth, str) else ""
    weights = p.weights if weighted else None
    return small_set.direction(kernels, p.x, p.grad, weights, given, rule, leave_one_out)


def check_direction(
    kernels: Any,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    bandwidth: str | None = "liu_wang",
    weighted: bool = False,
    leave_one_out: bool = False,
    shift: float = 0.0,
) -> None:
    """Against the reference in float64, the bandwidth too; None takes the problem's bandwidth."""
    p = gaussian_problem(*shape, dtype=dtype, shift=shift)
    exact = p.double()
    wanted = bandwidth or exact.bandwidth
    options = weighted, leave_one_out
    phi, h = direction(kernels, p, bandwidth or p.bandwidth, *options)
    assert phi.dtype == p.x.dtype
    assert h.dtype == p.bandwidth.dtype
    h_exact = reference.resolve_bandwidth(exact.x, wanted)
    assert_relative_error(h, h_exact, LIMIT[h.dtype])
    if dtype in LIMIT:
        assert_relative_error(phi, expected(exact, wanted, *options), LIMIT[dtype])
    else:
        low = expected(p, bandwidth or p.bandwidth, *options)
        assert_within_reference_error(phi, low, expected(exact, wanted, *options))


def check_backward(
    kernels: Any,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    weighted: bool = False,
    leave_one_out: bool = False,
    shift: float = 0.0,
) -> None:
    """Against torch's derivatives of the reference in float64."""
    p = gaussian_problem(*shape, dtype=dtype, shift=shift)
    v = torch.randn(shape, dtype=torch.float64, generator=generator(1)).to(dtype)
    weights = p.weights if weighted else None
    dx, dg, dw, dy, dh = small_set.direction_backward(
        kernels, v, p.x, p.grad, weights, p.bandwidth, leave_one_out
    )
    assert dy.numel() == 0
    exact = Problem(*(value.requires_grad_() for value in p.double()))
    phi = expected(exact, exact.bandwidth, weighted, leave_one_out)
    names = ["x", "grad", "bandwidth", *(["weights"] if weighted else [])]
    wanted = torch.autograd.grad(phi, [getattr(exact, name) for name in names], v.double())
    got = {"x": dx, "grad": dg, "bandwidth": dh, "weights": dw}
    for name, gradient in zip(names, wanted, strict=True):
        actual = got[name]
        assert actual.dtype == getattr(p, name).dtype
        if (shape[1] == 1 and name in ("x", "bandwidth")) or gradient.abs().max() == 0:
            assert not actual.any(), name
            continue
        limit = GRADIENT_LIMIT.get(actual.dtype, 4 * torch.finfo(actual.dtype).eps)
        limit *= CANCELLATION if name == "bandwidth" else 1
        assert_gradients_match(actual, gradient, relative_l2=limit, name=name)


def check_other_tensors_are_left_alone(kernels: Any, shape: tuple[int, ...]) -> None:
    p = gaussian_problem(*shape)
    before = [value.clone() for value in p]
    phi, h = direction(kernels, p, p.bandwidth, True, False)
    small_set.direction_backward(kernels, phi, p.x, p.grad, p.weights, p.bandwidth, False)
    assert h is p.bandwidth
    assert all(torch.equal(*pair) for pair in zip(p, before, strict=True))


def check_same_bits_twice(kernels: Any, shape: tuple[int, ...]) -> None:
    p = gaussian_problem(*shape)
    runs = []
    for _ in range(2):
        phi, h = direction(kernels, p, "liu_wang", True, False)
        gradients = small_set.direction_backward(kernels, phi, p.x, p.grad, p.weights, h, False)
        runs.append([phi, h, *gradients])
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def check_ties_and_degenerate_sets(kernels: Any, rule: str, d: int) -> None:
    """Integer coordinates, more than half the pairs coincident, all coincident, two values."""
    draw = generator(0)
    m = 21
    x = torch.zeros(5, m, d)
    x[0] = torch.randint(-2, 3, (m, d), generator=draw).float()
    x[1, : m - 3] = 1.5
    x[1, m - 3 :] = torch.randn(3, d, generator=draw)
    x[2] = 7.25
    x[3, ::2] = 1.0
    x[4] = torch.arange(m)[:, None] * 1e-25  # squares underflow
    grad = torch.randn(5, m, d, generator=draw)
    phi, h = small_set.direction(kernels, x, grad, None, None, rule, False)
    wanted = reference.median_bandwidth(x, rule=rule)
    assert ((h - wanted).abs() <= 1e-6 * wanted).all(), (h, wanted)
    assert h[2] == reference.median_bandwidth(x[2], rule=rule)
    exact = reference.svgd_direction(x.double(), grad.double(), bandwidth=wanted.double())
    assert_relative_error(phi, exact, 2e-6)


def check_a_set_that_is_not_finite_stays_alone(kernels: Any, m: int, d: int, bad: float) -> None:
    p = gaussian_problem(3, m, d)
    clean, h_clean = direction(kernels, p, "liu_wang", False, False)
    p.x[1, m // 2, d - 1] = bad
    phi, h = direction(kernels, p, "liu_wang", False, False)
    assert h[1].isnan()
    assert phi[1].isnan().all()
    for other in (0, 2):
        assert torch.equal(phi[other], clean[other])
        assert torch.equal(h[other], h_clean[other])
    phi, _ = direction(kernels, p, p.bandwidth, False, False)
    assert phi[1].isnan().all()


def check_an_outlier(kernels: Any) -> None:
    """One distance far above the others, and a cluster far below: the counts are no straight line.

    Every order of the same particles must select the same median.
    """
    draw = generator(3)
    x = torch.randn(1, 27, 3, generator=draw) * torch.logspace(-6, 6, 27)[None, :, None]
    x = torch.cat([x[:, torch.randperm(27, generator=draw)] for _ in range(3)])
    _, h = small_set.direction(kernels, x, x, None, None, "median", False)
    assert_relative_error(h, reference.median_bandwidth(x.double(), rule="median"), 1e-6)
    assert (h == h[0]).all()


def check_least_bandwidth(kernels: Any, dtype: torch.dtype) -> None:
    """Of particles whose h would leave the range of the type: finite, as the reference's."""
    x = torch.finfo(dtype).tiny ** 0.51 * gaussian_problem(2, 12, 5).x.double()
    x = x.to(dtype)
    grad = torch.zeros_like(x)
    for rule in ("liu_wang", "median_squared"):
        phi, h = small_set.direction(kernels, x, grad, None, None, rule, True)
        assert (h == reference.least_bandwidth(dtype)).all()
        assert phi.isfinite().all()
