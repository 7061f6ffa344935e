"""What the flow of long rows must get right, over either backend's launches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from stein_kernels import _composite, reference
from stein_kernels.gpu import long_pairs, long_rows
from stein_kernels.testing import (
    Problem,
    assert_gradients_match,
    assert_relative_error,
    clone_leaf,
    gaussian_problem,
    generator,
    relative_error,
)

# Of bfloat16 one last digit: Triton's interpreter cuts the rest off where a device rounds.
LIMIT = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3, torch.float16: 5e-4}
GRADIENT = {torch.float32: 5e-6, torch.float64: 1e-12, torch.bfloat16: 4e-3, torch.float16: 5e-4}


class Mix(NamedTuple):
    """Which of the optional arguments are given."""

    weights: bool = False
    query: bool = False
    leave_one_out: bool = False
    rule: str | None = None

    def arguments(self, p: Problem) -> dict[str, Any]:
        return {
            "weights": p.weights if self.weights else None,
            "query": p.query if self.query else None,
            "leave_one_out": self.leave_one_out,
        }


MIXES = (
    Mix(),
    Mix(weights=True),
    Mix(query=True),
    Mix(weights=True, query=True),
    Mix(leave_one_out=True),
    Mix(weights=True, leave_one_out=True),
)


def unscaled(value: Tensor, mix: Mix, weights: Tensor) -> Tensor:
    """Without W/(W - w_j), which ``functional`` multiplies in."""
    if not (mix.weights and mix.leave_one_out):
        return value
    factor = 1 - weights / weights.sum(-1, keepdim=True)
    return value * (factor[..., None] if value.dim() == 3 else factor)


def strided(p: Problem, *names: str) -> Problem:
    """The same values in rows that lie further apart, starting between two aligned places."""

    def apart(value: Tensor) -> Tensor:
        b, m, d = value.shape
        room = value.new_full((b, m + 1, d + 5), float("nan"))[:, :m, 3 : 3 + d]
        return room.copy_(value)

    return p._replace(**{name: apart(getattr(p, name)) for name in names})


def flow_direction(kernels: Any, p: Problem, mix: Mix, precision: str) -> tuple[Tensor, Tensor]:
    weights, query = list(mix.arguments(p).values())[:2]
    h = None if mix.rule else p.bandwidth
    return long_rows.direction(
        kernels, p.x, p.grad, weights, query, h, mix.rule or "", mix.leave_one_out, precision
    )


def check_direction(
    kernels: Any,
    shape: tuple[int, int, int],
    mix: Mix = MIXES[0],
    dtype: torch.dtype = torch.float32,
    queries: int = 5,
    shift: float = 0.0,
    precision: str = "ieee",
    apart: bool = False,
) -> None:
    """Direction and bandwidth against the reference in float64."""
    p = gaussian_problem(*shape, dtype=dtype, queries=queries, shift=shift)
    phi, h = flow_direction(kernels, strided(p, "x", "query") if apart else p, mix, precision)
    exact = p.double()
    used = exact.bandwidth
    if mix.rule:
        used = reference.median_bandwidth(exact.x, rule=mix.rule)
        assert_relative_error(h, used, 1e-6 if h.dtype == torch.float32 else 1e-13)
    expected = reference.svgd_direction(exact.x, exact.grad, bandwidth=used, **mix.arguments(exact))
    expected = unscaled(expected, mix, exact.weights)
    assert phi.dtype == dtype
    assert_relative_error(phi, expected, LIMIT[dtype])


def check_backward(
    kernels: Any,
    shape: tuple[int, int, int],
    mix: Mix = MIXES[0],
    dtype: torch.dtype = torch.float32,
    shift: float = 0.0,
    apart: bool = False,
    precision: str = "ieee",
) -> None:
    """Direction's and divergence's gradients against autograd on the reference in float64."""
    p = gaussian_problem(*shape, dtype=dtype, shift=shift)
    used = strided(p, "x", "grad") if apart else p
    exact = p.double()
    for op in ("direction", "divergence"):
        targets = exact.query if mix.query else exact.x
        size = targets.shape if op == "direction" else targets.shape[:2]
        v = torch.randn(size, dtype=torch.float64, generator=generator(1)).to(dtype)
        leaves = Problem(*(clone_leaf(value) for value in exact))
        value = (reference.svgd_direction if op == "direction" else reference.stein_divergence)(
            leaves.x, leaves.grad, bandwidth=leaves.bandwidth, **mix.arguments(leaves)
        )
        value = unscaled(value, mix, exact.weights)
        # W/(W - w_j) is a factor outside the op: its own derivative is none of the op's.
        given = mix.arguments(used)
        arguments = (used.x, used.grad, given["weights"], given["query"], p.bandwidth)
        found = getattr(long_rows, f"{op}_backward")(
            kernels, v, *arguments, mix.leave_one_out, precision
        )
        if op == "divergence":
            out = long_rows.divergence(kernels, *arguments, mix.leave_one_out, precision)
            assert_relative_error(out, value.detach(), LIMIT[dtype])
        if mix.weights and mix.leave_one_out:
            prefix = "svgd" if op == "direction" else "stein"
            composite = getattr(_composite, f"{prefix}_{op}_backward")
            expected = composite(
                v.double(), exact.x, exact.grad, exact.weights, None, exact.bandwidth, True
            )
        else:
            (value * v.double()).sum().backward()
            expected = [leaf.grad for leaf in leaves]
        names = ("x", "grad", "weights", "query", "bandwidth")
        for name, actual, wanted in zip(names, found, expected, strict=True):
            if wanted is None or not wanted.numel():
                assert not actual.numel()
                continue
            if name == "bandwidth":  # a sum of terms of both signs: as exact as they are large
                terms = (torch.as_tensor(expected[1]) * exact.grad).abs().sum(
                    (1, 2)
                ) / exact.bandwidth
                assert ((actual - wanted).abs() <= 4 * GRADIENT[dtype] * terms).all(), op
                continue
            assert_gradients_match(actual, wanted, relative_l2=GRADIENT[dtype], name=f"{op} {name}")


def check_one_particle_backward(kernels: Any) -> None:
    """phi = g: the cotangent goes to grad alone."""
    p = gaussian_problem(2, 1, 130)
    v = torch.randn(p.x.shape, generator=generator(1))
    dx, dg, _, _, dh = long_rows.direction_backward(
        kernels, v, p.x, p.grad, None, None, p.bandwidth, False
    )
    assert torch.equal(dg, v)
    assert not dx.any()
    assert not dh.any()


def check_gram(
    kernels: Any, shape: tuple[int, int, int], query: bool, dtype: torch.dtype, shift: float = 0.0
) -> None:
    p = gaussian_problem(*shape, dtype=dtype, shift=shift, queries=9)
    y = p.query if query else None
    k = long_rows.gram(kernels, p.x, y, p.bandwidth)
    exact = Problem(*(clone_leaf(value) for value in p.double()))
    expected = reference.rbf_gram(
        exact.x, exact.query if query else None, bandwidth=exact.bandwidth
    )
    assert_relative_error(k, expected.detach(), LIMIT[dtype])
    if not query:
        assert torch.equal(k.diagonal(0, 1, 2), torch.ones_like(k[..., 0]))
    v = torch.randn(expected.shape, generator=generator(2)).to(dtype)
    found = long_rows.gram_backward(kernels, v.mT.contiguous().mT, p.x, y, p.bandwidth)
    (expected * v.double()).sum().backward()
    for actual, leaf in zip(found, (exact.x, exact.query, exact.bandwidth), strict=True):
        if leaf.grad is None:
            assert not actual.numel()
        else:
            assert_gradients_match(actual, leaf.grad, relative_l2=4 * GRADIENT[dtype])


def check_equal_particles(kernels: Any, precision: str) -> None:
    """More than half the pairs coincide: the median is 0 exactly, and its stand-in takes over."""
    x = torch.randn(1, 1, 200, generator=generator()).repeat(1, 20, 1)
    x[:, -4:] += torch.randn(1, 4, 200, generator=generator(1))
    expected = reference.median_distance(x.double())
    assert_relative_error(long_pairs.median_distance(kernels, x, precision), expected, 1e-6)
    same = x[:, :1].repeat(1, 5, 1)
    assert long_pairs.median_distance(kernels, same, precision).item() == 1
    assert long_pairs.median_distance(kernels, x[:, :1], precision).item() == 1


def check_nan_stays_in_its_set(kernels: Any) -> None:
    p = gaussian_problem(3, 12, 140)
    clean, h = flow_direction(kernels, p, Mix(rule="liu_wang"), "ieee")
    p.x[1, 4, 7] = float("nan")
    phi, used = flow_direction(kernels, p, Mix(rule="liu_wang"), "ieee")
    assert used[1].isnan()
    assert phi[1].isnan().all()
    assert torch.equal(used[[0, 2]], h[[0, 2]])
    assert torch.equal(phi[[0, 2]], clean[[0, 2]])


def check_same_bits_twice(kernels: Any) -> None:
    p = gaussian_problem(1, 30, 700)
    first, second = (flow_direction(kernels, p, MIXES[0], "ieee")[0] for _ in range(2))
    assert torch.equal(first, second)


def check_long(kernels: Any, shape: tuple[int, int], query: bool, shift: float) -> None:
    """Sets of 1e4 features and more, where the reference would take gigabytes: ``_composite``."""
    p = gaussian_problem(1, *shape, shift=shift, queries=20)
    exact = p.double()
    y = (p.query, exact.query) if query else (None, None)
    phi, h = long_rows.direction(kernels, p.x, p.grad, None, y[0], p.bandwidth, "", False, "tf32x3")
    expected, _ = _composite.svgd_direction(
        exact.x, exact.grad, None, y[1], exact.bandwidth, "", False
    )
    assert torch.equal(h, p.bandwidth)
    assert_relative_error(phi, expected, 2e-6)


def check_adam(kernels: Any, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """One launch is the direction, then Adam's arithmetic on its negative."""
    b, m, _ = shape
    p = gaussian_problem(*shape, dtype=dtype)
    wide = p.bandwidth.dtype
    squared = torch.cdist(p.x.double(), p.x.double()).square()
    k = torch.exp(-squared / p.bandwidth.double()[:, None, None]) / m
    k.diagonal(0, 1, 2).zero_()
    coef, own = k.to(wide), torch.full((b, m), 1 / m, dtype=wide)
    mass = coef.sum(1)
    first, second = (torch.randn(shape, generator=generator(seed)).to(wide) for seed in (3, 4))
    second = second.square()
    factors = torch.tensor([0.01, 1.3, 0.9, 0.1, 0.99, 0.01, 1e-8, 0.999, -1.0], dtype=wide)
    step, root, b1, c1, b2, c2, eps, decay, sign = factors.double().tolist()
    g, x = sign * p.grad.double(), p.x.double()
    pull = torch.einsum("bij,bijd->bjd", coef.double(), x[:, None] - x[:, :, None])
    phi = coef.double().mT @ g + 2 / p.bandwidth.double()[:, None, None] * pull + g / m
    moment = b1 * first.double() - c1 * phi
    square = b2 * second.double() + c2 * phi.square()
    expected = x * decay - step * moment / (square.sqrt() * root + eps)
    kernels.long_direction_adam(
        *(coef, mass, own, p.x, p.grad, p.bandwidth, first, second, factors, "ieee")
    )
    assert_relative_error(p.x, expected, LIMIT[dtype])
    assert relative_error(first, moment) < LIMIT[wide]
    assert relative_error(second, square) < LIMIT[wide]
