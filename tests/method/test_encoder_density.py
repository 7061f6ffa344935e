"""Densities of encoders: Jacobians against autograd, log q against numerical integrals."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from steinvae.recognition import ENCODERS, StochasticEncoder, make_encoder, standard_normal

PIXELS = 6
DENSE = ("gaussian", "flow", "planar", "triangular")
DEPTHS = [(kind, depth) for kind in sorted(ENCODERS) for depth in (1, 3)]


def build(kind: str, codes: int, depth: int = 1, factor: float = 3.0) -> StochasticEncoder:
    """An encoder whose noise-dependent part is steep, so that an error would show."""
    draws = torch.Generator().manual_seed(4)
    encoder = make_encoder(kind, PIXELS, (12, 9), codes, draws, depth).double()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.startswith(("residual", "further", "layers", "below")):
                parameter *= factor
    return encoder


def by_autograd(encoder: StochasticEncoder, pixels: Tensor, noise: Tensor) -> Tensor:
    """df/dxi of one code at a time: (B, S, d, d)."""

    def one(x: Tensor, xi: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(lambda e: encoder(x, e[None, None])[0, 0], xi)  # type: ignore[return-value]

    rows = [
        torch.stack([one(x[None], xi) for xi in row]) for x, row in zip(pixels, noise, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize(("kind", "depth"), DEPTHS)
def test_jacobian_is_that_of_autograd(kind, depth):
    encoder = build(kind, 3, depth)
    pixels, noise = torch.rand(2, PIXELS).double(), torch.randn(2, 4, 3).double()
    torch.testing.assert_close(
        encoder.jacobian(pixels, noise), by_autograd(encoder, pixels, noise), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_default_jacobian_is_the_one_of_each_encoder(kind):
    """The d backward passes that serve a user's own encoder; noise shared by all images."""
    encoder = build(kind, 3, 2)
    pixels, noise = torch.rand(2, PIXELS).double(), torch.randn(1, 4, 3).double()
    by_default = StochasticEncoder.jacobian(encoder, pixels, noise)
    torch.testing.assert_close(encoder.jacobian(pixels, noise), by_default, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("depth", [1, 4])
def test_log_density_is_that_of_the_jacobian(kind, depth):
    encoder = build(kind, 3, depth)
    pixels, noise = torch.rand(2, PIXELS).double(), torch.randn(2, 5, 3).double()
    codes, log_q = encoder.codes_and_log_density(pixels, noise)
    log_det = by_autograd(encoder, pixels, noise).det().abs().log()
    torch.testing.assert_close(log_q, standard_normal(noise) - log_det, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(codes, encoder(pixels, noise))


@pytest.mark.parametrize("kind", DENSE[:3])  # one dimension is refused by triangular
def test_density_in_one_dimension_integrates_to_the_probabilities_of_the_noise(kind):
    """The integral of q over codes between two of them is the normal mass of the noise between."""
    encoder = build(kind, 1, 3)
    pixels = torch.rand(3, PIXELS).double()
    noise = torch.linspace(-6, 6, 20_001).double()[None, :, None]
    codes, log_q = encoder.codes_and_log_density(pixels, noise)
    ordered = codes[..., 0]
    assert (ordered.diff(dim=1) > 0).all()
    normal = torch.distributions.Normal(0.0, 1.0)
    for low, high in ((0, 20_000), (4_000, 9_000), (11_000, 15_000)):
        mass = torch.trapezoid(log_q[:, low : high + 1].exp(), ordered[:, low : high + 1])
        exact = normal.cdf(noise[0, high, 0]) - normal.cdf(noise[0, low, 0])
        torch.testing.assert_close(mass, exact.expand(3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", DENSE)
def test_density_in_two_dimensions_is_that_of_a_histogram(kind):
    """Mean of q over the codes in a cell against the share of codes in it, 25 cells."""
    encoder = build(kind, 2, 2, factor=2.0)
    pixels, noise = torch.rand(1, PIXELS).double(), torch.randn(1, 400_000, 2).double()
    with torch.no_grad():
        codes, log_q = (item[0] for item in encoder.codes_and_log_density(pixels, noise))
    centre, spread = codes.mean(0), codes.std(0)
    for cell in torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3)):
        low = centre + (cell - 0.5) * spread / 2
        inside = ((codes >= low) & (codes < low + spread / 2)).all(-1)
        share, area = inside.double().mean(), (spread / 2).prod()
        if inside.sum() < 2_000:
            continue
        # E_q[1/q; cell] = area, for a density and nothing else
        measured = (inside.double() * (-log_q).exp()).mean()
        error = 6 * ((-log_q[inside]).exp().std() * (share / len(codes)).sqrt() + 1e-12)
        assert (measured - area).abs() < error + 0.03 * area


def test_stacked_blocks_have_their_own_residuals_and_the_first_is_that_of_one_block():
    one, three = build("flow", 3, 1).state_dict(), build("flow", 3, 3).state_dict()
    assert set(one) < set(three)
    assert all(torch.equal(one[name], three[name]) for name in one)
    assert not torch.equal(three["further.0.rest.last.weight"], three["further.1.rest.last.weight"])


def test_a_stack_separates_modes_that_one_block_cannot():
    """Slope at the gap between two clusters of codes: 1.9^L against 1.9."""
    slopes = {}
    for depth in (1, 3):
        encoder = build("flow", 1, depth)
        with torch.no_grad():
            for block in encoder.blocks:  # type: ignore[attr-defined]
                for parameter in block.parameters():
                    parameter.zero_()
                weights = [*block.from_noise.weights(), *block.rest.weights()]
                for weight in weights:
                    weight[0, 0] = 2.0
        pixels, noise = torch.rand(1, PIXELS).double(), torch.zeros(1, 1, 1).double()
        log_sigma = encoder.moments(encoder.features(pixels))[1]  # type: ignore[attr-defined]
        slopes[depth] = (encoder.jacobian(pixels, noise) / log_sigma.exp()).item()
    assert slopes[1] == pytest.approx(1.9)
    assert slopes[3] == pytest.approx(1.9**3)


@pytest.mark.parametrize("kind", ["residual", "concat"])
def test_encoder_that_folds_has_no_density(kind):
    encoder = build(kind, 2)
    with pytest.raises(TypeError, match="not injective, its codes have no density"):
        encoder.codes_and_log_density(torch.rand(1, PIXELS).double(), torch.randn(1, 1, 2).double())


def test_noise_of_another_dimension_than_the_code_gives_no_density():
    class Widening(StochasticEncoder):
        codes, injective = 3, True

        def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
            return pixels[:, None, :3] + noise @ torch.eye(2, 3)

    encoder, pixels, noise = Widening(), torch.rand(2, 6), torch.randn(2, 4, 2)
    assert encoder.jacobian(pixels, noise).shape == (2, 4, 3, 2)
    with pytest.raises(ValueError, match="2 noise dimensions to 3 of a code"):
        encoder.codes_and_log_density(pixels, noise)


@pytest.mark.parametrize("factor", [1.0, 5.0, 50.0])
def test_planar_layers_are_invertible_however_steep(factor):
    encoder = build("planar", 2, 4, factor)
    noise = 2 * torch.randn(1, 500, 2).double()
    determinant = torch.linalg.det(encoder.jacobian(torch.rand(3, PIXELS).double(), noise))
    assert (determinant > 0).all()


def test_planar_layer_starts_near_the_identity():
    encoder = build("planar", 3, 10, factor=1.0)
    pixels, noise = torch.rand(4, PIXELS).double(), torch.randn(4, 50, 3).double()
    mean, log_sigma = encoder.moments(encoder.features(pixels))  # type: ignore[attr-defined]
    gaussian = mean[:, None] + log_sigma.exp()[:, None] * noise
    assert (encoder(pixels, noise) - gaussian).abs().mean() < 0.3 * log_sigma.exp().mean()


def test_log_density_of_the_standard_normal():
    assert standard_normal(torch.zeros(2, 5)).tolist() == pytest.approx([-2.5 * log(6.283185)] * 2)


@pytest.mark.parametrize("kind", DENSE)
def test_gradient_of_log_density_reaches_the_parameters(kind):
    """Against finite differences along a random direction of all parameters; rho is held fixed."""
    encoder = build(kind, 2, 2, factor=0.5)  # Lipschitz bounds stay below 0.9: rho = 1 throughout
    pixels, noise = torch.rand(2, PIXELS).double(), torch.randn(2, 3, 2).double()
    parameters = list(encoder.parameters())
    log_q = encoder.codes_and_log_density(pixels, noise)[1].sum()
    gradients = torch.autograd.grad(log_q, parameters, allow_unused=True)
    along = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum((g * a).sum() for g, a in zip(gradients, along, strict=True) if g is not None)

    @torch.no_grad()
    def shifted(step: float) -> Tensor:
        for parameter, direction in zip(parameters, along, strict=True):
            parameter += step * direction
        value = encoder.codes_and_log_density(pixels, noise)[1].sum()
        for parameter, direction in zip(parameters, along, strict=True):
            parameter -= step * direction
        return value

    measured = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
    torch.testing.assert_close(torch.as_tensor(slope), measured, rtol=1e-6, atol=1e-8)


def test_triangular_reaches_any_covariance_and_refuses_one_dimension():
    """det L is the product of sigma, and L L^T is not diagonal; nor is one dimension enough."""
    encoder = build("triangular", 3)
    factor = encoder.jacobian(torch.rand(2, PIXELS).double(), torch.zeros(1, 1, 3).double())[:, 0]
    assert (factor.triu(1) == 0).all()
    assert (factor.tril(-1)[:, 1:].abs().sum((-1, -2)) > 1e-2).all()
    with pytest.raises(ValueError, match=r"model\.codes must be at least 2 .* got 1"):
        build("triangular", 1)
