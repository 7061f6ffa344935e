"""What a trainer holds where labels are in use: the two streams, the update, learning curves."""

from __future__ import annotations

import torch
from torch import Tensor

from steinvae.config import Config
from steinvae.data import Dataset, LabelledSampler
from steinvae.density import evenly_spaced
from steinvae.labels.objectives import labelled_objective
from steinvae.labels.predict import class_probabilities, scores
from steinvae.labels.task import labelled_indices, labels_of, make_task
from steinvae.networks import Networks

VALIDATION_IMAGES, VALIDATION_CODES = 1000, 5
"""Images and codes an image behind a point of the learning curves: the standard error of an error
of 5 % is 0.7 %."""


class Labelled:
    """The labelled subset of a data set and everything that follows from it.

    Errors: ValueError where the images have no labels or a class is too small for the subset.
    """

    def __init__(
        self, config: Config, dataset: Dataset, device: torch.device | str = "cpu"
    ) -> None:
        self.indices = labelled_indices(config, dataset)
        self._labels, self._dataset = labels_of(dataset.train), dataset
        self.sampler = LabelledSampler(
            self._labels, self.indices, config.trainer.batch_size, config.seed
        )
        self.task = make_task(config, dataset, self.indices, device)
        self.objective = labelled_objective(config.method.name, self.task)
        self._seed = config.seed

    def labels(self, minibatch: Tensor) -> Tensor:
        """Labels of the last L = B // 2 of a minibatch's indices, or of a process's share of them:
        (L,) int64."""
        return self._labels[minibatch[-(len(minibatch) // 2) :]]

    def validate(self, networks: Networks) -> dict[str, float]:
        """Error and NLL of validation images, for the learning curves alone: nothing is chosen."""
        split = self._dataset.validation
        chosen = evenly_spaced(len(split), min(VALIDATION_IMAGES, len(split)))
        probabilities = class_probabilities(
            networks, split.batch(chosen), seed=self._seed, samples=VALIDATION_CODES
        )
        found = scores(probabilities, labels_of(split)[chosen])
        return {"validation/label_error": found.error, "validation/label_nll": found.nll}
