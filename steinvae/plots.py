"""Pictures of a run: sample grids and training curves. matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from steinvae._atomic import replacing
from steinvae.logging import read_metrics

UNITS = {
    "negative_elbo": "nats per image",
    "negative_bound": "nats per image",
    "nll": "nats per image",
    "label_nll": "nats per image",
    "label_error": "fraction of images",
    "distortion": "nats per image",
    "rate": "nats per image",
    "m2_loss": "nats per image",
    "moved": "code units, root mean square",
    "code_spread": "code units, root mean square",
    "direction": "nats per code unit, rms",
    "stein_discrepancy": "per squared code unit",
    "gradient_norm": "nats per parameter unit",
    "learning_rate": "Adam step size",
}
"""Unit of a term on the vertical axis; a term that is not listed is a pure number."""

_PANELS = 8  # more are unreadable on one page; the CSV has everything
_GAP = 0.65  # grey between the images of a grid


def save_samples(path: Path, images: Tensor, image_shape: tuple[int, ...]) -> None:
    """Draw images as a grid, black on white where they have no colours, row by row.

    Shapes: images (n, X), intensities in [0, 1] (others are clipped), n at least 1; X = H * W for
    an image_shape (H, W), or 3 * H * W for (3, H, W).
    Errors: ValueError for other shapes and for NaN; ImportError naming the extra.
    """
    figure_module()
    from matplotlib.image import imsave

    check_shape("save_samples", image_shape)
    size = math.prod(image_shape)
    if images.ndim != 2 or images.shape[0] == 0 or images.shape[1] != size:
        raise ValueError(
            f"save_samples: images must be (n, {size}) with n >= 1, got {tuple(images.shape)}"
        )
    if images.isnan().any():
        raise ValueError("save_samples: images must be finite, got NaN")
    mosaic = tile(as_drawn(images, image_shape))
    enlarge = max(1, round(720 / max(mosaic.shape)))  # 8 x 8 digits are too small to see otherwise
    mosaic = mosaic.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    with replacing(Path(path)) as temporary:
        imsave(temporary, mosaic, cmap="gray", vmin=0.0, vmax=1.0)


def check_shape(function: str, image_shape: tuple[int, ...]) -> None:
    """`ValueError` where images are neither grey nor in three colours."""
    if len(image_shape) != 2 and image_shape[:-2] != (3,):
        raise ValueError(f"{function}: image_shape must be (H, W) or (3, H, W), got {image_shape}")


def as_drawn(images: Tensor, image_shape: tuple[int, ...]) -> np.ndarray:
    """(n, X) -> (n, H, W), dark where the intensity is high, or (n, H, W, 3), in its colours."""
    pixels = images.detach().cpu().float().clamp(0, 1).view(-1, *image_shape)
    shown = 1 - pixels if len(image_shape) == 2 else pixels.movedim(1, -1)
    return shown.numpy()


def tile(images: np.ndarray) -> np.ndarray:
    """(n, H, W) or (n, H, W, 3) images as one array, about square, one grey pixel between and
    around them."""
    count, height, width, *colours = images.shape
    columns = math.ceil(math.sqrt(count * height / width))
    rows = math.ceil(count / columns)
    size = (rows * (height + 1) + 1, columns * (width + 1) + 1, *colours)
    mosaic = np.full(size, _GAP, dtype=np.float32)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1) + 1, index % columns * (width + 1) + 1
        mosaic[top : top + height, left : left + width] = image
    return mosaic


def save_curves(path: Path, metrics: Path) -> None:
    """Draw metrics.jsonl: one panel a term, training as a line, validation as marked points.

    Terms that never change are left out (a counter of skipped updates that stayed at 0). The
    vertical range ignores the first 2 % of the run, which would flatten the rest.

    Errors: ValueError where there is no record with a number; ImportError naming the extra.
    """
    figure_class, canvas_class = figure_module()
    panels = curves(read_metrics(metrics))
    if not panels:
        raise ValueError(f"{metrics}: expected records with numbers, got none")
    names = ([name for name in panels if _changes(panels[name])] or list(panels))[:_PANELS]
    end = max(steps[-1] for splits in panels.values() for steps, _ in splits.values())
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure = figure_class(figsize=(5.2 * columns, 3.2 * rows), dpi=110, layout="constrained")
    canvas_class(figure)
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_panel(axes, name, panels[name])
        axes.set_xlim(0, 1.02 * max(1, end))
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary)


Curve = tuple[list[int], list[float]]


def curves(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Curve]]:
    """{term: {split: (steps, values)}}, terms with validation points first, nulls left out."""
    panels: dict[str, dict[str, Curve]] = {}
    for record in records:
        for name, value in record.items():
            if name == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            split, _, term = name.rpartition("/")
            steps, values = panels.setdefault(term, {}).setdefault(split or "train", ([], []))
            steps.append(record["step"])
            values.append(float(value))
    return dict(sorted(panels.items(), key=lambda item: item[1].keys() <= {"train"}))


def _changes(splits: dict[str, Curve]) -> bool:
    return any(len(set(values)) > 1 for _, values in splits.values())


def _draw_panel(axes: Any, term: str, splits: dict[str, Curve]) -> None:
    settled: list[float] = []
    for split, (steps, values) in splits.items():
        if split == "train":
            axes.plot(steps, values, color="0.45", linewidth=1.0, label=split)
        else:
            axes.plot(steps, values, "o-", color="C3", markersize=4, linewidth=1.2, label=split)
        settled += [v for s, v in zip(steps, values, strict=True) if s >= 0.02 * steps[-1]]
    low, high = min(settled), max(settled)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.set_title(term.replace("_", " "), loc="left", fontsize=10)
    axes.set_xlabel("step (minibatch updates)")
    axes.set_ylabel(UNITS.get(term, "count or ratio"))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def figure_module() -> tuple[Any, Any]:
    """matplotlib's Figure and its Agg canvas, which need no display and no global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib, which the extra `train` installs "
            "(pip install 'stein-kernels[train]')"
        ) from error
    return Figure, FigureCanvasAgg
