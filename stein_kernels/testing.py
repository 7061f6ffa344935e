"""What the tests of every kernel share: inputs, oracles, tolerances, and the choice of kernels.

The oracle is always :mod:`stein_kernels.reference` in float64, on the inputs as the kernel saw
them, so that rounding the inputs to a lower precision is no part of the error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

from stein_kernels import _composite, _ops, reference
from stein_kernels._schemas import count_values, of_values
from stein_kernels.gpu import flows, routes

ORACLE_ELEMENTS = 2**22  # pairs x features that the oracle holds at a time: 32 MB


class Problem(NamedTuple):
    """Arguments of a direction: x, grad (..., M, d); weights (..., M); query (..., N, d)."""

    x: Tensor
    grad: Tensor
    weights: Tensor
    query: Tensor
    bandwidth: Tensor  # (...), in the accumulation dtype

    def double(self) -> Problem:
        return Problem(*(value.double() for value in self))

    def options(self, *names: str) -> dict[str, Any]:
        """The optional arguments of these names, as keywords."""
        return {name: getattr(self, name) for name in names}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_problem(
    *shape: int,
    queries: int = 5,
    dtype: torch.dtype = torch.float32,
    shift: float = 0.0,
    seed: int = 0,
) -> Problem:
    """Particles of N(shift, I) with a noisy score, shape (..., M, d).

    Everything is drawn in float64 and rounded once. The bandwidth is of the size that the median
    heuristic gives, 2 d / log(M + 1), with a different factor for every set of the batch.
    """
    *batch, m, d = shape
    draw = generator(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=draw)

    x, query = normal(*shape), normal(*batch, queries, d)
    grad = -x + 0.1 * normal(*shape)
    weights = (0.5 * normal(*batch, m)).softmax(-1) if m else normal(*batch, m)
    spread = torch.rand(batch, dtype=torch.float64, generator=draw) + 0.5
    bandwidth = spread * (2 * max(d, 1) / torch.tensor(max(m, 1) + 1.0).log().item())
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return Problem(
        x=(x + shift).to(dtype),
        grad=grad.to(dtype),
        weights=weights.to(dtype),
        query=(query + shift).to(dtype),
        bandwidth=bandwidth.to(wide),
    )


def oracle_direction(
    x: Tensor, grad: Tensor, query: Tensor, bandwidth: Tensor, weights: Tensor | None = None
) -> Tensor:
    """The reference direction in float64, for sets and targets a few at a time.

    Shapes (B, M, d), (B, N, d), (B,) -> (B, N, d).
    The targets are queries, so nothing is left out.
    """
    x, grad, query, bandwidth = x.double(), grad.double(), query.double(), bandwidth.double()
    b, n = query.shape[:2]
    per_target = max(1, x[0].numel())
    targets = max(1, min(n, ORACLE_ELEMENTS // per_target))
    sets = max(1, ORACLE_ELEMENTS // (per_target * targets))
    out = torch.empty_like(query)
    for s in range(0, b, sets):
        for t in range(0, n, targets):
            part = slice(s, s + sets), slice(t, t + targets)
            out[part] = reference.svgd_direction(
                x[part[0]],
                grad[part[0]],
                weights=None if weights is None else weights[part[0]].double(),
                query=query[part],
                bandwidth=bandwidth[part[0]],
            )
    return out


# --- tolerances ----------------------------------------------------------------------------------


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| / max |expected|, in float64; 0 for empty tensors."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if expected.numel() == 0:
        return 0.0
    error = (actual.double() - expected.double()).abs().max()
    return (error / expected.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny)).item()


def assert_relative_error(actual: Tensor, expected: Tensor, limit: float) -> None:
    error = relative_error(actual, expected)
    if not error <= limit:  # also where the error is NaN
        raise AssertionError(f"relative error {error:.3g}, at most {limit:.3g} expected")


def assert_within_reference_error(
    actual: Tensor, low_precision_reference: Tensor, float64_reference: Tensor
) -> None:
    """At most twice the error of a plain implementation in the same precision, plus one rounding.

    The budget follows the problem's own conditioning, so no tolerance is tuned by hand
    (Dao et al., FlashAttention-3 tests). The rounding band is eps times the largest value.
    """
    exact = float64_reference.double()
    if actual.shape != exact.shape:
        raise AssertionError(f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}")
    if exact.numel() == 0:
        return
    allowed = (low_precision_reference.double() - exact).abs().max()
    band = torch.finfo(actual.dtype).eps * exact.abs().max()
    error, budget = (actual.double() - exact).abs().max(), 2 * allowed + band
    if not error <= budget:
        raise AssertionError(
            f"error {error:.3g} against float64, budget {budget:.3g} "
            f"= 2 x {allowed:.3g} of the low-precision reference + {band:.3g} of rounding"
        )


def assert_gradients_match(
    actual: Tensor, expected: Tensor, *, relative_l2: float, row_ratio: float = 0.05, name: str = ""
) -> None:
    """A gradient right as a whole and in every row.

    ``atol`` passes a backward that writes zeros into a few rows. So beside the relative L2 error,
    the norm of each row (last axis; a vector has one-element rows) has to be the expected norm
    within ``row_ratio``, where that norm is above ``relative_l2`` of the largest.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"{name}: {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if expected.numel() == 0:
        return
    actual, expected = actual.double(), expected.double()
    error = (actual - expected).norm() / expected.norm()
    if not error <= relative_l2:
        raise AssertionError(f"{name}: relative L2 error {error:.3g}, at most {relative_l2:.3g}")
    if expected.dim() < 2:
        actual, expected = actual[..., None], expected[..., None]
    got, wanted = actual.norm(dim=-1), expected.norm(dim=-1)
    counted = wanted > relative_l2 * wanted.max()
    ratios = (got / wanted)[counted]
    if not ((ratios - 1).abs() <= row_ratio).all():
        raise AssertionError(
            f"{name}: row norms are {ratios.min():.3g} to {ratios.max():.3g} times the expected"
        )


