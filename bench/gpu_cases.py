"""``python -m bench.gpu_cases --backend triton``: every op once, forward and backward, small.

What compute-sanitizer runs. The shapes take every flow (small sets, packed clouds in the direct and
the split form, long rows) and every launch; the values are checked by tests/gpu, here only that
they are finite.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import stein_kernels
from bench.gpu_device import matmul_precision

# (B, M, d): one tile is full, one is not
SHAPES = {
    "small set, direct": (2, 20, 5),
    "small set": (2, 33, 24),
    "packed, direct": (1, 150, 7),
    "packed": (1, 270, 40),
    "packed, wide": (1, 270, 100),
    "long rows": (1, 20, 2060),
}
QUERIES = 9


def cases(device: str) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Every op on every flow, and the backward of all inputs that have a gradient."""
    found: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    for flow, (b, m, d) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)

        def normal(*sizes: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(sizes, generator=generator).to(device)

        x, grad, query = normal(b, m, d), normal(b, m, d), normal(b, QUERIES, d)
        weights, h = normal(b, m).softmax(-1), normal(b).abs() + d
        plain = {"bandwidth": h}
        found |= {
            f"median, {flow}": lambda x=x: (stein_kernels.median_bandwidth(x),),
            f"direction by rule, {flow}": _op("svgd_direction", (x, grad), {}),
            f"direction, {flow}": _op("svgd_direction", (x, grad), plain | {"weights": weights}),
            f"direction of a query, {flow}": _op(
                "svgd_direction", (x, grad), plain | {"query": query}
            ),
            f"divergence, {flow}": _op("stein_divergence", (x, grad), plain),
            f"divergence of a query, {flow}": _op(
                "stein_divergence", (x, grad), plain | {"query": query}
            ),
            f"gram, {flow}": _op("rbf_gram", (x,), plain),
            f"gram of two, {flow}": _op("rbf_gram", (x, query), plain),
        }
    return found


def _op(
    name: str, positional: tuple[Tensor, ...], named: dict[str, Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
    """The op and the gradients of all its inputs."""

    def run() -> tuple[Tensor, ...]:
        leaves = [value.detach().requires_grad_() for value in positional]
        options = {key: value.detach().requires_grad_() for key, value in named.items()}
        output = getattr(stein_kernels, name)(*leaves, **options)
        inputs = [*leaves, *options.values()]
        return (output, *torch.autograd.grad(output.square().sum(), inputs))

    return run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_cases", description=__doc__)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", nargs="+", default=["highest", "high"])
    options = parser.parse_args(arguments)
    failed = 0
    for precision in options.precision:
        with stein_kernels.use_backend(options.backend), matmul_precision(precision):
            for name, run in cases(options.device).items():
                finite = all(bool(value.isfinite().all()) for value in run())
                failed += not finite
                print(f"{precision:<8} {name:<40} {'ok' if finite else 'NOT FINITE'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
