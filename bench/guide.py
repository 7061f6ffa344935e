"""``python -m bench.guide``: the numbers that docs/svgd.md quotes, by the code that it prints.

A loss summed and averaged, the posterior beside long chains, networks beside the same ones without
a kernel, and how wide particles end up. A few minutes on one core; needs scikit-learn.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from stein_kernels import kernel_stein_discrepancy, svgd_direction

PAGE = Path(__file__).resolve().parents[1] / "docs" / "svgd.md"
POSTERIOR, DISCREPANCY, NETWORKS, BLOCKS = range(4)
"""The blocks of code of the page."""

SPLITS, TRAINED = 10, 300
Direction = Callable[[Tensor, Tensor], Tensor]


def run_page(*blocks: int, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """What these blocks of the page leave behind."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names = {"__name__": "guide"} | (names or {})
    for block in blocks:
        exec(compile(code[block], str(PAGE), "exec"), names)
    return names


def settled(direction: Direction, precision: Tensor, particles: int, steps: int = 3000) -> Tensor:
    """Particles (M, d) of N(0, precision^-1), by RMSprop along a cosine from twice their spread."""
    draws = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(particles, len(precision), generator=draws)
    square = torch.zeros_like(x)
    for step in range(steps):
        phi = direction(x, -x @ precision)
        square = 0.95 * square + 0.05 * phi.square()
        rate = 0.05 * (1 + math.cos(math.pi * step / steps))
        x = x + rate * phi / (square.sqrt() + 1e-8)
    return x


