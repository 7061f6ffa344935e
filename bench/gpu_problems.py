"""What is measured on a GPU: shapes of three regimes, methods, and the error of an output.

Problems are those of ``bench.shapes``, made on the device: x ~ N(0, I), g = -x + 0.1 noise.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import stein_kernels
from bench import baselines
from bench.gpu_device import Device
from bench.records import worst
from bench.shapes import FLOAT_BYTES, SEED, Shape

DirectionCall = Callable[[Tensor, Tensor, Tensor], object]
REGIMES = {
    "codes": (Shape(64, 100, 50), Shape(4096, 20, 32), Shape(64, 5000, 50)),
    "samplers": (Shape(0, 32768, 16), Shape(0, 100_000, 64), Shape(0, 1_000_000, 16)),
    "weights": (Shape(0, 100, 2_000_000), Shape(0, 20, 11_000_000), Shape(0, 5000, 208_000)),
}
DRY = {
    "codes": (Shape(3, 12, 4),),
    "samplers": (Shape(0, 40, 4),),
    "weights": (Shape(0, 6, 300),),
}
BACKENDS = ("auto", "triton", "cuda")
DRY_BACKENDS = ("auto", "reference")
SHARE = 0.8  # of the device's memory that a method may take
PAIRS = 10**11  # with more, only our own choice is measured
TARGETS, SETS = 48, 4  # whose error is taken
CHUNK = 2**26  # differences at a time: 512 MB in float64


class Method(NamedTuple):
    """A way to compute an experiment; a call takes (x, grad, h)."""

    experiment: str
    name: str
    make: Callable[[bool], DirectionCall]  # of whether this is a dry run
    backend: str = ""  # of stein_kernels; empty for others
    precision: str = "highest"  # of torch.set_float32_matmul_precision
    bytes: Callable[[Shape], float] = lambda shape: 0.0  # beyond the inputs, at least
    checked: bool = True  # against float64

    @property
    def ours(self) -> bool:
        return bool(self.backend)


def make_inputs(shape: Shape, device: Device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device.kind).manual_seed(SEED)
    x = torch.randn(shape.sizes, generator=generator, device=device.kind)
    noise = torch.randn(shape.sizes, generator=generator, device=device.kind)
    return x, noise.mul_(0.1).sub_(x)


def given_bandwidth(shape: Shape, device: Device) -> Tensor:
    """About what the median rule gives: E|x - x'|^2 = 2 d for standard normals."""
    h = torch.tensor(2.0 * shape.features / math.log(shape.particles + 1), device=device.kind)
    return h.expand(shape.batch).contiguous() if shape.batch else h


# --- methods -------------------------------------------------------------------------------------


def _plain(call: DirectionCall) -> Callable[[bool], DirectionCall]:
    return lambda dry: call


