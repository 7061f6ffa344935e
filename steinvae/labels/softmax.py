"""The decoder for labels, p(y | z, theta~) = softmax(W z + b), as particles."""

from __future__ import annotations

from math import log
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steinvae.particles import Parameter, ParticleEnsemble


@runtime_checkable
class LabelModel(Protocol):
    """What training, checkpoints and prediction ask of a model of labels."""

    classes: int

    def trained(self) -> list[Tensor]:
        """What the optimiser moves; updated in place."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The same by name, for checkpoints."""
        ...

    def log_probabilities(self, codes: Tensor) -> Tensor:
        """log p(y | z): codes (B, S, d) -> (K, B, S, C) nats, K members that are averaged."""
        ...


class LabelScores(NamedTuple):
    """Gradients of the label's log-likelihood at labelled codes; closed form."""

    log_likelihood: Tensor
    """(L, S) nats: log of the mean over label decoders of p(y | z, theta~)."""

    codes: Tensor
    """(L, S, d): mean over label decoders of grad_z log p(y | z, theta~)."""

    residual: Tensor
    """(K, L, S, C): onehot(y) - p(. | z, theta~), the gradient in the logits."""


def indicators(labels: Int[Tensor, " L"], classes: int, like: Tensor) -> Float[Tensor, "L C"]:
    """onehot(y), in the dtype of `like`; reads nothing on the host, as torch's does to check."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(like)


class SoftmaxLabels:
    """K draws of (W, b) in one (K, d C + C) buffer; the prior is N(0, I).

    They start small, at a standard deviation of 0.1 / sqrt(d): the first predictions are near
    uniform, and the particles differ.
    """

    predicted: Tensor | None = None
    """(C,): running mean of p(y | x) over images without a label, where guesses are aligned."""

    def __init__(
        self,
        codes: int,
        classes: int,
        particles: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        self.codes, self.classes = codes, classes
        shapes = (
            Parameter("weight", (codes, classes), 0.1 * codes**-0.5),
            Parameter("bias", (1, classes), 0.0),
        )
        self.theta = ParticleEnsemble(shapes, particles, generator, device)

    def trained(self) -> list[Tensor]:
        """The buffer."""
        return [self.theta.flat]

    def tensors(self) -> dict[str, Tensor]:
        """The buffer, and what guesses are aligned by where they are, by name."""
        aligned = {} if self.predicted is None else {"predicted": self.predicted}
        return {"theta": self.theta.flat, **aligned}

    def align(self) -> None:
        """Keep `predicted` from now on."""
        self.predicted = self.theta.flat.new_full((self.classes,), 1 / self.classes)

    def log_probabilities(self, codes: Float[Tensor, "B S d"]) -> Float[Tensor, "K B S C"]:
        """log p(y | z, theta~_k) of every class and label decoder."""
        images, samples, _ = codes.shape
        weight, bias = self._weights()
        flat = codes.reshape(1, images * samples, -1).expand(len(weight), -1, -1)
        logits = torch.baddbmm(bias, flat, weight).unflatten(1, (images, samples))
        return logits.log_softmax(-1)

    def scores(self, codes: Float[Tensor, "L S d"], labels: Int[Tensor, " L"]) -> LabelScores:
        """Values and gradients at codes of images with known labels."""
        log_p = self.log_probabilities(codes)
        onehot = indicators(labels, self.classes, log_p)[:, None]
        each = (log_p * onehot).sum(-1)
        log_mean = each.logsumexp(0) - log(len(each))
        residual = onehot - log_p.exp()
        weight, _ = self._weights()
        to_codes = torch.einsum("klsc,kdc->lsd", residual, weight) / len(weight)
        return LabelScores(log_mean, to_codes, residual)

    def theta_score(
        self,
        codes: Float[Tensor, "L S d"],
        residual: Float[Tensor, "K L S C"],
        *,
        labelled: int,
        weights: Float[Tensor, "L S"] | None = None,
    ) -> Float[Tensor, "K P"]:
        """grad [ log p(theta~) + N_l/L sum_l sum_s w_ls log p(y_l | z_ls, theta~) ], eq. 31.

        `weights` sum to 1 over the codes of an image; by default 1/S. `labelled` is N_l.
        """
        images, samples, _ = codes.shape
        scale = labelled / images
        if weights is None:
            residual = residual * (scale / samples)
        else:
            residual = residual * (scale * weights[..., None])
        to_weight = torch.einsum("klsc,lsd->kdc", residual, codes)
        to_bias = residual.sum((1, 2))
        return torch.cat([to_weight.flatten(1), to_bias], 1) - self.theta.flat

    def _weights(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            leaves = self.theta.leaves()
        return leaves["weight"], leaves["bias"]
