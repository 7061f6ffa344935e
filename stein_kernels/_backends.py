"""Which implementation an op runs, and why.

Under ``"auto"`` an op runs the fastest implementation that is there for the device of its tensors.
A backend that was asked for by name runs or raises: it never falls back.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from stein_kernels import _extension

SHARED_MEMORY = (
    160 * 1024
)  # of the CUDA C++ kernels: sm_80, sm_90, sm_100 have it, sm_86 and sm_89 not
NAMES = ("auto", "cpu", "cuda", "triton", "reference")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Availability(NamedTuple):
    """Whether a backend can run here, and the sentence that says why."""

    available: bool
    reason: str


class Choice(NamedTuple):
    """The backend that an op runs, and the sentence that says why."""

    backend: str
    reason: str


# --- what is available ---------------------------------------------------------------------------


def _probe_reference() -> Availability:
    return Availability(True, "plain torch, on every device")


def _probe_cpu() -> Availability:
    found = _extension.status()
    return Availability(found.module is not None, found.reason)


def _no_device_for_cuda() -> str:
    """Why this device runs no CUDA C++ kernels, however they are built; empty where it does."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if properties.shared_memory_per_block_optin >= SHARED_MEMORY:
        return ""
    return (
        f"its kernels take up to {SHARED_MEMORY // 1024} KB of shared memory in a block, "
        f"{properties.name} has {properties.shared_memory_per_block_optin // 1024}"
    )


def _probe_cuda() -> Availability:
    if refusal := _no_device_for_cuda():
        return Availability(False, refusal)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    found = _extension.cuda_status(build=False)
    if found.module is not None:
        built = found.module.build_info()["architectures"]
        capability = (properties.major, properties.minor)
        if not _extension.runs_on(built, capability):
            device = f"{properties.name} has {capability[0]}.{capability[1]}"
            return Availability(False, f"it was built for compute capability {built}, {device}")
    return Availability(found.module is not None, found.reason)


def _probe_triton() -> Availability:
    if importlib.util.find_spec("triton") is None:
        return Availability(False, "triton is not installed (pip install stein-kernels[triton])")
    if not torch.cuda.is_available():
        return Availability(False, "torch sees no CUDA device")
    if torch.cuda.get_device_capability() < (8, 0):
        return Availability(False, "the Triton kernels need compute capability 8.0 or above")
    return Availability(True, "compiled on first use for this device")


PROBES: dict[str, Callable[[], Availability]] = {
    "cpu": _probe_cpu,
    "cuda": _probe_cuda,
    "triton": _probe_triton,
    "reference": _probe_reference,
}
DEVICES = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda",)}  # what each takes
AUTO = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # what each device tries, best first


def availability(name: str) -> Availability:
    """Whether the backend can run on this machine."""
    return PROBES[name]()


# --- what was asked for --------------------------------------------------------------------------


class _Traced(threading.local):
    """The requested name as torch.compile reads it: dynamo guards it, and cannot read a ContextVar.

    An instance attribute, since dynamo does not notice one that begins to hide a class attribute.
    """

    def __init__(self) -> None:
        self.name = "auto"


_OUTSIDE = ("auto",)  # and, further in, what each open block asked for
_requested: ContextVar[tuple[str, ...]] = ContextVar("stein_kernels_backend", default=_OUTSIDE)
_traced = _Traced()


def active_backend() -> str:
    """The name that the innermost :class:`use_backend` asked for; ``"auto"`` outside of any."""
    if torch.compiler.is_dynamo_compiling():
        return _traced.name
    return _requested.get()[-1]


