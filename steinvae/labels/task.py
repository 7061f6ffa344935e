"""What a labelled update has to know beside its minibatch, and the images' part of its scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steinvae.config import CLASSES, Config
from steinvae.data import Dataset, choose_labelled
from steinvae.networks import Networks
from steinvae.pairs import Pairing
from steinvae.stein import Scores, posterior_scores


@dataclass(frozen=True)
class LabelTask:
    """Sizes of the two sets, and the weight of a label."""

    labelled: int
    """N_l, training images whose label is used."""

    unlabelled: int
    """N_u, the other training images."""

    zeta: float
    """Weight of log p(y | z) beside log p(x | z) in the codes of labelled images."""

    frequencies: Tensor | None = None
    """(C,) shares of the classes among the labelled images, where guesses are aligned with them."""

    @property
    def images(self) -> int:
        """N, all training images."""
        return self.labelled + self.unlabelled


def make_task(
    config: Config, dataset: Dataset, labelled: Tensor, device: torch.device | str = "cpu"
) -> LabelTask:
    """The task of a configuration; zeta = X / (C rho) by default, rho = L / B (section 4)."""
    pixels, classes = dataset.train.features, count_classes(config, dataset)
    batch = config.trainer.batch_size
    share = (batch // 2) / batch
    zeta = config.method.zeta or pixels / (classes * share)
    frequencies = None
    if config.method.align_guesses:
        own = labels_of(dataset.train)[labelled]
        frequencies = (torch.bincount(own, minlength=classes) / len(own)).to(device)
    return LabelTask(len(labelled), len(dataset.train) - len(labelled), zeta, frequencies)


def count_classes(config: Config, dataset: Dataset) -> int:
    """C: what the data set says, else what is known of it by its name."""
    own = getattr(dataset, "classes", None)
    return CLASSES[config.data.name] if own is None else len(own)


def labelled_indices(config: Config, dataset: Dataset) -> Tensor:
    """The training images whose label is used: (N_l,) int64.

    Errors: ValueError where the training split has no labels.
    """
    data = config.data
    return choose_labelled(
        labels_of(dataset.train),
        per_class=data.labels_per_class,
        fraction=data.label_fraction,
        seed=data.split_seed,
        names=getattr(dataset, "classes", None),
    )


def labels_of(split: object) -> Tensor:
    """The labels of a split of images, (N,) int64."""
    labels = getattr(split, "labels", None)
    if labels is None:
        raise ValueError("data.labels_per_class: the images of this data set have no labels")
    return labels


def image_scores(
    networks: Networks,
    codes: Tensor,
    pixels: Tensor,
    task: LabelTask,
    labelled: int,
    pairing: Pairing,
    log_ratio: Tensor | None = None,
) -> Scores:
    """Both scores of the images alone, the labelled set and the rest scaled to their own sizes.

    g_m = grad log p(theta_m) + N_u/(B - L) sum over unlabelled + N_l/L sum over labelled, the prior
    once: eq. 29. The last `labelled` = L images of the minibatch have labels; of a labelled set
    that is small each of them says less about theta than an unlabelled one.
    """
    first = len(pixels) - labelled
    parts = [
        posterior_scores(
            networks.model,
            networks.theta,
            codes[rows],
            pixels[rows],
            data_size=size,
            pairing=pairing,
            log_ratio=None if log_ratio is None else log_ratio[rows],
        )
        for rows, size in (
            (slice(None, first), task.unlabelled),
            (slice(first, None), task.labelled),
        )
    ]
    weights = [part.weights for part in parts if part.weights is not None]
    return Scores(
        codes=torch.cat([part.codes for part in parts]),
        theta=parts[0].theta + parts[1].theta + networks.theta.flat,  # the prior was in both
        log_likelihood=torch.cat([part.log_likelihood for part in parts], dim=1),
        weights=torch.cat(weights, dim=1) if weights else None,
    )
