"""Which training images keep their label, and minibatches of a labelled and an unlabelled half.

Both are pure functions of their seeds (and of the step), so that a resumed run needs no state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from steinvae.data.sampling import BatchSampler, step_generator


def choose_labelled(
    labels: Tensor,
    *,
    per_class: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Indices of a stratified subset: `per_class` images of every class, or a fraction of each.

    A class of n images gives round(fraction n) of them, at the least one. The subset depends on
    (labels, seed) alone, on every machine and version, and grows with its size: 10 a class are
    among the 60 of the same seed.

    Shapes: labels (N,) int64 -> (n,) int64 in ascending order.
    Errors: ValueError for both or neither of the sizes, and naming a class that has too few images
    to leave one without a label, by its name where `names` has it.
    """
    if (per_class is None) == (fraction is None):
        raise ValueError(
            f"choose_labelled: expected per_class or fraction, got {per_class} and {fraction}"
        )
    stream = np.random.RandomState(seed)  # frozen stream (NEP 19)
    classes = labels.numpy()
    chosen = []
    for label in np.unique(classes):
        members = stream.permutation(np.flatnonzero(classes == label))
        count = per_class if fraction is None else max(1, round(fraction * len(members)))
        if count is None or not 1 <= count < len(members):
            setting = "labels_per_class" if fraction is None else "label_fraction"
            called = f"class {label}" if names is None else f"class {label} ({names[label]})"
            raise ValueError(
                f"data.{setting} must choose at least one training image of {called} and leave "
                f"one without a label, of the {len(members)} that it has; got {count}"
            )
        chosen.append(members[:count])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


class LabelledSampler:
    """Minibatch `step`: unlabelled images, then as many labelled ones (B // 2 of the B).

    The unlabelled half is a `BatchSampler` over the images without a label. The labelled images
    repeat without end, each once an epoch, in an order that spreads every class evenly: of C equal
    classes, image i C to i C + C - 1 of an epoch are one of each. Epochs follow each other inside
    minibatches, so that a minibatch may be larger than the labelled set.

    Errors: ValueError where the minibatch has no two halves or too few images have no label.
    """

    def __init__(self, labels: Tensor, labelled: Tensor, batch_size: int, seed: int) -> None:
        if batch_size < 2:
            raise ValueError(
                f"trainer.batch_size must be at least 2 where labels are in use, got {batch_size}"
            )
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[labelled] = False
        self.labelled, self.unlabelled = labelled, rest.nonzero().flatten()
        self.labelled_size = batch_size // 2
        most = 2 * len(self.unlabelled)
        if batch_size > most:
            raise ValueError(
                f"trainer.batch_size must be at most {most}, twice the images without a label, "
                f"got {batch_size}"
            )
        self._others = BatchSampler(len(self.unlabelled), batch_size - self.labelled_size, seed)
        self._classes = [labelled[labels[labelled] == label] for label in labels[labelled].unique()]
        self._seed = seed
        self._epochs: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """Indices of minibatch `step` = 0, 1, ...: (B,) int64, the labelled ones last."""
        unlabelled = self.unlabelled[self._others.indices(step)]
        start, size = step * self.labelled_size, len(self.labelled)
        stop = start + self.labelled_size
        first, last = start // size, (stop - 1) // size
        self._epochs = {epoch: self._epoch(epoch) for epoch in range(first, last + 1)}
        stream = torch.cat([self._epochs[epoch] for epoch in range(first, last + 1)])
        return torch.cat([unlabelled, stream[start - first * size : stop - first * size]])

    def _epoch(self, epoch: int) -> Tensor:
        """Every labelled image once: image r of a class of n, shuffled, at (r + u) / n, u a class's
        own offset."""
        if epoch in self._epochs:
            return self._epochs[epoch]
        generator = step_generator(self._seed, epoch, "labelled permutation")
        places = []
        for members in self._classes:
            rank = torch.randperm(len(members), generator=generator)
            offset = torch.rand(1, generator=generator, dtype=torch.float64)
            places.append((rank + offset) / len(members))
        order = torch.cat(places).argsort(stable=True)
        return torch.cat(self._classes)[order]
