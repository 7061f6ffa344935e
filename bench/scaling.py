"""``python -m bench.scaling``: the tables of docs/scaling.md, what sharded ops move and how long.

Every number is by formula. The formulas of what is summed are those that tests/distributed counts
in the running program; the rates are named in the table, and nothing here is measured.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import NamedTuple

from bench import counters, tables
from bench.environment import ROOT
from bench.report import fill

PAGE = "docs/scaling.md"
MARKS = ("<!-- scaling:begin -->", "<!-- scaling:end -->")
UPDATE_MARKS = ("<!-- update:begin -->", "<!-- update:end -->")
RANKS = (1, 2, 4, 8, 64, 512)
PROBLEMS = ((20, 11_000_000), (100, 2_000_000), (100, 200_000_000), (5000, 208_000))  # M, P
# Name, decoders, parameters of one, of the encoder: MNIST (Pu et al. 2017, section 5.2) and
# ImageNet (appendix D: 11 million each).
NETWORKS = (
    ("MNIST, 100 x 208,000", 100, 208_000, 220_000),
    ("ImageNet, 20 x 11,000,000", 20, 11_000_000, 11_000_000),
)


class Rates(NamedTuple):
    """Of one device, and of the links between them."""

    device: counters.Rates = counters.H200
    link: float = 50e9  # bytes a second a device, one 400 Gb/s port
    hop: float = 10e-6  # seconds of latency of a step of a collective


def summed(
    function: str, sets: int, particles: int, targets: int | None = None, *, rule: bool = True
) -> list[int]:
    """Numbers in each all-reduce of a call; `targets` where there is a query (or a y).

    `rule`: the bandwidth comes from the distances within the particles.
    """
    pairs = particles * (particles if targets is None else targets)
    matrices = 2 if function in ("stein_divergence", "kernel_stein_discrepancy") else 1
    within = particles**2 if rule and targets is not None else 0
    calls = [sets * (matrices * pairs + within)]
    if function == "kernel_stein_discrepancy":
        calls.append(sets * particles)
    return calls


def slice_width(features: int, ranks: int) -> int:
    """Features of the widest slice; to its width the others are padded where slices are moved."""
    return -(-features // ranks)


def update(decoders: int, parameters: int, encoder: int, ranks: int) -> list[tuple[str, int]]:
    """The collectives of an update in steinvae, and the numbers that a process hands to each.

    Scores to their slices; distances; the encoder's gradient, with the squared norm of the slice of
    theta's; slices of theta to all. A group of one moves nothing; that it calls an all-reduce at
    all is torch's `all_reduce`, where DTensors do not.
    """
    if ranks == 1:
        return [("allreduce", encoder + 1)]
    part = decoders * slice_width(parameters, ranks)
    return [
        ("reduce_scatter_tensor", ranks * part),
        ("all_reduce", decoders**2),
        ("allreduce", encoder + 1),
        ("all_gather_into_tensor", part),
    ]


def update_bytes(decoders: int, parameters: int, encoder: int, ranks: int) -> float:
    """What one device sends in an update: rings, a reduce-scatter or all-gather is half of one."""
    whole = decoders * slice_width(parameters, ranks) * ranks
    return wire_bytes(whole + decoders**2 + encoder + 1, ranks)


def wire_bytes(numbers: float, ranks: int, itemsize: int = 4) -> float:
    """What one device sends in a ring all-reduce: reduce-scatter, then all-gather."""
    return 2 * (ranks - 1) / ranks * numbers * itemsize


def all_reduce_seconds(numbers: float, ranks: int, rates: Rates) -> float:
    """By a tree of log2(W) hops each way, and the bytes of a ring."""
    hops = 2 * math.ceil(math.log2(ranks)) if ranks > 1 else 0
    return hops * rates.hop + wire_bytes(numbers, ranks) / rates.link


def local_seconds(particles: int, features: int, ranks: int, rates: Rates) -> float:
    """The slice's floor: x read twice, grad read once, phi written once, all of 4 bytes; and the
    products of particles with particles and of weights with scores, each as three of tf32."""
    coordinates = particles * features / ranks
    products = 4 * particles * coordinates
    return max(16 * coordinates / rates.device.bandwidth, 3 * products / rates.device.tf32)


def rows(rates: Rates) -> list[list[str]]:
    """A line for each problem and number of devices."""
    table = []
    for particles, features in PROBLEMS:
        alone = local_seconds(particles, features, 1, rates)
        for ranks in RANKS:
            (numbers,) = summed("svgd_direction", 1, particles)
            local = local_seconds(particles, features, ranks, rates)
            moving = all_reduce_seconds(numbers, ranks, rates)
            gathered = 2 * 4 * particles * features * (ranks - 1) / ranks
            table.append(
                [
                    f"{particles:,} x {features:,}",
                    f"{ranks:,}",
                    f"{wire_bytes(numbers, ranks) / 1e6:,.3f}",
                    f"{gathered / 1e6:,.0f}",
                    f"{1e3 * local:.3f}",
                    f"{1e3 * moving:.3f}",
                    f"{alone / (ranks * (local + moving)):.0%}",
                ]
            )
    return table


def update_rows(rates: Rates) -> list[list[str]]:
    """Bytes and seconds of an update, and the memory that theta takes on one device.

    All of theta and of the own scores, and slices of theta, of the mean scores and of two moments.
    """
    table = []
    for name, decoders, parameters, encoder in NETWORKS:
        for ranks in RANKS[1:]:
            sent = update_bytes(decoders, parameters, encoder, ranks)
            theta = 4 * decoders * parameters
            table.append(
                [
                    name,
                    f"{ranks:,}",
                    f"{sent / 1e6:,.1f}",
                    f"{wire_bytes(decoders**2, ranks) / 1e6:.4f}",
                    f"{1e3 * sent / rates.link:.2f}",
                    f"{(2 * theta + 4 * theta / ranks) / 1e6:,.1f}",
                    f"{4 * theta / 1e6:,.1f}",
                ]
            )
    return table


def page() -> str:
    """What stands between the marks of the op."""
    rates = Rates()
    header = ["particles x features", "devices", "MB sent", "MB if x and grad were gathered"]
    header += ["ms local", "ms all-reduce", "efficiency"]
    given = (
        f"Float32, one direction. Rates: {rates.device.bandwidth / 1e12:g} TB/s of device memory, "
        f"{rates.device.tf32 / 1e12:g} TFLOP/s in tf32 (a third of it for three products), "
        f"{rates.link / 1e9:g} GB/s a device between devices, {1e6 * rates.hop:g} microseconds a "
        "hop. By formula, not measured."
    )
    return f"{tables.markdown(header, rows(rates))}\n\n{given}"


def update_page() -> str:
    """What stands between the marks of an update."""
    header = [
        "decoders x parameters",
        "devices",
        "MB sent",
        "of it for distances",
        "ms at the link",
    ]
    header += ["MB of theta, scores and Adam a device", "MB in one process"]
    return tables.markdown(header, update_rows(Rates()))


PAGES = {MARKS: page, UPDATE_MARKS: update_page}


def main() -> int:
    argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__).parse_args()
    for marks, draw in PAGES.items():
        if not fill(ROOT / PAGE, draw(), *marks):
            print(f"{PAGE}: no {marks[0]} ... {marks[1]}", file=sys.stderr)
            return 1
    print(f"{PAGE}: drawn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
