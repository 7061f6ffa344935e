"""The picture of Figure 1: densities of codes for three test points, one column a method.

Shapes: B points, n draws a point. Units: both axes are code units.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steinvae._atomic import replacing
from steinvae.models.gaussian_mixture import MixturePosterior
from steinvae.plots import figure_module

MASSES = (0.25, 0.5, 0.75)
"""The test points shown are those whose mass in the first mode is nearest to these."""

BINS = 70


def shown_points(posterior: MixturePosterior) -> list[int]:
    """Indices of the test points of the picture, a row each."""
    mass = posterior.log_weights[:, 0].exp()
    return [int((mass - wanted).abs().argmin()) for wanted in MASSES]


def by_mass(posterior: MixturePosterior) -> list[int]:
    """Indices of all points, the lightest first mode first."""
    return posterior.log_weights[:, 0].argsort().tolist()


def edges(posterior: MixturePosterior) -> np.ndarray:
    """Bin edges of both axes: all modes and four standard deviations around them."""
    spread = torch.linalg.inv(posterior.precision).diagonal().max().sqrt()
    low = (posterior.means.min() - 4 * spread).item()
    return np.linspace(low, (posterior.means.max() + 4 * spread).item(), BINS + 1)


def exact_density(posterior: MixturePosterior, bins: np.ndarray) -> np.ndarray:
    """p(z | x) at the bins' centres, (B, BINS, BINS), the second axis of z down the rows."""
    centres = torch.from_numpy((bins[1:] + bins[:-1]) / 2)
    down, across = torch.meshgrid(centres, centres, indexing="ij")
    grid = torch.stack([across, down], -1).flatten(0, 1)
    density = posterior.log_density(grid.expand(len(posterior.means), -1, -1)).exp()
    return density.unflatten(-1, down.shape).numpy()


def drawn_density(draws: Tensor, bins: np.ndarray) -> np.ndarray:
    """Share of draws a bin over its area: (B, n, 2) -> (B, BINS, BINS), axes as `exact_density`."""
    area = (bins[1] - bins[0]) ** 2
    counts = [np.histogram2d(z[:, 1], z[:, 0], bins=(bins, bins))[0] for z in draws.numpy()]
    return np.stack(counts) / (draws.shape[1] * area)


def save_densities(
    path: Path, bins: np.ndarray, columns: Sequence[tuple[str, np.ndarray]], rows: Sequence[str]
) -> None:
    """Draw (title, (B, BINS, BINS)) columns; grey levels of a row are those of its first panel."""
    figure_class, canvas_class = figure_module()
    size = (1.5 * len(columns) + 0.4, 1.55 * len(rows) + 0.3)
    figure = figure_class(figsize=size, dpi=100, layout="constrained")
    canvas_class(figure)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    extent = (bins[0], bins[-1], bins[0], bins[-1])
    for place, (title, densities) in enumerate(columns):
        for axes, density, first in zip(grid[:, place], densities, columns[0][1], strict=True):
            top = first.max()
            axes.imshow(density, origin="lower", extent=extent, cmap="gray_r", vmin=0, vmax=top)
            axes.tick_params(labelsize=7)
        grid[0, place].set_title(title, fontsize=9)
    for axes, row in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(row, fontsize=8)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary)
