"""Updates captured as CUDA graphs: replayed by one launch, where Python would make hundreds.

A small network's step on a GPU is the time of its launches. Shapes are the same at every step and
nothing is read back, so a step can be captured; what it takes in is copied to where the capture
found it.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from steinvae.gradients import Batch

WARM_UP = 3
"""Plain updates before a capture: kernels are compiled and loaded, and Adam's moments made."""

_Result = TypeVar("_Result")


class Moved(NamedTuple):
    """What an update leaves to look at; on the device."""

    norm: Tensor
    """() of the gradients; not finite where the update was left out."""

    stats: dict[str, Tensor]
    """Scalars."""


Compute = Callable[[Batch, Tensor], Moved]
"""An update of parameters in place, from a minibatch and the number () int64 of the step."""


class Recorder(Protocol):
    """What captures."""

    def warm_up(self, function: Callable[[], _Result]) -> _Result:
        """The function's result, by a plain call."""
        ...

    def capture(self, function: Callable[[], _Result]) -> tuple[_Result, Callable[[], object]]:
        """Where every replay leaves the function's result, and the replay; nothing is run yet."""
        ...

    def forget(self) -> None:
        """What was captured will not be replayed again."""
        ...


class OnCuda:
    """`torch.cuda.CUDAGraph`. Warms up on a stream beside, as torch asks; captures share a pool,
    since they never run at once."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self.forget()

    def forget(self) -> None:
        """See `Recorder`. A pool is not joined again after its graphs are gone."""
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], _Result]) -> _Result:
        """See `Recorder`."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = function()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def capture(self, function: Callable[[], _Result]) -> tuple[_Result, Callable[[], object]]:
        """See `Recorder`. A graph of a stream of its own, since cuBLAS has a workspace a stream,
        which goes with any graph of that stream; and no collection of garbage meanwhile, for the
        end of another graph would end this capture."""
        graph = torch.cuda.CUDAGraph()
        with _no_collection(), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = function()
        return result, graph.replay


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def recorder(device: torch.device) -> Recorder:
    """What captures on a device. Errors: ValueError where nothing does."""
    if device.type != "cuda":
        raise ValueError(f"trainer.cuda_graph must be false on {device.type}, got True")
    return OnCuda()


class Graphs:
    """`compute` of one form of minibatches: plain `WARM_UP` times, then captured and replayed.

    Minibatches that log something are a form of their own; those that compare the direction with
    the exact field are rare, and always computed plainly.
    """

    def __init__(self, compute: Compute, recorder: Recorder) -> None:
        self._compute, self._recorder = compute, recorder
        self.forget()

    def forget(self) -> None:
        """Capture anew: tensors that `compute` changes have been replaced by others."""
        self._plain: Counter[bool] = Counter()
        self._captured: dict[bool, _Captured] = {}
        self._recorder.forget()

    def __call__(self, batch: Batch, number: Tensor) -> Moved:
        """As `compute`; what the last call returned may be overwritten."""
        form = batch.monitor
        if batch.compare or self._plain[form] < WARM_UP:
            self._plain[form] += not batch.compare
            return self._recorder.warm_up(lambda: self._compute(batch, number))
        if form not in self._captured:
            self._captured[form] = _Captured(self._compute, self._recorder, batch, number)
        return self._captured[form](batch, number)


class _Captured:
    """A captured update, and where it takes its minibatch from."""

    def __init__(self, compute: Compute, recorder: Recorder, batch: Batch, number: Tensor) -> None:
        self._inputs = {name: value.clone() for name, value in _tensors(batch).items()}
        self._number = number.clone()
        own = batch._replace(**self._inputs)
        self._moved, self._replay = recorder.capture(lambda: compute(own, self._number))

    def __call__(self, batch: Batch, number: Tensor) -> Moved:
        for name, value in _tensors(batch).items():
            self._inputs[name].copy_(value)
        self._number.copy_(number)
        self._replay()
        return self._moved


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in batch._asdict().items() if isinstance(value, Tensor)}