# --- unwritten memory ----------------------------------------------------------------------------


@contextmanager
def poison_empty(enabled: bool = True) -> Iterator[None]:
    """Fill every fresh ``empty`` tensor with NaN, in Python and C++: an unwritten output shows.

    ``enabled=False`` undoes it inside: for a tensor that must not be touched.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(enabled)
    torch.utils.deterministic.fill_uninitialized_memory = enabled  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


# --- implementations -----------------------------------------------------------------------------


def has_compiled_kernels(device: str = "CPU") -> bool:
    """Whether a compiled kernel is registered for every op at this dispatch key."""
    return all(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"{_ops.NAMESPACE}::{name}", device)
        for name in _ops.SCHEMAS
    )


@contextmanager
def composite_kernels(device: str = "CPU") -> Iterator[None]:
    """Run the torch kernels of ``_composite`` on this key, whatever is registered there."""

    def kernel(name: str) -> Callable[..., Any]:
        return of_values(_ops.SCHEMAS[name], getattr(_composite, name))

    with _in_place_of_the_registered(kernel, device):
        yield


@contextmanager
def gpu_flows(backend: str, launches: Any) -> Iterator[None]:
    """Run the flows of GPUs on CPU tensors.

    ``launches`` are those of a backend that run on a CPU: Triton's in the interpreter, or those of
    csrc/cuda on an emulated device.
    """

    def kernel(name: str) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            arguments = given[: count_values(_ops.SCHEMAS[name])]
            problem = routes.problem_of(name, arguments)
            route = routes.choose(name, problem, (backend,))
            return flows.run(name, problem, route, launches, arguments)

        return run

    with _in_place_of_the_registered(kernel, "CPU"):
        yield


@contextmanager
def _in_place_of_the_registered(
    make: Callable[[str], Callable[..., Any]], device: str
) -> Iterator[None]:
    library = Library(_ops.NAMESPACE, "IMPL")
    with warnings.catch_warnings():  # torch warns of every override; this one is undone below
        warnings.simplefilter("ignore", UserWarning)
        for name in _ops.SCHEMAS:
            library.impl(name, make(name), device, allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def clone_leaf(value: Any) -> Any:
    """A leaf that asks for its gradient, with the values and strides of a floating tensor."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone(memory_format=torch.preserve_format).requires_grad_()
