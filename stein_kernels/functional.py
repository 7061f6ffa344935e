"""The public functions: contracts, validation, and the call into the registered ops.

One convention everywhere: k(x, y) = exp(-|x - y|^2 / h).

Dtypes: float32, float64, bfloat16, float16. The half types accumulate in float32 and the result
comes back in the half type, a bandwidth excepted. Tensors of a call have one dtype. Under autocast
half types become float32 first, on every backend and in DTensors, so they may be mixed with float32
and results are float32; float64 stays as it is, and is not mixed.

Autograd: first derivatives by fused kernels; second ones, forward mode and the derivatives of
``torch.func`` inside ``use_backend("reference")``. A bandwidth that a rule made is a constant for
autograd; a bandwidth tensor receives its gradient.

DTensors: features (the last dimension) and batch dimensions may be sharded, particles may not. All
tensors of a call lie on one mesh and alike; a direction comes out as x lies, all other results are
replicated over the ranks that share the features. See ``_sharding``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from stein_kernels import _backends, _ops, reference
from stein_kernels._checks import (
    accumulation_dtype,
    autocasted,
    check_bandwidth,
    check_flag,
    check_particles,
    check_query,
    check_rule,
    check_scores,
    check_weights,
    fold_batch,
)

_library = _ops.NAMESPACE  # importing _ops registers the schemas that torch.ops.stein_kernels shows

_Function = TypeVar("_Function", bound=Callable[..., Tensor])


def _on_shards(function: _Function) -> _Function:
    """Takes DTensors too, told by their mesh: to import their class takes half a second.

    Autocast comes before, so that it is the same for whole tensors and parts.
    """

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Tensor:
        arguments = tuple(map(autocasted, given))
        options = {name: autocasted(value) for name, value in named.items()}
        for value in (*arguments, *options.values()):
            if isinstance(value, Tensor) and hasattr(value, "device_mesh"):
                from stein_kernels import _sharding

                return _sharding.run(function, arguments, options)
        return function(*arguments, **options)

    return call  # type: ignore[return-value]


@_on_shards
def svgd_direction(
    x: Tensor,
    grad: Tensor,
    *,
    weights: Tensor | None = None,
    query: Tensor | None = None,
    bandwidth: float | str | Tensor = "liu_wang",
    leave_one_out: bool = False,
) -> Tensor:
    r"""Stein variational gradient direction; a step is ``x = x + eps * svgd_direction(x, grad)``.

    .. math:: \phi(y_j) = \sum_i w_i\, k(x_i, y_j) \left[ g_i + \tfrac{2}{h} (y_j - x_i) \right]

    The direction ascends: g_i is the gradient of a log density. Nothing of size M x N is stored
    where that is larger than the inputs.

    Args:
        x: particles x_i, (..., M, d).
        grad: scores g_i = grad log p(x_i), (..., M, d).
        weights: w_i, (..., M), summing to 1; 1/M where omitted.
        query: targets y_j, (..., N, d); the particles themselves where omitted.
        bandwidth: h as a positive number, a tensor that broadcasts to the batch shape, or a rule's
            name (see :func:`median_bandwidth`). Values of a tensor are not checked, which would
            wait for the device: one that is not positive and finite gives NaN or garbage. A rule
            takes all particles alike, whatever their weights: pass the bandwidth where particles
            of weight 0 pad a set.
        leave_one_out: leave out the pair (i, i) and renormalise the other weights: divide by M - 1,
            or with weights multiply by W/(W - w_j), W = sum w. This is the U form, for particles
            that are drawn afresh at every step. Refused together with a query.

    Returns:
        phi(y_j), (..., N, d), in the dtype of x.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.

    Source: Liu & Wang 2016, eq. 8; Pu et al. 2017, eqs. 3 and 5; weights: its eqs. 12 and 13.

    Example:
        >>> x = torch.randn(100, 2)
        >>> for _ in range(500):
        ...     x = x + 0.3 * svgd_direction(x, -x)  # samples of N(0, I)
    """
    op = "svgd_direction"
    leave_one_out = check_flag(op, "leave_one_out", leave_one_out)
    x, grad, weights, query = _pairs(op, x, grad, weights, query, leave_one_out)
    bandwidth = check_bandwidth(op, bandwidth, x)
    if _use_reference(op, x, grad, weights, query, bandwidth):
        return reference.svgd_direction(
            *(x, grad),
            weights=weights,
            query=query,
            bandwidth=bandwidth,
            leave_one_out=leave_one_out,
        )
    return _direction(op, x, grad, weights, query, bandwidth, leave_one_out)


@_on_shards
def rbf_gram(
    x: Tensor, y: Tensor | None = None, *, bandwidth: float | str | Tensor = "liu_wang"
) -> Tensor:
    r"""Gram matrix of the radial basis function kernel.

    .. math:: K_{ij} = \exp(-\|x_i - y_j\|^2 / h)

    Args:
        x: (..., M, d).
        y: (..., N, d); x where omitted.
        bandwidth: as in :func:`svgd_direction`; a rule reads the distances within x.

    Returns:
        (..., M, N), in the dtype of x.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.

    Source: Liu & Wang 2016, section 5; Pu et al. 2017, section 5.
    """
    op = "rbf_gram"
    x = check_particles(op, "x", x)
    y = None if y is None else check_query(op, "y", y, x)
    bandwidth = check_bandwidth(op, bandwidth, x)
    if _use_reference(op, x, y, bandwidth):
        return reference.rbf_gram(x, y, bandwidth=bandwidth)
    ops = torch.ops.stein_kernels
    h, backend = _bandwidth(x, bandwidth), _backends.active_backend()
    gram = _run(op, ops.rbf_gram, fold_batch(x, 2), fold_batch(y, 2), h, backend)
    return gram.reshape(*x.shape[:-2], *gram.shape[1:])


@_on_shards
def median_bandwidth(x: Tensor, *, rule: str = "liu_wang") -> Tensor:
    r"""Bandwidth by the median heuristic, from the exact median of all pairwise distances.

    med is the midpoint median of the M(M-1)/2 distances |x_i - x_j| with i < j, and

    ==================  ==============================
    ``liu_wang``        h = med^2 / log(M + 1)
    ``median``          h = med
    ``median_squared``  h = med^2
    ==================  ==============================

    Where med is 0 (M < 2, or more than half the pairs coincide) the root mean squared pairwise
    distance takes its place, and 1 where that is 0 too. A set with a coordinate that is not finite
    has bandwidth NaN, and h is at least 100 times the smallest normal number of its dtype (1.2e-36
    in float32), which the square of a tiny distance falls below. The result is a constant for
    autograd. The pairs are never stored.

    All particles count alike; what pads a set is better left out of ``x`` here.

    Args:
        x: particles, (..., M, d).
        rule: one of the names above.

    Returns:
        h, (...), in the dtype of x; in float32 where that is a half type, whose range a square
        leaves. Every function takes it as ``bandwidth`` as it is.

    Raises:
        TypeError: wrong type or dtype. ValueError: wrong shape, or an unknown rule.

    Source: Liu & Wang 2016, section 5 (``liu_wang``); Pu et al. 2017, section 5 (``median``: the
    paper's words, "h is the median of pairwise distances").
    """
    op = "median_bandwidth"
    x = check_particles(op, "x", x).detach()
    rule = check_rule(op, rule)
    if _use_reference(op, x):
        return reference.median_bandwidth(x, rule=rule)
    return _bandwidth(x, rule).to(accumulation_dtype(x.dtype)).reshape(x.shape[:-2])


@_on_shards
def stein_divergence(
    x: Tensor,
    grad: Tensor,
    *,
    weights: Tensor | None = None,
    query: Tensor | None = None,
    bandwidth: float | str | Tensor = "liu_wang",
    leave_one_out: bool = False,
) -> Tensor:
    r"""Divergence of the Stein direction at every target, the particles held fixed.

    .. math:: \nabla\cdot\phi(y_j) = \sum_i w_i k_{ij} \left[ c\,d - c^2 \|y_j - x_i\|^2
              - c\,(y_j - x_i)^\top g_i \right], \qquad c = 2/h

    Arguments, dtypes and errors are those of :func:`svgd_direction`.

    Returns:
        (..., N), in the dtype of x.

    Source: Pu et al. 2017, theorem 1 (the trace of the Stein operator).
    """
    op = "stein_divergence"
    leave_one_out = check_flag(op, "leave_one_out", leave_one_out)
    x, grad, weights, query = _pairs(op, x, grad, weights, query, leave_one_out)
    bandwidth = check_bandwidth(op, bandwidth, x)
    if _use_reference(op, x, grad, weights, query, bandwidth):
        return reference.stein_divergence(
            *(x, grad),
            weights=weights,
            query=query,
            bandwidth=bandwidth,
            leave_one_out=leave_one_out,
        )
    return _divergence(op, x, grad, weights, query, bandwidth, leave_one_out)


@_on_shards
def kernel_stein_discrepancy(
    x: Tensor,
    score: Tensor,
    *,
    weights: Tensor | None = None,
    bandwidth: float | str | Tensor = "liu_wang",
    statistic: str = "u",
    leave_one_out: bool = False,
) -> Tensor:
    r"""Squared kernel Stein discrepancy between the particles and the density of the scores.

    .. math:: S = \sum_j w_j \left( g_j^\top \phi(x_j) + \nabla\cdot\phi(x_j) \right)

    ``"v"`` sums over all pairs: never negative, and the rate at which the direction lowers the KL
    divergence. ``"u"`` leaves the pairs (i, i) out, as ``leave_one_out=True`` does in both terms:
    negative at times, and unbiased for a bandwidth that does not depend on the particles. One by a
    rule does: for exact draws of N(0, I) the mean is then -0.02 with 10 particles in 2 dimensions,
    and 0 within error with 100.

    Args:
        x: particles, (..., M, d).
        score: grad log p(x_i), (..., M, d).
        weights: w_i, (..., M), summing to 1; 1/M where omitted.
        bandwidth: as in :func:`svgd_direction`.
        statistic: ``"u"`` or ``"v"``.
        leave_one_out: True asks for the U statistic whatever ``statistic`` says.

    Returns:
        (...), in the dtype of x.

    Raises:
        ValueError, TypeError: as :func:`svgd_direction`; another ``statistic``.

    Source: Liu, Lee & Jordan 2016, eqs. 14 and 15; Chwialkowski et al. 2016.
    """
    op = "kernel_stein_discrepancy"
    if not isinstance(statistic, str) or statistic not in ("u", "v"):
        raise ValueError(f"{op}: statistic must be 'u' or 'v', got {statistic!r}")
    x = check_particles(op, "x", x)
    score = check_scores(op, "score", score, x)
    weights = None if weights is None else check_weights(op, weights, x)
    bandwidth = check_bandwidth(op, bandwidth, x)
    left_out = check_flag(op, "leave_one_out", leave_one_out) or statistic == "u"
    if _use_reference(op, x, score, weights, bandwidth):
        return reference.kernel_stein_discrepancy(
            *(x, score),
            weights=weights,
            bandwidth=bandwidth,
            statistic=statistic,
            leave_one_out=leave_one_out,
        )
    dtype = x.dtype
    x, score = _widened(x, score)  # its two terms nearly cancel
    weights = None if weights is None else _widened(weights)[0]
    h = _bandwidth(x, bandwidth).reshape(x.shape[:-2])
    phi = _direction(op, x, score, weights, None, h, left_out)
    divergence = _divergence(op, x, score, weights, None, h, left_out)
    discrepancy = reference.average((phi * score).sum(-1) + divergence, weights)
    return discrepancy.to(dtype)


def _direction(op, x, grad, weights, query, bandwidth, leave_one_out):
    """phi (..., N, d) by the registered op, of arguments that were checked."""
    dtype = x.dtype
    if leave_one_out and weights is not None:
        x, grad, weights = _widened(x, grad, weights)
    rule, h = (bandwidth, None) if isinstance(bandwidth, str) else ("", fold_batch(bandwidth, 0))
    phi, _ = _run(
        *(op, torch.ops.stein_kernels.svgd_direction),
        *(fold_batch(x, 2), fold_batch(grad, 2), fold_batch(weights, 1), fold_batch(query, 2)),
        *(h, rule, leave_one_out, _backends.active_backend()),
    )
    phi = phi.reshape(*x.shape[:-2], *phi.shape[1:])
    if leave_one_out and weights is not None:
        phi = (phi * reference.renormaliser(weights)[..., None]).to(dtype)
    return phi


def _divergence(op, x, grad, weights, query, bandwidth, leave_one_out):
    """The divergence (..., N) by the registered op, of arguments that were checked."""
    dtype = x.dtype
    if leave_one_out and weights is not None:
        x, grad, weights = _widened(x, grad, weights)
    divergence = _run(
        *(op, torch.ops.stein_kernels.stein_divergence),
        *(fold_batch(x, 2), fold_batch(grad, 2), fold_batch(weights, 1), fold_batch(query, 2)),
        *(_bandwidth(x, bandwidth), leave_one_out, _backends.active_backend()),
    )
    divergence = divergence.reshape(*x.shape[:-2], divergence.shape[1])
    if leave_one_out and weights is not None:
        divergence = (divergence * reference.renormaliser(weights)).to(dtype)
    return divergence


def _widened(*values: Tensor) -> tuple[Tensor, ...]:
    """In the accumulation dtype: a sum of weights, W/(W - w_j) and what it multiplies may each
    leave the range of float16, and their product does not."""
    return tuple(value.to(accumulation_dtype(value.dtype)) for value in values)


def _run(op: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a registered op; torch cannot differentiate one by a transform of ``torch.func``.

    What it says then is of its own classes (pytorch#168393). Told by its error, not beforehand:
    that costs no call anything, and ends by itself where torch learns it.
    """
    try:
        return call(*arguments)
    except RuntimeError as error:
        if "setup_context" not in str(error):
            raise
        raise RuntimeError(
            f"{op}: derivatives by torch.func (grad, vjp, jacrev, hessian) need "
            "stein_kernels.use_backend('reference'), which has second ones too; "
            "torch.autograd.grad and backward() run the fused kernels"
        ) from error


def _pairs(op, x, grad, weights, query, leave_one_out):
    """Validate what the direction and its divergence have in common."""
    x = check_particles(op, "x", x)
    grad = check_scores(op, "grad", grad, x)
    weights = None if weights is None else check_weights(op, weights, x)
    query = None if query is None else check_query(op, "query", query, x)
    if leave_one_out and query is not None:
        raise ValueError(
            f"{op}: leave_one_out leaves out pair (i, i), so the targets must be the particles; "
            "got a query"
        )
    return x, grad, weights, query


def _use_reference(op: str, x: Tensor, *values: object) -> bool:
    """Whether the reference was asked for; refuses forward mode, which the ops would drop."""
    if _backends.active_backend() == "reference":
        return True
    if forward_ad._current_level >= 0 and any(
        isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None
        for value in (x, *values)
    ):
        raise RuntimeError(
            f"{op}: forward-mode derivatives need stein_kernels.use_backend('reference')"
        )
    _backends.require(op, x)
    return False


def _bandwidth(x: Tensor, bandwidth: str | Tensor) -> Tensor:
    """h as a tensor (B,) in the accumulation dtype."""
    if not isinstance(bandwidth, str):
        return fold_batch(bandwidth, 0)
    particles, backend = fold_batch(x.detach(), 2), _backends.active_backend()
    median = torch.ops.stein_kernels.median_distance(particles, backend)
    return reference.apply_rule(median, x.shape[-2], bandwidth)
