"""Numbers of several seeds: means, paired differences, and whether seeds alone could make a claim
hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import mean, stdev

STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""97.5 % quantiles of Student's t, of 2 to 10 seeds."""

BySeed = Mapping[int, float]


def minus(one: BySeed, other: BySeed) -> dict[int, float]:
    """Differences on the seeds that both have."""
    return {seed: value - other[seed] for seed, value in one.items() if seed in other}


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of two seeds or more."""
    return stdev(values) / len(values) ** 0.5


def shown(values: Collection[float], digits: int, *, error: bool = True) -> str:
    """The mean, ± its standard error where there are several seeds; a dash for none."""
    if not values:
        return "-"
    numbers = list(values)
    spread = f" ± {standard_error(numbers):,.{digits}f}" if error and len(numbers) > 1 else ""
    return f"{mean(numbers):,.{digits}f}{spread}"


def verdict(gaps: Collection[float], limit: float) -> str:
    """Whether the mean is at or below the limit, and whether seeds alone could make it so."""
    values = list(gaps)
    holds = "yes" if mean(values) <= limit else "**no**"
    if len(values) == 1:
        return f"{holds} (one seed)"
    quantile = STUDENT[min(len(values), len(STUDENT) + 1) - 2]
    if abs(mean(values) - limit) < quantile * standard_error(values):
        return f"{holds.strip('*')}, within the error of {len(values)} seeds (95 %)"
    return holds
