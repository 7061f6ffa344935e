"""The recognition networks: what each computes, and that `flow` cannot fold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steinvae.recognition import (
    ENCODERS,
    GaussianEncoder,
    ResidualEncoder,
    make_encoder,
)
from steinvae.spectral import spectral_norm_bound

CODES, PIXELS = 3, 6


def jacobians(encoder, pixels: Tensor, noise: Tensor) -> Tensor:
    """d z / d xi at every (image, sample): (B, S, d, d)."""

    def one(x: Tensor, xi: Tensor) -> Tensor:
        return encoder(x[None], xi[None, None])[0, 0]

    over_noise = torch.func.vmap(torch.func.jacrev(one, argnums=1), in_dims=(None, 0))
    return torch.func.vmap(over_noise, in_dims=(0, None))(pixels, noise)


def sharpened(kind: str, factor: float) -> ResidualEncoder:
    """An encoder whose residual is `factor` times as steep as at the start, layer by layer."""
    encoder = make_encoder(kind, PIXELS, (16, 16), CODES, torch.Generator().manual_seed(3)).double()
    assert isinstance(encoder, ResidualEncoder)
    with torch.no_grad():
        for parameter in encoder.residual.parameters():
            parameter *= factor
    return encoder


@pytest.mark.parametrize("factor", [1.0, 4.0, 30.0])
def test_flow_is_injective_however_steep_its_residual(factor):
    encoder = sharpened("flow", factor)
    pixels = torch.rand(4, PIXELS).double()
    noise = 2 * torch.randn(50, CODES).double()
    _, log_sigma = encoder.moments(encoder.features(pixels))
    bent = jacobians(encoder, pixels, noise) / log_sigma.exp()[:, None, :, None]
    stretch = torch.linalg.svdvals(bent)
    assert stretch.min() > 0.1
    assert stretch.max() < 1.9
    assert (torch.linalg.det(bent) > 0).all()


def test_flow_is_injective_where_its_bound_is_reached():
    """Rank-one layers in line with each other, at xi = 0: the slope along them is 1 - 0.9."""
    encoder = sharpened("flow", 1.0)
    residual = encoder.residual
    with torch.no_grad():
        for parameter in residual.parameters():
            parameter.zero_()
        (first,), (second, third) = residual.from_noise.weights(), residual.rest.weights()
        first[0, 0], second[0, 0], third[0, 0] = 2.0, 3.0, -4.0
    pixels, noise = torch.rand(1, PIXELS).double(), torch.zeros(1, CODES).double()
    _, log_sigma = encoder.moments(encoder.features(pixels))
    bent = jacobians(encoder, pixels, noise)[0, 0] / log_sigma.exp().T
    torch.testing.assert_close(bent.diagonal(), torch.tensor([0.1, 1.0, 1.0]).double())


def test_residual_folds_where_flow_does_not():
    """The same weights without the bound: the determinant has both signs."""
    encoder = sharpened("residual", 4.0)
    pixels, noise = torch.rand(4, PIXELS).double(), 2 * torch.randn(50, CODES).double()
    positive = (torch.linalg.det(jacobians(encoder, pixels, noise)) > 0).double().mean()
    assert 0.05 < positive < 0.95


@pytest.mark.parametrize("shape", [(128, 20), (20, 128), (128, 128), (200, 1), (7, 7)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_spectral_norm_bound_is_tight_and_never_too_small(shape, scale):
    weight = scale * torch.randn(shape)
    exact = torch.linalg.matrix_norm(weight.double(), 2)
    bound = spectral_norm_bound(weight).double()
    assert bound >= exact * (1 - 1e-5)
    assert bound <= exact * min(shape) ** (1 / 128) * (1 + 1e-5)


def test_spectral_norm_bound_of_zero_is_zero_or_tiny():
    bound = spectral_norm_bound(torch.zeros(4, 3))
    assert 0 <= bound < 1e-15


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_codes_depend_on_image_and_noise(kind):
    encoder = make_encoder(kind, PIXELS, (16, 8), CODES, torch.Generator().manual_seed(0))
    pixels, noise = torch.rand(5, PIXELS), torch.randn(5, 7, CODES)
    codes = encoder(pixels, noise)
    assert codes.shape == (5, 7, CODES)
    assert codes.var(dim=0).min() > 0
    assert codes.var(dim=1).min() > 0


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_shared_noise_equals_the_same_noise_for_every_image(kind):
    encoder = make_encoder(kind, PIXELS, (16, 16), CODES, torch.Generator().manual_seed(0))
    pixels, noise = torch.rand(5, PIXELS), torch.randn(1, 7, CODES)
    torch.testing.assert_close(encoder(pixels, noise), encoder(pixels, noise.expand(5, -1, -1)))


def test_gaussian_encoder_has_the_moments_it_states():
    encoder = make_encoder("gaussian", PIXELS, (16,), CODES, torch.Generator().manual_seed(0))
    pixels = torch.rand(2, PIXELS)
    assert isinstance(encoder, GaussianEncoder)
    codes = encoder(pixels, torch.randn(2, 40_000, CODES))
    mean, log_sigma = encoder.moments(encoder.features(pixels))
    error = log_sigma.exp() / 40_000**0.5
    assert ((codes.mean(1) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(codes.std(1), log_sigma.exp(), rtol=0.02, atol=0)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"model\.encoder must be one of"):
        make_encoder("planer", PIXELS, (16,), CODES, torch.Generator())
