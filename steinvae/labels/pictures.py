"""Pictures of a classifier: confusion matrix, most uncertain images, a map of the codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steinvae._atomic import replacing
from steinvae.data import step_generator
from steinvae.density import evenly_spaced
from steinvae.density.likelihood import noise_dimension
from steinvae.networks import Networks
from steinvae.plots import as_drawn, check_shape, figure_module

MAP_IMAGES, MAP_CODES = 500, 4
AT_ONCE = 50  # images, whose noise may be a plane each
UNCERTAIN, COLUMNS = 40, 8
NAMED = 12  # classes that are told apart by number and colour


def confusion(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Counts (C, C): rows are true classes, columns the most probable ones."""
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(1)
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def save_confusion(path: Path, probabilities: Tensor, labels: Tensor) -> None:
    """The confusion matrix with its counts, shaded by the share of the true class."""
    figure_class, canvas_class = figure_module()
    counts = confusion(probabilities, labels)
    share = counts / counts.sum(1, keepdim=True).clamp_min(1)
    figure = figure_class(figsize=(5.4, 5.0), dpi=110, layout="constrained")
    canvas_class(figure)
    axes = figure.add_subplot()
    axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)  # sqrt: errors are rare
    named = len(counts) <= NAMED
    for row, line in enumerate(counts.tolist()):
        for column, count in enumerate(line):
            if count and named:
                colour = "white" if share[row, column] > 0.4 else "black"
                axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    classes = range(len(counts)) if named else ()
    axes.set(xticks=classes, yticks=classes, xlabel="predicted", ylabel="true class")
    axes.set_title("test images by class", loc="left", fontsize=10)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary)


def save_uncertain(
    path: Path,
    probabilities: Tensor,
    labels: Tensor,
    pixels: Callable[[Tensor], Tensor],
    image_shape: tuple[int, ...],
) -> None:
    """The images whose class probabilities have the highest entropy, the most uncertain first.

    Above each: true class | the two most probable ones with their probabilities in percent, red
    where the first is wrong.

    `pixels` gives intensities (n, X) of the images at some indices. Errors: ValueError where
    image_shape is neither (H, W) nor (3, H, W).
    """
    check_shape("save_uncertain", image_shape)
    figure_class, canvas_class = figure_module()
    entropy = -torch.xlogy(probabilities, probabilities).sum(1)
    chosen = entropy.argsort(descending=True)[:UNCERTAIN]
    shown = as_drawn(pixels(chosen), image_shape)
    height, width, *colours = shown.shape[1:]
    above = max(1, height // 4)  # rows of pixels for the line of text
    rows = -(-len(chosen) // COLUMNS)
    size = (rows * (height + above), COLUMNS * (width + 1), *colours)
    canvas = np.ones(size, dtype=np.float32)
    figure = figure_class(figsize=(1.15 * COLUMNS, 1.45 * rows), dpi=110, layout="constrained")
    canvas_class(figure)
    axes = figure.add_subplot()
    for place, index in enumerate(chosen.tolist()):
        top, left = place // COLUMNS * (height + above) + above, place % COLUMNS * (width + 1)
        canvas[top : top + height, left : left + width] = shown[place]
        best = probabilities[index].topk(2)
        guesses = " ".join(
            f"{c}:{100 * p:.0f}" for c, p in zip(best.indices, best.values, strict=True)
        )
        colour = "C3" if int(best.indices[0]) != int(labels[index]) else "black"
        text = f"{int(labels[index])} | {guesses}"
        axes.text(left, top - 0.6, text, fontsize=7, color=colour, va="bottom")
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary)


@torch.no_grad()
def save_code_map(
    path: Path,
    networks: Networks,
    pixels: Callable[[Tensor], Tensor],
    labels: Tensor,
    seed: int,
) -> None:
    """Codes of test images by class, in the plane in which the means of classes differ most.

    A few codes an image, so that the spread of an image's codes is seen beside that of images.
    """
    figure_class, canvas_class = figure_module()
    chosen = evenly_spaced(len(labels), min(MAP_IMAGES, len(labels)))
    generator = step_generator(seed, 0, "code map")
    shape = (len(chosen), MAP_CODES, noise_dimension(networks.encoder))
    noise = torch.randn(shape, generator=generator).to(networks.device)
    batches = zip(pixels(chosen).split(AT_ONCE), noise.split(AT_ONCE), strict=True)
    parts = [networks.encoder(own.to(networks.device), xi) for own, xi in batches]
    codes = torch.cat(parts).flatten(0, 1).cpu()
    classes = labels[chosen].repeat_interleave(MAP_CODES)
    means = torch.stack([codes[classes == label].mean(0) for label in classes.unique()])
    _, lengths, directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    plane = F.pad((codes - means.mean(0)) @ directions[:2].T, (0, max(0, 2 - len(directions))))
    share = lengths.square() / lengths.square().sum()
    figure = figure_class(figsize=(6.2, 5.4), dpi=110, layout="constrained")
    canvas_class(figure)
    axes = figure.add_subplot()
    named = len(classes.unique()) <= NAMED
    for label in classes.unique().tolist():
        points = plane[classes == label]
        colour = f"C{label}" if label < 10 else None
        axes.scatter(points[:, 0], points[:, 1], s=5, alpha=0.6, color=colour, label=str(label))
    shown = [f"{100 * part:.0f} %" for part in share[:2].tolist()] + ["0 %"]
    axes.set_xlabel(f"first component of the class means ({shown[0]} of their variance)")
    axes.set_ylabel(f"second ({shown[1]})")
    title = f"{MAP_CODES} codes of each of {len(chosen)} test images"
    axes.set_title(title, loc="left", fontsize=10)
    if named:
        axes.legend(frameon=False, fontsize=8, markerscale=3)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary)