def pairs(dimension: int) -> Tensor:
    """Precision of coordinates of variance 1 that are correlated by 0.8 in pairs."""
    one = torch.linalg.inv(torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    return torch.block_diag(*[one] * (dimension // 2))


def width(x: Tensor) -> tuple[float, float]:
    """Mean variance of the coordinates, and mean correlation within pairs."""
    covariance = torch.cov(x.T, correction=0)
    variance = covariance.diagonal()
    between = covariance[0::2, 1::2].diagonal() / (variance[0::2] * variance[1::2]).sqrt()
    return variance.mean().item(), between.mean().item()


def chains(log_density: Callable[[Tensor], Tensor], start: Tensor, steps: int = 2000) -> Tensor:
    """Draws of 500 chains of random-walk Metropolis, the first quarter left out, every fifth."""
    rows, dimension = start.shape
    z = start[torch.randint(rows, (500,))]
    proposal = torch.linalg.cholesky(torch.cov(start.T) * 2.38**2 / dimension)
    value, kept = log_density(z), []
    for step in range(steps):
        moved = z + torch.randn_like(z) @ proposal.T
        there = log_density(moved)
        taken = torch.rand(len(z)).log() < there - value
        z, value = torch.where(taken[:, None], moved, z), torch.where(taken, there, value)
        if step >= steps // 4 and step % 5 == 0:
            kept.append(z)
    return torch.cat(kept)


def posterior() -> None:
    """Standard deviations beside those of chains, and discrepancies."""
    page = run_page(POSTERIOR, DISCREPANCY)
    theta, log_density = page["theta"].detach(), page["log_density"]
    draws = chains(log_density, theta)
    print("posterior, sd:", [f"{each:.2f}" for each in theta.std(0)], "SVGD")
    print("posterior, sd:", [f"{each:.2f}" for each in draws.std(0)], "Metropolis")

    def discrepancy(at: Tensor, statistic: str) -> float:
        at = at.requires_grad_()
        (score,) = torch.autograd.grad(log_density(at).sum(), at)
        return kernel_stein_discrepancy(at.detach(), score, statistic=statistic).item()

    sets = [draws[torch.randperm(len(draws))[:100]] for _ in range(50)]
    for name in ("v", "u"):
        of_draws = [discrepancy(each, name) for each in sets]
        line = f"{discrepancy(theta, name):.2f}, draws {mean(of_draws):.2f} ± {stdev(of_draws):.2f}"
        print(f"discrepancy {name}: {line}, start {discrepancy(torch.randn(100, 4), name):.0f}")


def networks() -> None:
    """Root mean square errors of splits, with the kernel and without."""
    from stein_kernels.optim import SVGDAdam

    errors: dict[str, list[tuple[float, float]]] = {"SVGDAdam": [], "Adam": []}
    for split in range(SPLITS):
        for name, optimizer in (("SVGDAdam", SVGDAdam), ("Adam", torch.optim.Adam)):
            errors[name].append(_error(split, optimizer))
    for name, found in errors.items():
        ensemble, single = (list(each) for each in zip(*found, strict=True))
        line = f"{mean(ensemble):.1f} ± {stdev(ensemble) / SPLITS**0.5:.1f}"
        print(f"networks, {name}: {line}, single {mean(single):.1f}")
    apart = [a[0] - b[0] for a, b in zip(*errors.values(), strict=True)]
    print(f"networks, difference: {mean(apart):.1f} ± {stdev(apart) / SPLITS**0.5:.1f}")


def _error(split: int, optimizer: type[torch.optim.Optimizer]) -> tuple[float, float]:
    """Of the mean prediction, and of single ones; patients in the order of the split."""
    import sklearn.datasets

    def shuffled(**_: Any) -> tuple[Any, Any]:
        features, targets = load(return_X_y=True)
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(split))
        return features[order.numpy()], targets[order.numpy()]

    load = sklearn.datasets.load_diabetes
    torch.manual_seed(split)
    sklearn.datasets.load_diabetes = shuffled
    try:
        page = run_page(NETWORKS, names={"torch": torch, "SVGDAdam": optimizer})
    finally:
        sklearn.datasets.load_diabetes = load
    with torch.no_grad():
        found = vmap(page["predict"], in_dims=(0, None))(page["rows"], page["inputs"][TRAINED:])
    unit, outputs = page["targets"].std(), page["outputs"][TRAINED:]
    both = (outputs - found.mean(0), outputs - found)
    first, second = ((each.square().mean().sqrt() * unit).item() for each in both)
    return first, second


def widths() -> None:
    """Variances by number and dimension, and those of kernels of blocks."""
    for particles, steps in ((20, 3000), (100, 3000), (500, 1500)):
        found = [
            settled(svgd_direction, torch.eye(d), particles, steps).var(0, correction=0).mean()
            for d in (1, 2, 5, 10, 20, 50, 100)
        ]
        print(f"variance, {particles} particles:", [f"{each:.2f}" for each in found])
    block_direction = run_page(BLOCKS)["block_direction"]
    for wide in (0, 2, 1):
        cells = []
        for d in (2, 10, 50):
            variance, between = width(
                settled(lambda x, g, w=wide or d: block_direction(x, g, w), pairs(d), 100)
            )
            cells.append(f"{variance:.2f}, {between:.2f}")
        print(f"kernel of {wide or 'all'} coordinates:", cells)
    away = settled(lambda x, g: svgd_direction(x, g, leave_one_out=True), torch.eye(50), 100)
    print(f"leave_one_out of persistent particles, d = 50: {away.var(0).mean():.0f}")


def summed_or_mean() -> None:
    """Variance of 100 particles of N(0, I) in two dimensions by the two losses; 1 is right."""
    from stein_kernels.optim import SVGDAdam

    for name in ("sum", "mean"):
        torch.manual_seed(0)
        theta = torch.nn.Parameter(torch.randn(100, 2))
        optimizer = SVGDAdam([theta], lr=0.1)
        for _ in range(1000):
            optimizer.zero_grad()
            getattr(theta.square().sum(1) / 2, name)().backward()
            optimizer.step()
        print(f"loss by .{name}(): variance {theta.detach().var(0).mean():.2f}")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m bench.guide", description=__doc__).parse_args()
    torch.set_num_threads(1)
    summed_or_mean()
    posterior()
    widths()
    networks()
