"""What each GPU launch does, counted from its code, and the least time that a device needs for it.

A formula is a sum of monomials in the sizes: B sets, M sources, N targets, d features, with
P = B M N pairs and H = B M (M - 1) / 2 distinct pairs of a set with itself; M d stands for B M d.
``flops`` are two for every instruction of the float32 units, a plain addition too, since that is
the place which it takes there. ``products`` are the flops of matrix products on the tensor cores,
``elements`` are read from or written to device memory once each: padding, and what a cache cannot
hold, come on top. Nothing here is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bench.shapes import Shape
from stein_kernels.gpu import median as median_flow

WHOLE = 128  # particles of a float32 set that the launches of long rows hold in one tile
Polynomial = Mapping[str, float]  # monomial -> coefficient


class Formula(NamedTuple):
    """One launch in one form: "ieee" sums differences, the tensor cores multiply matrices."""

    launch: str
    form: str  # "ieee", "tensor" or "direct" (up to 16 features)
    flops: Polynomial
    products: Polynomial
    exps: Polynomial
    elements: Polynomial


class Count(NamedTuple):
    """What a launch does at given sizes."""

    launch: str
    flops: float
    products: float
    exps: float
    bytes: float


class Rates(NamedTuple):
    """What a device can do in a second."""

    bandwidth: float  # bytes, read and written
    fp32: float  # flops
    tf32: float  # flops of dense matrix products
    bf16: float
    exps: float
    source: str

    def products(self, precision: str) -> float:
        """Flops of matrix products; "x3" takes three of short factors for one of long ones."""
        rate = self.bf16 if precision.startswith("bf16") else self.tf32
        return rate / 3 if precision.endswith("x3") else rate


# An H200: the copy bandwidth and the bf16 rate are what one has shown, the rest is its datasheet's:
# tf32 without sparsity, 132 multiprocessors at 1.98 GHz with 16 exponentials a clock each.
H200 = Rates(
    *(4.3e12, 67e12, 494.7e12, 790e12, 16 * 132 * 1.98e9),
    "H200; float32, tf32 and exponentials by its datasheet",
)


def _pairs(
    launch: str,
    ieee: tuple[float, float],
    tensor: tuple[float, float],
    elements: Polynomial,
    exps: float = 1,
) -> tuple[Formula, ...]:
    """Both forms of a launch over all pairs: (flops a pair and feature, flops a pair) of "ieee",
    (products a pair and feature, flops a pair) of the tensor cores."""
    return (
        Formula(launch, "ieee", {"P d": ieee[0], "P": ieee[1]}, {}, {"P": exps}, elements),
        Formula(launch, "tensor", {"P": tensor[1]}, {"P d": tensor[0]}, {"P": exps}, elements),
    )


# Flops a pair and feature, ieee: 4 for a squared difference, 2 for each inner product or weighted
# sum. Flops a pair: scaling of the exponent, weights, running sums; norms where products are used.
FORMULAS: tuple[Formula, ...] = (
    Formula(
        *("direction", "direct", {"P d": 8, "P": 8}, {}, {"P": 1}),
        {"M d": 2, "N d": 2, "M": 1, "N": 1},
    ),
    *_pairs("direction", (6, 8), (4, 14), {"M d": 2, "N d": 2, "M": 1, "N": 1}),
    *_pairs("direction_backward, x with itself", (12, 24), (10, 30), {"M d": 5, "M": 5}),
    *_pairs("direction_backward, sources", (10, 16), (8, 22), {"M d": 4, "N d": 2, "M": 2, "N": 1}),
    *_pairs("direction_backward, targets", (8, 16), (6, 22), {"M d": 2, "N d": 3, "M": 1, "N": 3}),
    *_pairs("divergence", (6, 14), (4, 20), {"M d": 2, "N d": 1, "M": 2, "N": 1}),
    *_pairs("divergence_backward, x with itself", (14, 32), (12, 38), {"M d": 5, "M": 6}),
    *_pairs(
        "divergence_backward, sources", (10, 24), (8, 30), {"M d": 4, "N d": 1, "M": 5, "N": 1}
    ),
    *_pairs(
        "divergence_backward, targets", (10, 24), (8, 30), {"M d": 2, "N d": 3, "M": 2, "N": 2}
    ),
    Formula("gram", "ieee", {"P d": 4, "P": 4}, {}, {"P": 1}, {"M d": 1, "N d": 1, "P": 1}),
    *_pairs("gram_backward", (6, 8), (4, 14), {"M d": 2, "N d": 1, "M": 1, "P": 1}),
    Formula("median_sample", "ieee", {"S d": 4}, {}, {}, {"S d": 2, "S": 1}),
    Formula("median_pass", "ieee", {"H d": 4, "H": 8}, {}, {}, {"M d": 1}),
    Formula("small_set", "direct", {"H d": 4, "P d": 6, "H": 40}, {}, {"H": 1}, {"M d": 3}),
    Formula("small_set", "ieee", {"H d": 4, "P d": 2, "H": 40}, {}, {"H": 1}, {"M d": 3}),
    Formula("small_set_backward", "ieee", {"P d": 10, "P": 16}, {}, {"P": 1}, {"M d": 5}),
    Formula("long_products, up to 128", "tensor", {}, {"P d": 2}, {}, {"M d": 1, "P": 1}),
    Formula("long_products", "tensor", {}, {"H d": 2}, {}, {"M d": 1, "P": 1}),
    Formula("mean of rows (torch)", "ieee", {"M d": 2}, {}, {}, {"M d": 1}),
    Formula("matrix of pairs (torch)", "ieee", {"P": 30}, {}, {"P": 1}, {"P": 25}),
    Formula("long_direction", "tensor", {"M d": 8}, {"P d": 2}, {}, {"M d": 2, "N d": 1, "P": 1}),
    Formula("long_direction_adam", "tensor", {"M d": 40}, {"P d": 2}, {}, {"M d": 7, "P": 1}),
    Formula("packing of a direction (torch)", "direct", {}, {}, {}, {"M d": 13}),
    Formula("packing of a direction (torch)", "ieee", {}, {}, {}, {"M d": 24}),
)
_BY_NAME = {(formula.launch, formula.form): formula for formula in FORMULAS}


def sizes(shape: Shape, targets: int | None = None, sample: int = 0) -> dict[str, float]:
    """The value of every monomial at a shape."""
    b, m, d = shape.sets, shape.particles, shape.features
    n = m if targets is None else targets
    return {
        "P": b * m * n,
        "H": b * m * (m - 1) / 2,
        "S": b * sample,
        "M": b * m,
        "N": b * n,
        "P d": b * m * n * d,
        "H d": b * m * (m - 1) / 2 * d,
        "S d": b * sample * d,
        "M d": b * m * d,
        "N d": b * n * d,
    }


def count(
    launch: str, form: str, shape: Shape, targets: int | None = None, sample: int = 0
) -> Count:
    """One launch at these sizes in float32."""
    formula, at = _BY_NAME[launch, form], sizes(shape, targets, sample)

    def value(polynomial: Polynomial) -> float:
        return sum(factor * at[monomial] for monomial, factor in polynomial.items())

    elements = value(formula.elements)
    return Count(
        launch, value(formula.flops), value(formula.products), value(formula.exps), 4 * elements
    )


def floor(one: Count, rates: Rates, precision: str = "ieee") -> float:
    """Seconds below which a launch cannot run: its slowest unit, if all others are hidden by it."""
    return max(terms(one, rates, precision).values())


def terms(one: Count, rates: Rates, precision: str = "ieee") -> dict[str, float]:
    """Seconds of every unit alone."""
    return {
        "memory": one.bytes / rates.bandwidth,
        "fp32": one.flops / rates.fp32,
        "tensor cores": one.products / rates.products(precision),
        "exps": one.exps / rates.exps,
    }


def total_floor(counts: Iterable[Count], rates: Rates, precision: str = "ieee") -> float:
    """Launches follow each other, so their floors add."""
    return sum(floor(one, rates, precision) for one in counts)


def median(shape: Shape) -> list[Count]:
    """The launches of a median of packed clouds that do something; the others return at once."""
    import torch

    plan = median_flow.plan(shape.sets, shape.particles, torch.float32)
    passes = 1 if plan.sample else plan.rounds
    sampled = [count("median_sample", "ieee", shape, sample=plan.sample)] if plan.sample else []
    return sampled + [count("median_pass", "ieee", shape)] * passes


def direction(shape: Shape, flow: str, precision: str, with_median: bool) -> list[Count]:
    """The launches of a direction of a set with itself by one of the flows."""
    direct = shape.features <= 16
    if flow == "small_set":
        return [count("small_set", "direct" if direct else "ieee", shape)]
    if flow == "long_rows":
        return [*_long_pairs(shape), count("long_direction", "tensor", shape)]
    form = "direct" if direct else "ieee" if precision == "ieee" else "tensor"
    packing = count("packing of a direction (torch)", "direct" if direct else "ieee", shape)
    return [*(median(shape) if with_median else []), packing, count("direction", form, shape)]


def adam_step(shape: Shape) -> list[Count]:
    """The fused step: the direction of long rows, of which only its effect is written."""
    return [*_long_pairs(shape), count("long_direction_adam", "tensor", shape)]


def _long_pairs(shape: Shape) -> list[Count]:
    """From long rows to the coefficients of their pairs; the median of a stored matrix is small."""
    whole = shape.particles <= WHOLE
    first = [] if whole else [count("mean of rows (torch)", "ieee", shape)]
    name = "long_products, up to 128" if whole else "long_products"
    pairs = count("matrix of pairs (torch)", "ieee", shape)
    return [*first, count(name, "tensor", shape), pairs]


def launches(shape: Shape, flow: str, with_median: bool) -> int:
    """Kernels of this package that a direction launches, those that return at once included."""
    import torch

    if flow == "small_set":
        return 1
    plan = median_flow.plan(shape.sets, shape.particles, torch.float32)
    of_median = (plan.sample > 0) + 2 * plan.rounds
    return (2 if flow == "long_rows" else 1) + with_median * of_median


def polynomial(terms: Polynomial) -> str:
    """As in 6 P d + 8 P."""
    shown = [name if factor == 1 else f"{factor:g} {name}" for name, factor in terms.items()]
    return " + ".join(shown) or "-"


def formulas_table() -> list[list[str]]:
    """A row for each formula: launch, form, flops, products, exps, elements."""
    return [[one.launch, one.form, *(polynomial(p) for p in one[2:])] for one in FORMULAS]


def achieved(counts: Iterable[Count], seconds: float) -> dict[str, float]:
    """Bytes and flops in a second, as counted, over a measured time."""
    counts = list(counts)
    flops = sum(one.flops + one.products for one in counts)
    moved = sum(one.bytes for one in counts)
    if not seconds > 0:
        return {"flops_per_second": math.nan, "bytes_per_second": math.nan}
    return {"flops_per_second": flops / seconds, "bytes_per_second": moved / seconds}
