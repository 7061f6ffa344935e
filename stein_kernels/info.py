"""``python -m stein_kernels.info``: what is available, what was built, what would run, and why.

Looking for the C++ kernels builds them where they are missing, as the first call of an op would;
``STEIN_KERNELS_JIT=0`` forbids that. The routes are those that a GPU with both backends would take,
so they are shown on a machine without one too.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from typing import Any, NamedTuple

import torch

import stein_kernels
from stein_kernels import _backends, _extension
from stein_kernels.gpu import routes

OPS = tuple(name for name in stein_kernels.__all__ if name != "use_backend")
ROUTED = ("svgd_direction", "svgd_direction_backward", "stein_divergence", "rbf_gram")
ROUTED += ("median_distance",)
DTYPES = ("float32", "float64", "bfloat16", "float16")


class Regime(NamedTuple):
    """A range of problem sizes that a kernel is designed for; both ends are included."""

    name: str
    particles: tuple[int, int]
    features: tuple[int, int]
    bound: str  # what limits the speed there


REGIMES = (
    Regime("weights", (2, 5_000), (200_000, 20_000_000), "memory traffic: 4 passes over M d"),
    Regime("codes", (10, 500), (2, 2_048), "one launch: a whole set stays in cache"),
    Regime("samplers", (10_000, 1_000_000), (2, 128), "arithmetic: 6 M^2 d flops and M^2 exps"),
)


def regime(shape: tuple[int, ...]) -> Regime | None:
    """The regime of particles (..., M, d), or None between the three."""
    m, d = shape[-2:]
    for candidate in REGIMES:
        (few, many), (thin, wide) = candidate.particles, candidate.features
        if few <= m <= many and thin <= d <= wide:
            return candidate
    return None


def gpu_routes(shape: tuple[int, ...], dtype: str) -> dict[str, dict[str, str]]:
    """What each op would launch on a GPU, and why."""
    m, d = shape[-2:]
    batch = math.prod(shape[:-2])
    problem = routes.Problem(batch, m, m, d, getattr(torch, dtype), query=False)
    return {op: routes.choose(op, problem, ("cuda", "triton"))._asdict() for op in ROUTED}


def collect(shape: tuple[int, ...], dtype: str, device: str) -> dict[str, Any]:
    """All that the command shows, as plain values."""
    found = _extension.status()
    built = None
    if found.module is not None:
        built = found.module.build_info()
        built |= {"origin": found.origin, "instruction_set": found.module.instruction_set()}
    design = regime(shape)
    on_cpu = torch.device(device).type == "cpu"
    return {
        "stein_kernels": stein_kernels.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cuda_devices": [
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        ],
        "backends": {name: probe()._asdict() for name, probe in _backends.PROBES.items()},
        "built": built,
        "problem": {"shape": list(shape), "dtype": dtype, "device": device},
        "regime": None if design is None else design._asdict(),
        "flow": found.module.flow(shape[-2], *shape[-2:]) if found.module and on_cpu else None,
        "routes": gpu_routes(shape, dtype),
        "ops": {op: _backends.resolve(op, device)._asdict() for op in OPS},
    }


def render(facts: dict[str, Any]) -> str:
    """The facts as lines for a person."""
    devices = ", ".join(facts["cuda_devices"]) or "no CUDA device"
    lines = [
        f"stein_kernels {facts['stein_kernels']}, torch {facts['torch']}, Python {facts['python']}",
        f"{facts['platform']}, {facts['threads']} threads, {devices}",
        "",
        "backends",
    ]
    for name, (available, reason) in ((n, b.values()) for n, b in facts["backends"].items()):
        lines.append(f"  {name:<26}{'yes' if available else 'no':<5}{reason}")
    lines += ["", "C++ extension", *_built_lines(facts["built"])]
    problem, design = facts["problem"], facts["regime"]
    shape = "(" + ", ".join(map(str, problem["shape"])) + ")"
    lines += ["", f"particles {shape}, {problem['dtype']}, on {problem['device']}"]
    between = "between the regimes that kernels are designed for"
    bound = between if design is None else f'"{design["name"]}", bound by {design["bound"]}'
    lines.append(f"  {'regime':<26}{bound}")
    if facts["flow"] is not None:
        lines.append(f"  {'CPU kernel':<26}{facts['flow']}")
    for op, choice in facts["ops"].items():
        lines.append(f"  {op:<26}{choice['backend']:<11}{choice['reason']}")
    lines += ["", "the same on a GPU with both backends"]
    for op, route in facts["routes"].items():
        how = f"{route['flow']}, {route['backend']}, {route['precision']}"
        lines.append(f"  {op:<26}{how:<28}{route['reason']}")
    return "\n".join(lines)


def _built_lines(built: dict[str, Any] | None) -> list[str]:
    if built is None:
        return ["  not loaded"]
    sets = ", ".join(built["instruction_sets"])
    values = {
        "origin": built["origin"],
        "compiler": f"{built['compiler']}, C++{built['cxx_standard']}, for torch {built['torch']}",
        "flags": built["flags"],
        "OpenMP": "yes" if built["openmp"] else "no",
        "instruction sets": f"{sets}; {built['instruction_set']} on this machine",
    }
    return [f"  {name:<26}{value}" for name, value in values.items()]


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 0:
        raise argparse.ArgumentTypeError(f"expected M,d or batch,M,d, got {text!r}")
    return shape


def _device(text: str) -> str:
    try:
        return str(torch.device(text))
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"not a torch device: {text!r}") from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m stein_kernels.info", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--shape", type=_shape, default=(64, 100, 50), metavar="[BATCH,]M,D")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", type=_device, default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args(arguments)
    facts = collect(options.shape, options.dtype, options.device)
    print(json.dumps(facts, indent=2) if options.json else render(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
