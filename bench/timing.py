"""Fair times: the methods of one problem take turns, forwards and then backwards.

Every method of a (shape, threads) is measured in two blocks, in the order A B C, C B A, so that a
machine which slows down or speeds up steadily does so for all of them alike. The median is over the
rounds of both blocks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from bench.accuracy import SHIFTS, relative_error
from bench.environment import set_threads
from bench.methods import Call, Method, build
from bench.shapes import Shape, exact_bandwidth, make_inputs

BLOCKS = (0, 1)
ENOUGH = 3.0  # seconds of rounds after which a median is good, given MIN_ROUNDS
LIMIT = 12.0  # seconds of rounds that a slow method may take, given LEAST_ROUNDS
MIN_ROUNDS, MAX_ROUNDS, LEAST_ROUNDS = 6, 40, 3
SAME = 1e-2  # relative error above which a method computes something else: no rival at all


def rounds_of(seconds: float, block: int) -> int:
    """Rounds of a block for a call of so many seconds: 6 to 40 in both, from 3 for a slow one."""
    seconds = max(seconds, 1e-6)
    wanted = min(MAX_ROUNDS, max(MIN_ROUNDS, math.ceil(ENOUGH / seconds)))
    rounds = max(LEAST_ROUNDS, min(wanted, int(LIMIT / seconds)))
    return (rounds + 1) // 2 if block == 0 else rounds // 2


def interleaved(
    methods: Iterable[Method], shapes: Iterable[Shape], threads: Iterable[int]
) -> list[tuple[Shape, int, Method, int]]:
    """Cases (shape, threads, method, block) in the order in which they run."""
    methods, threads = list(methods), list(threads)
    return [
        (shape, count, method, block)
        for shape in shapes
        for count in threads
        for block in BLOCKS
        for method in (methods if block == 0 else reversed(methods))
    ]


class Prepared(NamedTuple):
    """A method ready to be timed."""

    call: Call
    inputs: tuple[Tensor, Tensor, Tensor]
    estimate: float  # seconds of its first call after compilation
    errors: dict[str, float]


class Workbench:
    """Keeps the prepared methods of one problem at a time, so that no other holds memory."""

    def __init__(self) -> None:
        self._problem: tuple[str, Shape, int] | None = None
        self._prepared: dict[str, Prepared] = {}

    def prepare(
        self, experiment: str, method: Method, shape: Shape, threads: int, op: str, shifted: bool
    ) -> Prepared:
        """The method built, warmed and checked; ``op`` names its oracle, none where empty."""
        if self._problem != (experiment, shape, threads):
            self._problem, self._prepared = (experiment, shape, threads), {}
            torch.compiler.reset()  # so that no recompilation limit is met
        if method.name not in self._prepared:
            self._prepared[method.name] = _prepare(method, shape, threads, op, shifted)
        return self._prepared[method.name]


def _prepare(method: Method, shape: Shape, threads: int, op: str, shifted: bool) -> Prepared:
    set_threads(threads)
    inputs = (*make_inputs(shape), exact_bandwidth(shape))
    call = build(method, shape, inputs)
    set_threads(threads)  # once more: a runtime that the call has just loaded has its own count
    start = time.perf_counter()
    output = call(*inputs)
    estimate = time.perf_counter() - start
    errors = {}
    if op and isinstance(output, Tensor):
        errors = _errors(call, op, shape, output, shifted)
        if not errors["relative_error"] < SAME:
            raise RuntimeError(f"{method.name} at {shape.name} is wrong: {errors}")
    return Prepared(call, inputs, estimate, errors)


def _errors(call: Call, op: str, shape: Shape, output: Tensor, shifted: bool) -> dict[str, float]:
    """Errors of the output, and with every coordinate shifted at the same bandwidth."""
    found = {}
    for metric, shift in SHIFTS.items():
        if shift and not shifted:
            continue
        if shift:
            shifted_output = call(*make_inputs(shape, shift), exact_bandwidth(shape))
            output = shifted_output if isinstance(shifted_output, Tensor) else output
        found[metric] = relative_error(op, shape, shift, output)
    return found
