"""The fused step of ``stein_kernels.optim`` against the direction followed by torch's own Adam.

Both move the same particles by the same scores; the bandwidth is found anew in every step. The
buffer is the parameter of the optimiser, and minus the direction its gradient, as a user of torch
would write it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import stein_kernels
from bench import counters
from bench.gpu_device import Call, Device
from bench.gpu_problems import make_inputs
from bench.shapes import Shape

if TYPE_CHECKING:
    from bench.gpu_measure import Bench

SHAPES = (Shape(0, 100, 2_000_000), Shape(0, 20, 11_000_000))
DRY = (Shape(0, 6, 300),)
RATE = 1e-3


def fused(x: Tensor, grad: Tensor) -> Call:
    from stein_kernels.optim import SVGDAdam

    particles = torch.nn.Parameter(x.clone())
    particles.grad = grad
    return SVGDAdam([particles], lr=RATE, maximize=True).step


def direction_then_adam(x: Tensor, grad: Tensor) -> Call:
    particles = torch.nn.Parameter(x.clone())
    adam = torch.optim.Adam([particles], lr=RATE, fused=True)

    def step() -> None:
        particles.grad = stein_kernels.svgd_direction(particles.detach(), grad).neg_()
        adam.step()

    return step


METHODS = {"auto": fused, "direction_then_adam": direction_then_adam}


def calls(bench: Bench) -> Iterator[tuple[str, Shape, Callable[[], None]]]:
    """Seconds and memory of a step of both, at every shape."""
    for shape in DRY if bench.device.dry else SHAPES:
        for name in METHODS:
            yield name, shape, functools.partial(_measure, bench, name, shape)


def _measure(bench: Bench, name: str, shape: Shape) -> None:
    device: Device = bench.device
    setting = {"shape": shape.name, "dtype": "float32", "matmul_precision": "highest"}
    step = METHODS[name](*make_inputs(shape, device))
    step()
    estimate = device.seconds(step, 1)[0]
    times = device.seconds(step, bench.rounds(estimate))
    bench.keep("adam", name, setting, "seconds", times)
    bench.keep("adam", name, setting, "extra_bytes", [device.extra_bytes(step)])
    if name == "auto":
        counts, seconds = counters.adam_step(shape), sorted(times)[len(times) // 2]
        floor = counters.total_floor(counts, bench.rates, "tf32x3")
        found = {**counters.achieved(counts, seconds), "floor_seconds": floor}
        found["share_of_floor"] = floor / seconds
        for metric, value in found.items():
            bench.keep("adam", name, setting, metric, [value])
