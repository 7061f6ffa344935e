"""The picture of Figure 2: marginals and pairwise posteriors of factor scores of one document.

Shapes: n draws, V topics. Units: both axes are expected tokens of a topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from steinvae._atomic import replacing
from steinvae.plots import figure_module

COLOURS = ("tab:purple", "tab:red", "tab:green")
"""Gibbs, VAE, Stein VAE: the paper's."""

SHOWN = 3
"""Topics of the picture."""

BINS = 24


def largest_topics(exact: Float[Tensor, "n V"]) -> list[int]:
    """The topics with the largest posterior means, largest first."""
    return exact.mean(0).argsort(descending=True)[:SHOWN].tolist()


def save_posteriors(path: Path, draws: Mapping[str, Float[Tensor, "n V"]]) -> None:
    """Draw the marginals on the diagonal and every pair below it, for up to three sets of draws.

    The first set is the truth: its largest topics are shown, within its range of 0.1 to 99.9 %.

    Errors: ImportError naming the extra.
    """
    figure_class, canvas_class = figure_module()
    truth = next(iter(draws.values()))
    topics = largest_topics(truth)
    bins = {topic: _edges(truth[:, topic].numpy()) for topic in topics}
    figure = figure_class(figsize=(5.4, 5.0), dpi=100, layout="constrained")
    canvas_class(figure)
    grid = figure.subplots(SHOWN, SHOWN, squeeze=False)
    for row, down in enumerate(topics):
        for column, across in enumerate(topics):
            axes = grid[row, column]
            axes.tick_params(labelsize=7)
            if column > row:
                axes.set_axis_off()
                continue
            for colour, (name, values) in zip(COLOURS, draws.items(), strict=False):
                first, second = values[:, across].numpy(), values[:, down].numpy()
                if row == column:
                    edges = bins[across]
                    share = np.full(len(first), 1 / (len(first) * (edges[1] - edges[0])))
                    axes.hist(
                        first, edges, weights=share, histtype="step", color=colour, label=name
                    )
                else:
                    _contours(axes, first, second, (bins[across], bins[down]), colour)
            if row == SHOWN - 1:
                axes.set_xlabel(f"topic {across}", fontsize=8)
            if column == 0:
                axes.set_ylabel("density" if row == 0 else f"topic {down}", fontsize=8)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", fontsize=9, frameon=False)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary)


def _edges(values: np.ndarray) -> np.ndarray:
    low, high = np.quantile(values, (0.001, 0.999))
    margin = 0.15 * (high - low)
    return np.linspace(max(0.0, low - margin), high + margin, BINS + 1)


def _contours(
    axes, first: np.ndarray, second: np.ndarray, edges: tuple[np.ndarray, np.ndarray], colour: str
) -> None:
    """The smallest sets of bins that hold half and 90 % of the draws in sight, outlined."""
    counts, _, _ = np.histogram2d(first, second, bins=edges)
    if not counts.any():  # all draws are elsewhere: there is nothing to outline
        return
    counts = _smooth(_smooth(counts).T).T
    ordered = np.sort(counts.ravel())[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    levels = sorted({ordered[np.searchsorted(held, share)] for share in (0.5, 0.9)})
    across, down = ((each[1:] + each[:-1]) / 2 for each in edges)
    axes.contour(across, down, counts.T, levels=levels, colors=colour, linewidths=1)


def _smooth(counts: np.ndarray) -> np.ndarray:
    """Weights 1 4 6 4 1 down the columns: some hundred draws leave a bin ragged."""
    weights = np.array([1, 4, 6, 4, 1]) / 16
    padded = np.pad(counts, ((2, 2), (0, 0)))
    shifted = [w * padded[i : i + len(counts)] for i, w in enumerate(weights)]
    return np.sum(shifted, axis=0)
