"""One contract per argument, shared by every public function: what is checked and what is said."""

from __future__ import annotations

import math
import numbers
from typing import Any, overload

import torch
from torch import Tensor

from stein_kernels.reference import RULES

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for the half types, else the dtype itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def check_tensor(op: str, name: str, value: Any, like: Tensor | None = None) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    _check_dense(
        *(op, name, value),
        "; call once for each of its sets, or pad them with particles of weight 0 and pass the "
        "bandwidth",
    )
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{op}: {name} must have one of the dtypes {_names(DTYPES)}, got {value.dtype}"
        )
    if like is not None and value.dtype != like.dtype:
        raise TypeError(f"{op}: {name} must have the dtype of x, {like.dtype}, got {value.dtype}")
    if like is not None and value.device != like.device:
        raise ValueError(
            f"{op}: {name} must be on the device of x, {like.device}, got {value.device}"
        )
    return value


def _check_dense(op: str, name: str, value: Tensor, way_out: str = "") -> None:
    must = f"{op}: {name} must be a dense (strided) tensor, got"
    if value.is_nested:
        raise TypeError(f"{must} a nested one{way_out}")
    # dynamo refuses sparse tensors itself, and this question in the backward of a Function
    if not torch.compiler.is_dynamo_compiling() and value.layout is not torch.strided:
        raise TypeError(f"{must} {value.layout}")


def autocasted(value: Any) -> Any:
    """Under autocast, a half type in float32: distances need it; any other argument as it is.

    Before all checks and before a backend is chosen, so that they find what the op will run on.
    """
    if not isinstance(value, Tensor) or value.dtype not in (torch.bfloat16, torch.float16):
        return value
    device = value.device.type
    return value.float() if device != "meta" and torch.is_autocast_enabled(device) else value


def check_particles(op: str, name: str, value: Any, like: Tensor | None = None) -> Tensor:
    value = check_tensor(op, name, value, like)
    if value.dim() < 2:
        raise ValueError(f"{op}: {name} must have shape (..., M, d), got {tuple(value.shape)}")
    return value


def check_scores(op: str, name: str, value: Any, x: Tensor) -> Tensor:
    value = check_particles(op, name, value, x)
    if value.shape != x.shape:
        raise ValueError(
            f"{op}: {name} must have the shape of x, {tuple(x.shape)}, got {tuple(value.shape)}"
        )
    return value


def check_weights(op: str, value: Any, x: Tensor) -> Tensor:
    value = check_tensor(op, "weights", value, x)
    if value.dim() < 1 or value.shape[-1] != x.shape[-2] or not _expands(value.shape[:-1], x):
        raise ValueError(
            f"{op}: weights must have shape (..., M) = {tuple(x.shape[:-1])}, "
            f"got {tuple(value.shape)}"
        )
    return value.expand(x.shape[:-1])


def check_query(op: str, name: str, value: Any, x: Tensor) -> Tensor:
    value = check_particles(op, name, value, x)
    if value.shape[-1] != x.shape[-1] or not _expands(value.shape[:-2], x):
        expected = (*x.shape[:-2], "N", x.shape[-1])
        raise ValueError(
            f"{op}: {name} must have shape ({', '.join(map(str, expected))}), "
            f"got {tuple(value.shape)}"
        )
    return value.expand(*x.shape[:-2], *value.shape[-2:])


def _expands(batch: torch.Size, x: Tensor) -> bool:
    """Whether ``batch`` broadcasts to the batch shape of x without enlarging it."""
    target = x.shape[:-2]
    aligned = target[len(target) - len(batch) :]
    return len(batch) <= len(target) and all(
        have == want or have == 1 for have, want in zip(batch, aligned, strict=True)
    )


def check_rule(op: str, value: Any) -> str:
    if not _is_rule(value):
        raise ValueError(f"{op}: rule must be one of {_rules()}, got {value!r}")
    return value


def _is_rule(value: Any) -> bool:
    return isinstance(value, str) and value in RULES  # an array is equal to each in its own way


def _rules() -> str:
    return ", ".join(repr(rule) for rule in RULES)


def check_bandwidth(op: str, value: Any, x: Tensor) -> str | Tensor:
    """A rule's name, or a tensor of the batch shape of x in its accumulation dtype."""
    if isinstance(value, str):
        return check_bandwidth_rule(op, value)
    dtype = accumulation_dtype(x.dtype)
    if isinstance(value, Tensor):
        _check_dense(op, "bandwidth", value)
        if value.dtype not in (x.dtype, dtype):
            raise TypeError(
                f"{op}: bandwidth must have the dtype of x, {x.dtype}, got {value.dtype}"
            )
        if value.device != x.device:
            raise ValueError(
                f"{op}: bandwidth must be on the device of x, {x.device}, got {value.device}"
            )
        if not _expands(value.shape, x):
            if value.numel() != 1:
                raise ValueError(
                    f"{op}: bandwidth must be one number or have the batch shape of x, "
                    f"{tuple(x.shape[:-2])}, got {tuple(value.shape)}"
                )
            value = value.reshape(())
        return value.to(dtype).expand(x.shape[:-2])
    if not is_number(value):
        raise TypeError(
            f"{op}: bandwidth must be a positive number, a tensor or one of {_rules()}, "
            f"got {type(value).__name__}"
        )
    return torch.full(
        x.shape[:-2], check_positive(op, "bandwidth", value, dtype), dtype=dtype, device=x.device
    )


def check_bandwidth_rule(op: str, value: str) -> str:
    if not _is_rule(value):
        raise ValueError(
            f"{op}: bandwidth must be a positive number or one of {_rules()}, got {value!r}"
        )
    return value


def is_number(value: Any) -> bool:
    """A real number of Python or numpy; True and False are none."""
    return isinstance(value, (int, float, numbers.Real)) and not isinstance(value, bool)


def check_positive(op: str, name: str, value: Any, dtype: torch.dtype) -> float:
    """A number that is positive and finite in this dtype too."""
    number, range_of = as_float(value), torch.finfo(dtype)  # a scalar of numpy has a range, too
    if not range_of.tiny <= number <= range_of.max:
        raise ValueError(
            f"{op}: {name} must be positive and finite, got {number}; {_names((dtype,))} has "
            f"{range_of.tiny:.3g} to {range_of.max:.3g}"
        )
    return number


def as_float(value: Any) -> float:
    """A number as a float; infinite where it is a larger integer, whose digits may be endless."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_flag(op: str, name: str, value: Any) -> bool:
    """Of Python or numpy, which may not be there to ask for its class."""
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {type(value).__name__}")
    return value


@overload
def fold_batch(value: Tensor, kept: int) -> Tensor: ...
@overload
def fold_batch(value: Tensor | None, kept: int) -> Tensor | None: ...
def fold_batch(value: Tensor | None, kept: int) -> Tensor | None:
    """Fold the leading dimensions into one, keeping the last ``kept``."""
    if value is None or value.dim() == kept + 1:
        return value
    batch, rest = value.shape[: value.dim() - kept], value.shape[value.dim() - kept :]
    return value.reshape(math.prod(batch), *rest)  # -1 has no answer for an empty tensor
