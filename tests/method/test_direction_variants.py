"""Directions of the codes that the study compares: formulas written out, and where they vanish."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from stein_kernels import median_bandwidth
from steinvae.experiments.direction_variants import (
    KNOW_DENSITY,
    VARIANTS,
    Seen,
    coordinates,
    inverse_multiquadric,
    mixture,
    moments,
    rbf,
    slices,
    spread,
)

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)


def seen(images: int = 2, samples: int = 6, d: int = 3) -> Seen:
    """Codes and scores without a relation, in float64."""
    codes, score, own = torch.randn(3, images, samples, d).double().unbind()
    return Seen(codes, score, own, torch.linalg.qr(torch.randn(d, d).double())[0])


def test_inverse_multiquadric_is_the_kernel_and_its_gradient():
    """phi_j = mean over i != j of k g_i + grad_{z_i} k, the gradient by autograd."""
    given = seen()
    expected = torch.zeros_like(given.codes)
    for b, codes in enumerate(given.codes):
        h = torch.pdist(codes).quantile(0.5) ** 2
        for j in range(6):
            for i in set(range(6)) - {j}:
                source = codes[i].clone().requires_grad_()
                kernel = (1 + (source - codes[j]).square().sum() / h).rsqrt()
                (repulsion,) = torch.autograd.grad(kernel, source)
                expected[b, j] += (kernel.detach() * given.score[b, i] + repulsion) / 5
    close(inverse_multiquadric(given), expected)


def test_coordinates_are_one_direction_for_each_dimension():
    given = seen()
    expected = [
        rbf(Seen(codes[..., None], score[..., None], codes[..., None], given.basis))
        for codes, score in zip(given.codes.unbind(-1), given.score.unbind(-1), strict=True)
    ]
    close(coordinates(given), torch.cat(expected, -1))


def test_slices_turn_with_the_codes():
    """Turning codes and scores by the basis turns the slices into coordinates."""
    given = seen()
    turned = Seen(given.codes @ given.basis, given.score @ given.basis, given.own, given.basis)
    close(slices(given) @ given.basis, coordinates(turned))
    axes = Seen(given.codes, given.score, given.own, torch.eye(3).double())
    close(slices(axes), coordinates(given))
    assert (slices(given) - coordinates(given)).abs().max() > 1e-3


def test_moments_are_those_of_the_other_codes():
    given = seen()
    expected = given.score.clone()
    for j in range(6):
        others = given.codes[:, [i for i in range(6) if i != j]]
        mean, variance = others.mean(1), others.var(1)
        expected[:, j] += (4 - 2) / 4 * (given.codes[:, j] - mean) / variance
    close(moments(given), expected)


def test_mixture_is_the_mean_and_spread_shrinks_half_way():
    given = seen()
    parts = [rbf(given, factor) for factor in (0.25, 1.0, 4.0)]
    close(mixture(given), (parts[0] + parts[1] + parts[2]) / 3)
    variance = given.codes.var(1)
    between = (variance.log() + variance.mean(0).log()) / 2
    close(spread(given.codes)[:, 0], (between / 2).exp())
    assert median_bandwidth(given.on(spread(given.codes)).codes).shape == (2,)


def outward(name: str, width: float) -> tuple[Tensor, Tensor]:
    """Mean over 3,000 sets of <phi_j, z_j> and its error; q = N(0, width^2 I), p = N(0, I)."""
    draws = torch.randn(3000, 10, 4, generator=torch.Generator().manual_seed(1)).double()
    codes = width * draws
    given = Seen(codes, -codes, -codes / width**2, torch.eye(4).double())
    each = (VARIANTS[name](given) * draws).sum(-1).mean(1)
    return each.mean(), each.std() / len(each) ** 0.5


@pytest.mark.parametrize("name", VARIANTS)
def test_a_direction_widens_narrow_codes_and_leaves_the_target_alone(name):
    """At q = p the mean is zero up to five errors and the O(1/S) of an h that the codes choose."""
    settled, error = outward(name, 1.0)
    narrow, _ = outward(name, 0.7)
    assert narrow > 0
    assert settled.abs() < 5 * error + 0.15 * narrow
    if name in KNOW_DENSITY or name == "moments of the other codes":
        assert settled.abs() < 5 * error + 1e-12