def _ours(x: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    return stein_kernels.svgd_direction(x, grad, bandwidth=h)


def _ours_with_median(x: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    return stein_kernels.svgd_direction(x, grad)


def _ours_backward(x: Tensor, grad: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    x, score = x.detach().requires_grad_(), grad.detach().requires_grad_()
    phi = stein_kernels.svgd_direction(x, score, bandwidth=h)
    return torch.autograd.grad(phi, (x, score), grad)


def _compiled(dry: bool) -> DirectionCall:
    backend = "eager" if dry else "inductor"
    return torch.compile(baselines.gemm_direction, dynamic=False, backend=backend)


def _compiled_with_median(dry: bool) -> DirectionCall:
    direction = _compiled(dry)
    return lambda x, grad, h: direction(x, grad, baselines.triu_bandwidth(x))


def _gemm_with_median(x: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    return baselines.gemm_direction(x, grad, baselines.triu_bandwidth(x))


def _pairs(matrices: float) -> Callable[[Shape], float]:
    return lambda shape: matrices * shape.pairs * FLOAT_BYTES


def _triu(shape: Shape) -> float:
    """Distances, two int64 indices a pair, the gathered distances and the copy that is sorted."""
    pairs = shape.particles * (shape.particles - 1) / 2
    return shape.pairs * FLOAT_BYTES + 16 * pairs + 3 * shape.sets * pairs * FLOAT_BYTES


def _differences(shape: Shape) -> float:
    return 3.0 * shape.pairs * shape.features * FLOAT_BYTES


def methods(regime: str, dry: bool) -> list[Method]:
    """In the order in which they are measured: ours first, for time may run out."""
    backends = DRY_BACKENDS if dry else BACKENDS
    given, median = "direction", "direction_with_median"
    found = []
    if regime == "samplers":
        found += [Method(given, name, _plain(_ours), name) for name in backends]
        high = ("auto", "triton")[not dry]
        found += [Method(given, f"{high}_tf32x3", _plain(_ours), high, "high")]
        found += [
            Method("median", "auto", _plain(_ours_median), "auto", checked=False),
            Method("gram", "auto", _plain(_ours_gram), "auto", bytes=_pairs(1), checked=False),
            Method(given, "eager_gemm", _plain(baselines.gemm_direction), bytes=_pairs(4)),
            Method(given, "compiled_gemm", _compiled, bytes=_pairs(3)),
            Method(given, "keops", _plain(baselines.keops_direction)),
        ]
        return found
    found += [Method(median, name, _plain(_ours_with_median), name) for name in backends]
    found += [
        Method(median, "eager_gemm", _plain(_gemm_with_median), bytes=_both),
        Method(median, "compiled_gemm", _compiled_with_median, bytes=_both),
    ]
    if regime == "codes":
        found += [
            Method("backward", "auto", _plain(_ours_backward), "auto", checked=False),
            Method(
                *(given, "eager_difference", _plain(baselines.difference_direction)),
                bytes=_differences,
            ),
        ]
    return found


def _ours_median(x: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    return stein_kernels.median_bandwidth(x)


def _ours_gram(x: Tensor, grad: Tensor, h: Tensor) -> Tensor:
    return stein_kernels.rbf_gram(x, bandwidth=h)


def _both(shape: Shape) -> float:
    return max(_triu(shape), _pairs(4)(shape))


def why_not(method: Method, shape: Shape, device: Device) -> str | None:
    """Why a method is left out at a shape; None where it is measured."""
    if method.name == "keops" and importlib.util.find_spec("pykeops") is None:
        return "pykeops is not installed"
    if method.name != "auto" and shape.pairs > PAIRS:
        return f"takes too long for {shape.pairs:.0e} pairs"
    needed, free = method.bytes(shape), SHARE * device.memory
    if needed > free:
        return f"needs {needed / 1e9:.0f} GB beyond its inputs, of {free / 1e9:.0f}"
    return None


# --- error ---------------------------------------------------------------------------------------


def relative_error(shape: Shape, x: Tensor, grad: Tensor, h: Tensor, output: Tensor) -> float:
    """max |output - phi| / max |phi| over sampled targets, phi in float64 from the same h.

    NaN where the output has one.
    """
    generator = torch.Generator().manual_seed(SEED + 1)
    sets = torch.randperm(shape.sets, generator=generator)[:SETS].tolist()
    rows = torch.randperm(shape.particles, generator=generator)[:TARGETS].tolist()
    batched = [value if shape.batch else value[None] for value in (x, grad, output)]
    widths = h.reshape(-1).expand(shape.sets)
    errors, sizes = [], []
    for one in sets:
        x_set, g_set, out_set = (value[one] for value in batched)
        phi = exact_rows(x_set, g_set, rows, float(widths[one]))
        errors.append(float((out_set[rows].double() - phi).abs().max()))
        sizes.append(float(phi.abs().max()))
    return worst(errors) / worst(sizes)


def exact_rows(x: Tensor, grad: Tensor, rows: list[int], h: float) -> Tensor:
    """phi at some particles of one set (M, d), in float64, features in chunks."""
    m, d = x.shape
    width = max(1, CHUNK // (len(rows) * m))
    squared = torch.zeros(len(rows), m, dtype=torch.float64, device=x.device)
    for start in range(0, d, width):
        part = x[:, start : start + width].double()
        squared += (part[rows][:, None] - part[None]).square_().sum(-1)
    kernel = torch.exp(-squared / h)
    phi = torch.empty(len(rows), d, dtype=torch.float64, device=x.device)
    for start in range(0, d, max(1, CHUNK // m)):
        at = slice(start, start + max(1, CHUNK // m))
        part, score = x[:, at].double(), grad[:, at].double()
        repulsion = kernel.sum(1, keepdim=True) * part[rows] - kernel @ part
        phi[:, at] = (kernel @ score + 2 / h * repulsion) / m
    return phi
