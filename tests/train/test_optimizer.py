"""Adam as networks here need it: gradients in any memory order."""

from __future__ import annotations

import pytest
import torch

from steinvae.config import OptimizerConfig
from steinvae.networks import build_networks
from steinvae.optimizer import Optimizer, learning_rate
from steinvae.presets import load_preset


def as_they_come(gradient: torch.Tensor, order: str) -> torch.Tensor:
    """The same numbers, in the memory order that a convolution or a transposed product leaves."""
    if order == "rows":
        return gradient
    if gradient.ndim == 4:
        return gradient.contiguous(memory_format=torch.channels_last)
    return gradient.T.contiguous().T if gradient.ndim == 2 else gradient


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_gradients_move_their_own_weights(order):
    """As torch's plain Adam does: the fused kernel takes gradients by memory, not by index."""
    config = load_preset("tiny_imagenet")
    networks = build_networks(config, 3 * config.data.crop**2, "cpu", classes=5)
    settings = OptimizerConfig(learning_rate=1e-2)
    optimizer = Optimizer(networks, settings)
    own = [networks.theta.flat, *networks.eta()]
    plain = [value.detach().clone().requires_grad_() for value in own]
    adam = torch.optim.Adam(plain, fused=False, foreach=False)
    assert any(value.ndim == 4 and value.shape[1] > 1 for value in own)
    for step in range(3):
        gradients = [torch.randn_like(value.detach()) for value in own]
        theta, *eta = (as_they_come(each, order) for each in gradients)
        optimizer.schedule(step)
        optimizer.apply(theta, eta)
        adam.param_groups[0]["lr"] = learning_rate(settings, step)
        for value, gradient in zip(plain, gradients, strict=True):
            value.grad = gradient
        adam.step()
    for actual, expected in zip(own, plain, strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_encoder_alone_has_a_learning_rate_of_its_own(tiny):
    """Adam's first step is as long as its learning rate, whatever the gradient."""
    settings = {"learning_rate": 1e-3, "encoder_factor": 0.1}
    config = tiny(data={"labels_per_class": 1}, optimizer=settings)
    networks = build_networks(config, 64, "cpu")
    assert networks.labels is not None
    groups = ([networks.theta.flat], networks.eta(), networks.labels.trained())
    before = [[value.detach().clone() for value in group] for group in groups]
    (theta,), eta, labels = [[torch.ones_like(value) for value in group] for group in groups]
    Optimizer(networks, config.optimizer).apply(theta, eta, labels)
    steps = [
        max((value - old).abs().max().item() for value, old in zip(group, own, strict=True))
        for group, own in zip(groups, before, strict=True)
    ]
    assert steps == pytest.approx([1e-3, 1e-4, 1e-3], rel=1e-2)
