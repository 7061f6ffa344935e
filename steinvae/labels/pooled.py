"""The label decoder of appendix D: a 1x1 convolution, global average pooling, a softmax.

    p(y | z, theta~) = softmax(W mean_places leaky(V z_place + c) + b)

Shapes: K label decoders, B or L images, S codes an image, d = places * C code dimensions (a place's
planes side by side), H kernels, N classes.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steinvae.labels.softmax import LabelScores, SoftmaxLabels, indicators
from steinvae.models.conv import SLOPE
from steinvae.particles import Parameter, ParticleEnsemble


class _Passed(NamedTuple):
    """What a pass over rows of codes leaves, for one label decoder."""

    convolved: Tensor
    """(R, places, H) before the leaky ReLU."""

    pooled: Tensor
    """(R, H)."""

    log_p: Tensor
    """(R, N)."""


class PooledLabels(SoftmaxLabels):
    """K draws of (V, c, W, b) in one buffer; the prior is N(0, I).

    W starts small, so that the first predictions are near uniform. Gradients are written out, one
    label decoder at a time: a graph would hold the 1x1 convolutions of all of them.
    """

    def __init__(
        self,
        planes: int,
        classes: int,
        particles: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        *,
        kernels: int,
    ) -> None:
        self.planes, self.classes = planes, classes
        shapes = (
            Parameter("kernels", (planes, kernels), (2 / planes) ** 0.5),
            Parameter("kernel_bias", (kernels,), 0.0),
            Parameter("weight", (kernels, classes), 0.1 * kernels**-0.5),
            Parameter("bias", (classes,), 0.0),
        )
        self.theta = ParticleEnsemble(shapes, particles, generator, device)

    def log_probabilities(self, codes: Float[Tensor, "B S d"]) -> Float[Tensor, "K B S N"]:
        """log p(y | z, theta~_k) of every class and label decoder."""
        rows = codes.flatten(0, 1)
        each = [self._pass(own, rows).log_p for own in self._particles()]
        return torch.stack(each).unflatten(1, codes.shape[:2])

    @torch.no_grad()
    def scores(self, codes: Float[Tensor, "L S d"], labels: Int[Tensor, " L"]) -> LabelScores:
        """Values and gradients at codes of images with known labels."""
        shape, rows = codes.shape, codes.flatten(0, 1)
        onehot = indicators(labels, self.classes, codes).repeat_interleave(shape[1], 0)
        to_codes, each, residuals = torch.zeros_like(rows), [], []
        for own in self._particles():
            passed = self._pass(own, rows)
            residual = onehot - passed.log_p.exp()
            each.append((passed.log_p * onehot).sum(-1))
            residuals.append(residual)
            to_codes += (self._before(own, passed, residual) @ own["kernels"].T).flatten(1)
        count = len(each)
        log_mean = torch.stack(each).logsumexp(0) - log(count)
        return LabelScores(
            log_mean.view(shape[:2]),
            (to_codes / count).view(shape),
            torch.stack(residuals).unflatten(1, shape[:2]),
        )

    @torch.no_grad()
    def theta_score(
        self,
        codes: Float[Tensor, "L S d"],
        residual: Float[Tensor, "K L S N"],
        *,
        labelled: int,
        weights: Float[Tensor, "L S"] | None = None,
    ) -> Float[Tensor, "K P"]:
        """As `SoftmaxLabels.theta_score`: eq. 31."""
        images, samples, _ = codes.shape
        rows = codes.flatten(0, 1)
        each = codes.new_full((images, samples), 1 / samples) if weights is None else weights
        residual = (residual * (labelled / images * each[..., None])).flatten(1, 2)
        score = torch.empty_like(self.theta.flat)
        views = self.theta.views(score)
        for number, own in enumerate(self._particles()):
            passed = self._pass(own, rows)
            before = self._before(own, passed, residual[number]).flatten(0, 1)
            places = rows.view(-1, self.planes)
            torch.mm(places.T, before, out=views["kernels"][number])
            torch.sum(before, 0, out=views["kernel_bias"][number])
            torch.mm(passed.pooled.T, residual[number], out=views["weight"][number])
            torch.sum(residual[number], 0, out=views["bias"][number])
        return score.sub_(self.theta.flat)

    def _pass(self, own: dict[str, Tensor], rows: Float[Tensor, "R d"]) -> _Passed:
        places = rows.view(len(rows), -1, self.planes)
        convolved = places @ own["kernels"] + own["kernel_bias"]
        pooled = F.leaky_relu(convolved, SLOPE).mean(1)
        return _Passed(convolved, pooled, (pooled @ own["weight"] + own["bias"]).log_softmax(-1))

    def _before(
        self, own: dict[str, Tensor], passed: _Passed, residual: Float[Tensor, "R N"]
    ) -> Float[Tensor, "R places H"]:
        """The gradient before the leaky ReLU, from that in the logits."""
        to_pooled = residual @ own["weight"].T / passed.convolved.shape[1]
        rectified = to_pooled[:, None].expand_as(passed.convolved)
        return torch.ops.aten.leaky_relu_backward(rectified, passed.convolved, SLOPE, False)

    def _particles(self) -> list[dict[str, Tensor]]:
        with torch.no_grad():
            leaves = self.theta.leaves()
        return [
            {name: value[k] for name, value in leaves.items()} for k in range(len(self.theta.flat))
        ]
