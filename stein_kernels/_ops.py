"""The ops as torch sees them: schemas, fakes, autograd, vmap, autocast. Torch only.

The C++ library adds kernels for the CPU key to these schemas, ``gpu`` those for the CUDA key; where
there are none the torch kernels of ``_composite`` run. Shapes are (B, M, d) throughout;
``functional`` folds leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from stein_kernels import _composite
from stein_kernels._checks import accumulation_dtype
from stein_kernels._schemas import BACKEND, count_values, of_values

NAMESPACE = "stein_kernels"
_GRADIENTS = "(Tensor, Tensor, Tensor, Tensor, Tensor)"
_PAIRS = "Tensor x, Tensor grad, Tensor? weights, Tensor? query"
SCHEMAS = {
    "median_distance": f"(Tensor x, {BACKEND}) -> Tensor",
    "rbf_gram": f"(Tensor x, Tensor? y, Tensor bandwidth, {BACKEND}) -> Tensor",
    "rbf_gram_backward": f"(Tensor v, Tensor x, Tensor? y, Tensor bandwidth, {BACKEND})"
    " -> (Tensor, Tensor, Tensor)",
    "svgd_direction": f"({_PAIRS}, Tensor? bandwidth, str rule, bool leave_one_out, {BACKEND})"
    " -> (Tensor, Tensor)",
    "svgd_direction_backward": f"(Tensor v, {_PAIRS}, Tensor bandwidth, bool leave_one_out,"
    f" {BACKEND}) -> {_GRADIENTS}",
    "stein_divergence": f"({_PAIRS}, Tensor bandwidth, bool leave_one_out, {BACKEND}) -> Tensor",
    "stein_divergence_backward": f"(Tensor v, {_PAIRS}, Tensor bandwidth, bool leave_one_out,"
    f" {BACKEND}) -> {_GRADIENTS}",
}


def _on_cuda(name: str) -> Callable[..., Any]:
    """The kernel of an op on CUDA tensors; nothing of it is imported before there is one."""
    count = count_values(SCHEMAS[name])

    def kernel(*arguments: Any) -> Any:
        from stein_kernels.gpu import dispatch

        return dispatch.run(name, arguments[:count], *arguments[count:])

    return kernel


_library = Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _composed = of_values(_schema, getattr(_composite, _name))
    _library.impl(_name, _composed, "CompositeExplicitAutograd")
    _library.impl(_name, _on_cuda(_name), "CUDA")


# --- fakes: shapes and dtypes only -------------------------------------------------------------


def _fresh(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)


def _empty_optional(value: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if value is None else _fresh(value)


@torch.library.register_fake("stein_kernels::median_distance", lib=_library)
def _(x, backend="auto"):
    return x.new_empty(x.shape[0], dtype=accumulation_dtype(x.dtype))


@torch.library.register_fake("stein_kernels::rbf_gram", lib=_library)
def _(x, y, bandwidth, backend="auto"):
    return x.new_empty(x.shape[0], x.shape[1], x.shape[1] if y is None else y.shape[1])


@torch.library.register_fake("stein_kernels::rbf_gram_backward", lib=_library)
def _(v, x, y, bandwidth, backend="auto"):
    return _fresh(x), _empty_optional(y, x), _fresh(bandwidth)


@torch.library.register_fake("stein_kernels::svgd_direction", lib=_library)
def _(x, grad, weights, query, bandwidth, rule, leave_one_out, backend="auto"):
    phi = _fresh(x if query is None else query)
    return phi, x.new_empty(x.shape[0], dtype=accumulation_dtype(x.dtype))


@torch.library.register_fake("stein_kernels::stein_divergence", lib=_library)
def _(x, grad, weights, query, bandwidth, leave_one_out, backend="auto"):
    return x.new_empty((x if query is None else query).shape[:2])


def _fake_gradients(v, x, grad, weights, query, bandwidth, leave_one_out, backend="auto"):
    return (
        _fresh(x),
        _fresh(x),
        _empty_optional(weights, x),
        _empty_optional(query, x),
        _fresh(bandwidth),
    )


for _name in ("svgd_direction_backward", "stein_divergence_backward"):
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake_gradients, lib=_library)


# --- autograd: first order by fused backward ops, second order refused in a sentence -------------


def _given(value: Tensor | None, gradient: Tensor) -> Tensor | None:
    return None if value is None else gradient


def _direction_setup(ctx, inputs, output):
    x, grad, weights, query, bandwidth, _, *ctx.further = inputs
    ctx.save_for_backward(x, grad, weights, query, output[1])
    ctx.rule_made_it = bandwidth is None


def _direction_backward(ctx, v, _):
    x, grad, weights, query, h = ctx.saved_tensors
    dx, dg, dw, dy, dh = torch.ops.stein_kernels.svgd_direction_backward(
        v, x, grad, weights, query, h, *ctx.further
    )
    dh = None if ctx.rule_made_it else dh
    return dx, dg, _given(weights, dw), _given(query, dy), dh, None, None, None


def _divergence_setup(ctx, inputs, output):
    *tensors, leave_one_out, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.further = leave_one_out, backend


def _divergence_backward(ctx, v):
    x, grad, weights, query, h = ctx.saved_tensors
    dx, dg, dw, dy, dh = torch.ops.stein_kernels.stein_divergence_backward(
        v, x, grad, weights, query, h, *ctx.further
    )
    return dx, dg, _given(weights, dw), _given(query, dy), dh, None, None


def _gram_setup(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gram_backward(ctx, v):
    x, y, h = ctx.saved_tensors
    dx, dy, dh = torch.ops.stein_kernels.rbf_gram_backward(v, x, y, h, ctx.backend)
    return dx, _given(y, dy), dh, None


def _refuse_second_order(name: str):
    def backward(ctx, *grads):
        raise RuntimeError(
            f"{name}: the fused kernels have first derivatives only; call it inside "
            "stein_kernels.use_backend('reference') to differentiate twice"
        )

    return backward


def _constant_setup(ctx, inputs, output):
    ctx.mark_non_differentiable(output)


def _constant_backward(ctx, *grads):
    return None


_AUTOGRAD = {
    "svgd_direction": (_direction_setup, _direction_backward),
    "stein_divergence": (_divergence_setup, _divergence_backward),
    "rbf_gram": (_gram_setup, _gram_backward),
    "median_distance": (_constant_setup, _constant_backward),
}
for _name, (_setup, _backward) in _AUTOGRAD.items():
    torch.library.register_autograd(
        f"{NAMESPACE}::{_name}", _backward, setup_context=_setup, lib=_library
    )
    if f"{_name}_backward" in SCHEMAS:
        torch.library.register_autograd(
            f"{NAMESPACE}::{_name}_backward", _refuse_second_order(_name), lib=_library
        )


# --- vmap: the new axis joins the batch; autocast: distances need float32 ------------------------


def _vmap_rule(name: str):
    op = getattr(torch.ops.stein_kernels, name)

    def rule(info, in_dims, *args):
        def in_front(value, axis):
            if not isinstance(value, Tensor):
                return value
            return (
                value.expand(info.batch_size, *value.shape)
                if axis is None
                else value.movedim(axis, 0)
            )

        moved = [in_front(value, axis) for value, axis in zip(args, in_dims, strict=True)]
        inner = moved[0].shape[1]  # not told by the results where the new axis is empty

        def unfold(value):
            """With the new axis, or as it is: empty in place of a gradient that nobody takes."""
            folded = value.shape[0] == info.batch_size * inner
            return (value.unflatten(0, (info.batch_size, inner)), 0) if folded else (value, None)

        outputs = op(*(v.flatten(0, 1) if isinstance(v, Tensor) else v for v in moved))
        if isinstance(outputs, Tensor):
            return unfold(outputs)
        unfolded, axes = zip(*map(unfold, outputs), strict=True)
        return unfolded, axes

    return rule


for _name in SCHEMAS:
    torch.library.register_vmap(f"{NAMESPACE}::{_name}", _vmap_rule(_name), lib=_library)
    if not _name.endswith("_backward"):
        for _device in ("cpu", "cuda"):
            torch.library.register_autocast(
                f"{NAMESPACE}::{_name}", _device, torch.float32, lib=_library
            )
