"""The op behind ``stein_kernels.optim``: one step of Adam along the direction, in place.

``factors`` (9,) in the accumulation dtype: lr / (1 - b1^t), 1 / sqrt(1 - b2^t), b1, 1 - b1, b2,
1 - b2, eps, 1 - lr decay, and the sign by which grad is the score (-1 where it is of a loss). They
are a tensor so that a captured graph counts its own steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library

from stein_kernels._schemas import BACKEND

NAMESPACE = "stein_kernels"
SCHEMA = (
    "svgd_adam_step(Tensor(a!) x, Tensor grad, Tensor(b!) first, Tensor(c!) second, "
    f"Tensor factors, Tensor? bandwidth, str rule, bool leave_one_out, {BACKEND}) -> ()"
)


def descend(x: Tensor, phi: Tensor, first: Tensor, second: Tensor, factors: Tensor) -> None:
    """Adam with decoupled decay on the gradient -phi; x in its dtype, all else in T."""
    step, root, b1, c1, b2, c2, eps, decay, _ = factors.unbind()
    phi = phi.to(first.dtype)
    first.mul_(b1).sub_(c1 * phi)
    second.mul_(b2).addcmul_(c2 * phi, phi)
    x.copy_(x.to(first.dtype) * decay - step * first / (second.sqrt() * root + eps))


def svgd_adam_step(
    x: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    factors: Tensor,
    bandwidth: Tensor | None,
    rule: str,
    leave_one_out: bool,
    backend: str = "auto",
) -> None:
    """x, grad (B, M, d) of one dtype; moments (B, M, d) of T; bandwidth (B,), or by a rule."""
    score = grad * factors[8].to(grad.dtype)
    phi, _ = torch.ops.stein_kernels.svgd_direction(
        x, score, None, None, bandwidth, rule, leave_one_out, backend
    )
    descend(x, phi, first, second, factors)


def _on_cuda(
    x: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    factors: Tensor,
    bandwidth: Tensor | None,
    rule: str,
    leave_one_out: bool,
    backend: str = "auto",
) -> None:
    """In one launch after those of the bandwidth, where the flow of long rows takes the shape."""
    from stein_kernels.gpu import dispatch, long_rows, routes

    arguments = (x, grad, first, second, factors, bandwidth, rule, leave_one_out)
    backends = dispatch.backends_for(x.device, backend)
    if backends and long_rows.fuses(x, first, second):
        problem = routes.problem_of("svgd_direction", (x, grad, None, None))
        route = routes.choose("svgd_direction", problem, backends)
        if route.flow == "long_rows":
            with torch.cuda.device(x.device):
                long_rows.adam_step(
                    dispatch.launches(route.backend), *arguments, precision=route.precision
                )
            # the launch writes without torch: a graph that has saved them must hear of it
            changed = [each for each in (x, first, second) if not each.is_inference()]
            torch.autograd.graph.increment_version(changed)
            return
    svgd_adam_step(*arguments, backend)


_library = Library(NAMESPACE, "FRAGMENT")
_library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("svgd_adam_step", svgd_adam_step, "CompositeExplicitAutograd")
_library.impl("svgd_adam_step", _on_cuda, "CUDA")


@torch.library.register_fake("stein_kernels::svgd_adam_step", lib=_library)
def _(x, grad, first, second, factors, bandwidth, rule, leave_one_out, backend="auto"):
    return None