class use_backend:
    """Run the ops of the block, or of the decorated function, on one backend.

    ``"auto"`` takes the fastest that is there for the tensors' device; ``"cpu"`` (C++), ``"cuda"``
    (CUDA C++), ``"triton"`` and ``"reference"`` (plain torch, differentiable any number of times)
    run or raise. Blocks nest, and one object may be entered many times; each thread and each
    asyncio task has its own. A compiled function asks its thread, not its task: it runs on the
    backend of the block that the thread entered or left last, so await nothing between the start of
    a block and its call. What runs after the block is outside of it: ``torch.utils.checkpoint``
    computes again in the backward pass, so decorate the function that it is given.

    A context manager and a decorator: calling it alone changes nothing, and warns of that when the
    object is dropped. Whether the backend is there is looked up on entry, of the block or of every
    call of the function: so a module with decorated functions can be imported without it, and does
    not build kernels or start CUDA by being imported.

    Raises:
        ValueError: an unknown name, at once.
        RuntimeError: on entry, the backend is not available here; says why.

    Warns:
        RuntimeWarning: neither entered nor used as a decorator.

    Example:
        >>> with use_backend("reference"):
        ...     phi = svgd_direction(x, grad)
    """

    _idle = False  # also of an object whose __init__ has raised

    def __init__(self, name: str) -> None:
        if name not in NAMES:
            known = ", ".join(repr(known) for known in NAMES)
            raise ValueError(f"use_backend: expected one of {known}, got {name!r}")
        self.name = name
        self._outer: list[str] = []  # of a block that dynamo traces; its object is its own
        self._idle = True

    def __del__(self) -> None:
        if self._idle and not sys.is_finalizing():
            warnings.warn(
                f"use_backend({self.name!r}) alone changes nothing; write "
                f"`with use_backend({self.name!r}): ...`, or put it above a function",
                RuntimeWarning,
                stacklevel=2,
            )

    def __call__(self, func: _Function) -> _Function:
        self._idle = False
        if any(
            later(func)
            for later in (
                inspect.iscoroutinefunction,
                inspect.isgeneratorfunction,
                inspect.isasyncgenfunction,
            )
        ):
            raise TypeError(
                f"use_backend: {func.__qualname__} would run after the decorator has ended; "
                "use `with use_backend(...)` inside it"
            )
        name = self.name  # not the object: dynamo enters a block only where it saw it made

        @functools.wraps(func)
        def call(*arguments: Any, **options: Any) -> Any:
            with use_backend(name):
                return func(*arguments, **options)

        return call  # type: ignore[return-value]

    def __enter__(self) -> use_backend:
        self._idle = False
        if torch.compiler.is_dynamo_compiling():
            self._outer.append(_traced.name)
        else:
            if self.name != "auto":
                _refuse_unavailable("use_backend", self.name)
            # in the context, not in the object: threads and tasks may be inside one object at once
            _requested.set((*_requested.get(), self.name))
        _traced.name = self.name
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._outer:
            _traced.name = self._outer.pop()
        else:
            _requested.set(_requested.get()[:-1] or _OUTSIDE)
            _traced.name = active_backend()


# --- what an op runs -----------------------------------------------------------------------------


def resolve(op: str, device: torch.device | str) -> Choice:
    """The backend that ``op`` runs for tensors on ``device``, and why.

    Raises:
        RuntimeError: a backend was asked for by name that is not there, or not for this device.
    """
    return _resolve(op, torch.device(device).type, active_backend())


def require(op: str, x: Tensor) -> None:
    """Make ready what ``op`` runs on ``x``, or raise as :func:`resolve` does."""
    if torch.compiler.is_dynamo_compiling():
        _ready_while_tracing(op, x.device.type, _traced.name)
        return
    key = (x.device, _requested.get()[-1])
    if key not in _ready:
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():  # whose kernels must run
            _resolve(op, x.device.type, key[1])
        _ready.add(key)


# Every op call asks: a set keeps that under a microsecond.
_ready: set[tuple[torch.device, str]] = set()


def _ready_while_tracing(op: str, device: str, requested: str) -> str:
    """Dynamo runs this while it traces, so that the compiled graph finds the kernels loaded."""
    return _resolve(op, device, requested).backend


# What torch.compiler.assume_constant_result sets; that decorator imports all of dynamo, 1.2 s.
_ready_while_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _resolve(op: str, device: str, requested: str) -> Choice:
    if requested == "reference":
        return Choice("reference", "asked for by name")
    if requested != "auto":
        if device not in DEVICES[requested]:
            takes = " or ".join(DEVICES[requested])
            raise RuntimeError(
                f"{op}: backend {requested!r} was asked for by name; it takes tensors on {takes}, "
                f"got {device}"
            )
        _refuse_unavailable(op, requested)
        return Choice(requested, "asked for by name")
    refusals = []
    for name in AUTO.get(device, ()):
        available, reason = availability(name)
        if available:
            return Choice(name, f"the fastest that is here for {device} tensors")
        refusals.append(f"{name}: {reason}")
    return Choice("reference", "; ".join(refusals) or f"no kernels for {device} tensors")


def _refuse_unavailable(op: str, name: str) -> None:
    if name == "cuda" and not _no_device_for_cuda():
        _extension.cuda_status(build=True)  # minutes at first, so only for those who ask for it
    available, reason = availability(name)
    if not available:
        raise RuntimeError(
            f"{op}: backend {name!r} was asked for by name and is not available: {reason}. "
            "`python -m stein_kernels.info` lists what is; use_backend('auto') takes the fastest"
        )
