"""Perturbations of an image that change the particles' prediction most (Miyato et al. 2018).

    r = argmax over |r| <= radius of KL( p(. | x) || p(. | x + r) )

by one step of the power method, p being averaged over label decoders. An encoder that sees x + r
and is asked for the class of x learns predictions that are smooth around the images.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steinvae.gradients import Batch
from steinvae.labels.softmax import LabelModel
from steinvae.networks import Networks

START = 1.0
"""Length of the random direction where the gradient is taken, in pixels of [0, 1]."""


def perturbed(networks: Networks, batch: Batch, radius: float) -> Batch:
    """The minibatch with r added to what is shown of its images without a label. Decoders still
    explain, and guesses are still made of, the images themselves.
    """
    if batch.probe is None or batch.labels is None or networks.labels is None:
        raise ValueError("an adversarial perturbation needs label decoders, labels and a probe")
    first = slice(len(batch.pixels) - len(batch.labels))
    noise = batch.images(first).noise[:, :1]
    with networks.predicting():
        along = _direction(
            networks, networks.labels, batch.pixels[first], noise, batch.probe[first]
        )
    shown = batch.shown.clone()
    shown[first] += radius * along
    return batch._replace(visible=shown)


def _direction(
    networks: Networks,
    heads: LabelModel,
    pixels: Float[Tensor, "B X"],
    noise: Float[Tensor, "#B 1 d"],
    probe: Float[Tensor, "B X"],
) -> Float[Tensor, "B X"]:
    """Unit vectors along the gradient of KL at x + START * probe / |probe|, one code an image."""

    def predict(images: Tensor) -> Tensor:
        log_p = heads.log_probabilities(networks.encoder.draw(images, noise))
        return log_p.logsumexp((0, 2))  # the mean's logarithm to a constant

    with torch.no_grad():
        target = predict(pixels).softmax(-1)
    start = probe / probe.norm(dim=1, keepdim=True)
    with torch.enable_grad():
        near = (pixels + START * start).requires_grad_()
        cross_entropy = -(target * predict(near)).sum()
    (gradient,) = torch.autograd.grad(cross_entropy, near)
    return gradient / gradient.norm(dim=1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
