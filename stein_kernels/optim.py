"""Optimisers whose gradient is the Stein direction: particles move together, each by Adam.

On a GPU a buffer of up to 128 particles takes one step in two passes over memory: one for the
distances, and one that forms the direction and updates parameters and moments on the spot. The
direction is never written. Elsewhere ``svgd_direction`` and the same arithmetic in torch run, with
the same numbers to rounding; also on DTensors, whose moments lie as they do.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stein_kernels import _backends, _ops, _optim_ops
from stein_kernels._checks import (
    accumulation_dtype,
    as_float,
    check_bandwidth_rule,
    check_flag,
    check_positive,
    check_scores,
    check_tensor,
    is_number,
)
from stein_kernels.functional import svgd_direction

_OP = "SVGDAdam"
_library = _ops.NAMESPACE  # importing _ops registers the op that _optim_ops calls
_MOMENTS = ("exp_avg", "exp_avg_sq")


class SVGDAdam(Optimizer):
    r"""Adam along the Stein variational gradient direction of every parameter.

    Each parameter is a buffer (M, P) of M particles with P coordinates, one row a particle; its
    kernel is its own, so what belongs to one particle (all weights of a network) should lie in one
    row. ``.grad`` holds in each row the gradient of that particle's loss -log p, as
    ``loss.sum().backward()`` leaves it. With :math:`\phi` =
    ``svgd_direction(param, -param.grad)`` a step is that of ``torch.optim.AdamW`` on the gradient
    :math:`-\phi`.

    **Sum the loss over particles, never** ``.mean()``: the mean divides every score by M but not
    the repulsion, so the particles sample :math:`p^{1/M}`. For the same reason scale the likelihood
    of a minibatch by N/B, of B examples out of N.

    A parameter that is a DTensor is sharded over its coordinates or not at all: a step then costs
    one all-reduce of M x M numbers, and each rank has the moments of its slice.

    Moments are in float32 for half types, else in the dtype of the parameter; they and the count
    of steps stay on the device, so a step can be captured in a CUDA graph (after a first step
    outside it; lr and the like are then constants of the graph).

    Args:
        params: parameters (M, P), with names or without, or groups of them; M and P at least 1.
        lr: step size.
        betas: how much of each moment is kept.
        eps: added to the root of the second moment.
        weight_decay: decoupled, as in AdamW.
        bandwidth: a positive number or a rule of :func:`stein_kernels.median_bandwidth`.
        leave_one_out: leave a particle's own score out of its direction.
        maximize: ``.grad`` is the gradient of log p itself, which is maximised.

    Raises:
        TypeError: an option or a parameter has the wrong type or dtype.
        ValueError: an option has the wrong value, or a parameter the wrong shape.

    Example:
        >>> particles = torch.nn.Parameter(torch.randn(20, 1000))
        >>> optimizer = SVGDAdam([particles], lr=1e-2)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     (0.5 * particles.square()).sum().backward()  # -log p of N(0, I)
        ...     optimizer.step()

    Source: Liu & Wang 2016, algorithm 1; Kingma & Ba 2015; Loshchilov & Hutter 2019.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        bandwidth: float | str = "liu_wang",
        leave_one_out: bool = False,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bandwidth": bandwidth,
            "leave_one_out": leave_one_out,
            "maximize": maximize,
        }
        self._constants: dict[Any, tuple[tuple[float, ...], Tensor]] = {}  # already on the device
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, its options and shapes checked first."""
        params = param_group["params"]
        if not isinstance(params, set):  # which torch refuses, since its order changes
            params = [params] if isinstance(params, Tensor) else list(params)
        options = _check_options({**self.defaults, **param_group})
        bandwidth = options["bandwidth"]
        for param in params:
            named = isinstance(param, tuple) and len(param) == 2
            _check_parameter(param[1] if named else param, bandwidth)
        super().add_param_group({**param_group, **options, "params": params})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            for param in group["params"]:
                if param.grad is not None:
                    self._move(param, check_scores(_OP, "grad", param.grad, param), index)
        return loss

    def _move(self, param: Tensor, grad: Tensor, index: int) -> None:
        group, state = self.param_groups[index], self.state[param]
        wide = accumulation_dtype(param.dtype)
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float64, device=param.device)
            for name in _MOMENTS:
                state[name] = torch.zeros_like(
                    param, dtype=wide, memory_format=torch.contiguous_format
                )
        state["step"] += 1
        factors = self._factors(index, state["step"]).to(wide)
        rule, leave_one_out = group["bandwidth"], group["leave_one_out"]
        first, second = (state[name] for name in _MOMENTS)
        sharded = hasattr(param, "device_mesh")
        if sharded or _backends.active_backend() == "reference":
            score = grad if group["maximize"] else -grad
            phi = svgd_direction(param, score, bandwidth=rule, leave_one_out=leave_one_out)
            if sharded:  # Adam is every coordinate's own: each rank moves those it has
                param, phi, first, second = (
                    value.to_local()  # type: ignore[attr-defined]
                    for value in (param, phi, first, second)
                )
            _optim_ops.descend(param, phi, first, second, factors)
            return
        _backends.require(_OP, param)
        h = None
        if not isinstance(rule, str):
            rule, h = "", torch.full((1,), float(rule), dtype=wide, device=param.device)
        torch.ops.stein_kernels.svgd_adam_step(
            *(param[None], grad[None], first[None], second[None], factors),
            *(h, rule, leave_one_out, _backends.active_backend()),
        )

    def _factors(self, index: int, step: Tensor) -> Tensor:
        """What a step multiplies by, (9,) in float64: see ``_optim_ops``."""
        group = self.param_groups[index]
        lr, (b1, b2), eps = float(group["lr"]), group["betas"], group["eps"]
        sign = 1.0 if group["maximize"] else -1.0
        values = (lr, 1.0, b1, 1 - b1, b2, 1 - b2, eps, 1 - lr * group["weight_decay"], sign)
        place = (index, step.device)
        if place not in self._constants or self._constants[place][0] != values:
            on_device = torch.tensor(values, dtype=torch.float64, device=step.device)
            self._constants[place] = (values, on_device)
        factors = self._constants[place][1].clone()
        factors[0] /= 1 - torch.pow(b1, step)
        factors[1] = (1 - torch.pow(b2, step)).rsqrt()
        return factors

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Torch casts a state to the dtype of its parameter: the moments keep theirs here.

        What hooks before make of the state is what is checked and loaded; hooks after see it.

        Raises:
            ValueError: the state is of another optimiser; says what is missing in it.
        """
        loaded: dict[str, Any] = {}

        def check(_: Optimizer, given: dict[str, Any]) -> None:
            _check_state(given, self.defaults)
            loaded.update(given)

        def widen(_: Optimizer) -> None:
            self._restore(loaded)

        with contextlib.ExitStack() as hooks:
            hooks.callback(self.register_load_state_dict_pre_hook(check).remove)
            hooks.callback(self.register_load_state_dict_post_hook(widen, prepend=True).remove)
            super().load_state_dict(state_dict)

    def _restore(self, state_dict: dict[str, Any]) -> None:
        """The states as they were saved, in the dtypes that a step makes them in."""
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved, params, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                dtype = torch.float64 if name == "step" else accumulation_dtype(param.dtype)
                self.state[param][name] = value.to(
                    param.device, dtype, copy=True, memory_format=torch.contiguous_format
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._constants = {}


def _check_parameter(param: Any, bandwidth: float | str) -> None:
    check_tensor(_OP, "a parameter", param)
    if param.dim() != 2:
        raise ValueError(
            f"{_OP}: a parameter must have shape (M, P), one particle a row, got "
            f"{tuple(param.shape)}: join the stacked parameters by "
            "torch.cat([p.flatten(1) for p in ...], 1)"
        )
    if 0 in param.shape:
        raise ValueError(
            f"{_OP}: a parameter must have shape (M, P) with at least one particle and one "
            f"coordinate, got {tuple(param.shape)}"
        )
    if not isinstance(bandwidth, str):
        check_positive(_OP, "bandwidth", bandwidth, accumulation_dtype(param.dtype))


def _check_state(state_dict: dict[str, Any], options: dict[str, Any]) -> None:
    """Refuse the state of another optimiser, such as that of torch's Adam."""
    groups, states = state_dict["param_groups"], state_dict["state"].values()
    needed = [("a group of parameters", list(options), group) for group in groups]
    needed += [("the state of a parameter", ["step", *_MOMENTS], state) for state in states]
    for owner, names, found in needed:
        missing = ", ".join(repr(name) for name in names if name not in found)
        if missing:
            raise ValueError(
                f"{_OP}: load_state_dict takes a state_dict of {_OP}; {owner} lacks {missing} "
                "and may be of another optimiser"
            )


def _check_options(group: dict[str, Any]) -> dict[str, Any]:
    """The options in types of Python: torch.load refuses those of numpy in a state."""
    options = {name: _check_number(name, group[name]) for name in ("lr", "eps", "weight_decay")}
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"{_OP}: betas must be two numbers, got {betas!r}")
    bandwidth = group["bandwidth"]
    return {
        **options,
        "betas": tuple(_check_number("betas", beta, 1.0) for beta in betas),
        "bandwidth": (
            check_bandwidth_rule(_OP, str(bandwidth))
            if isinstance(bandwidth, str)
            else _check_number("bandwidth", bandwidth)
        ),
        **{name: check_flag(_OP, name, group[name]) for name in ("leave_one_out", "maximize")},
    }


def _check_number(name: str, value: Any, below: float = math.inf) -> float:
    if not is_number(value):
        raise TypeError(f"{_OP}: {name} must be a number, got {type(value).__name__}")
    number = as_float(value)
    if not 0 <= number < below:
        raise ValueError(f"{_OP}: {name} must be at least 0 and less than {below}, got {number}")
    return number
