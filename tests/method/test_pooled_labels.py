"""The label decoder with a 1x1 convolution: appendix D's sizes, and gradients against autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from steinvae.labels.pooled import PooledLabels

PLANES, PLACES, CLASSES, KERNELS, HEADS = 3, 4, 5, 6, 2
IMAGES, SAMPLES, LABELLED = 3, 2, 40
LABELS = torch.tensor([0, 3, 1])


@pytest.fixture
def heads() -> PooledLabels:
    """In float64, biases and all."""
    draws = torch.Generator().manual_seed(1)
    made = PooledLabels(PLANES, CLASSES, HEADS, draws, kernels=KERNELS)
    made.theta.flat = made.theta.flat.double()
    made.theta.flat += 0.3 * torch.randn(made.theta.flat.shape, generator=draws)
    return made


@pytest.fixture
def codes() -> torch.Tensor:
    draws = torch.Generator().manual_seed(2)
    return torch.randn(IMAGES, SAMPLES, PLACES * PLANES, generator=draws).double()


def as_printed(flat: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """log p(y | z) of one label decoder by torch's convolution and pooling: (L, S, N)."""
    sizes = (PLANES * KERNELS, KERNELS, KERNELS * CLASSES, CLASSES)
    kernels, kernel_bias, weight, bias = flat.split(sizes)
    planes = codes.flatten(0, 1).view(-1, 2, 2, PLANES).permute(0, 3, 1, 2)
    filters = kernels.view(PLANES, KERNELS).T[..., None, None]
    convolved = F.leaky_relu(F.conv2d(planes, filters, kernel_bias), 0.01)
    pooled = F.adaptive_avg_pool2d(convolved, 1).flatten(1)
    logits = pooled @ weight.view(KERNELS, CLASSES) + bias
    return logits.log_softmax(-1).unflatten(0, codes.shape[:2])


def test_sizes_are_the_appendix_table():
    with torch.device("meta"):
        made = PooledLabels(512, 1000, 1, torch.Generator(), "meta", kernels=2048)
    assert made.theta.flat.shape == (1, 512 * 2048 + 2048 + 2048 * 1000 + 1000)


def test_probabilities_are_those_of_a_convolution(heads, codes):
    expected = torch.stack([as_printed(flat, codes) for flat in heads.theta.flat])
    torch.testing.assert_close(heads.log_probabilities(codes), expected)


def test_gradients_are_autograds(heads, codes):
    """In the codes the mean over label decoders; in theta~ eq. 31, weighted or not."""
    flat, free = heads.theta.flat.clone().requires_grad_(), codes.clone().requires_grad_()
    each = torch.stack([as_printed(own, free)[torch.arange(IMAGES), :, LABELS] for own in flat])
    seen = heads.scores(codes, LABELS)
    torch.testing.assert_close(seen.log_likelihood, each.exp().mean(0).log().detach())
    (to_codes,) = torch.autograd.grad(each.mean(0).sum(), free, retain_graph=True)
    torch.testing.assert_close(seen.codes, to_codes)
    weights = torch.rand(IMAGES, SAMPLES).double()
    for given in (None, weights / weights.sum(1, keepdim=True)):
        w = torch.full_like(weights, 1 / SAMPLES) if given is None else given
        target = LABELLED / IMAGES * (w * each).sum() - 0.5 * flat.square().sum()
        (expected,) = torch.autograd.grad(target, flat, retain_graph=True)
        options = {"labelled": LABELLED, "weights": given}
        torch.testing.assert_close(heads.theta_score(codes, seen.residual, **options), expected)
