"""Convolutional networks: mirrored sizes, particles apart, gradients, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from steinvae.config import Config, MethodConfig, ModelConfig
from steinvae.models.conv import BernoulliConv
from steinvae.models.mlp import BernoulliMlp
from steinvae.networks import build_networks
from steinvae.particles import ParticleEnsemble
from steinvae.recognition import FlowEncoder
from steinvae.recognition.conv import ConvPlaneEncoder, make_conv_encoder

CODES, PIXELS, PLANES = 3, 64, (4, 6)


@pytest.fixture
def theta() -> ParticleEnsemble:
    model = BernoulliConv(CODES, (6, 4), PIXELS)
    return ParticleEnsemble(model.parameters, 3, torch.Generator().manual_seed(0))


def test_decoders_are_independent_networks(theta):
    """Grouped convolutions give what torch's layers give for each decoder by itself."""
    model = BernoulliConv(CODES, (6, 4), PIXELS)
    codes = torch.randn(3, 5, CODES)
    found = model.logits(theta.leaves(), codes)
    assert found.shape == (3, 5, PIXELS)
    for m, leaves in enumerate(theta.leaves() for _ in range(3)):
        one = {name: item[m] for name, item in leaves.items()}
        planes = (codes[m] @ one["weight0"] + one["bias0"]).view(5, 6, 2, 2)
        for layer in (1, 2):
            planes = F.conv_transpose2d(
                F.leaky_relu(planes, 0.01),
                one[f"weight{layer}"],
                one[f"bias{layer}"],
                stride=2,
                padding=2,
                output_padding=1,
            )
        # sums of 100 products in another order: a few float32 units of 1e-7 each
        torch.testing.assert_close(found[m], planes.flatten(1), atol=3e-6, rtol=1e-5)


def test_one_set_of_codes_serves_all_decoders(theta):
    model, codes = BernoulliConv(CODES, (6, 4), PIXELS), torch.randn(1, 5, CODES)
    shared = model.logits(theta.leaves(), codes)
    torch.testing.assert_close(shared, model.logits(theta.leaves(), codes.expand(3, -1, -1)))


def test_logits_start_at_the_scale_of_pixels():
    """Variance-preserving weights: an untrained decoder is neither flat nor saturated."""
    model = BernoulliConv(50, (64, 32), 784)
    theta = ParticleEnsemble(model.parameters, 2, torch.Generator().manual_seed(0))
    logits = model.logits(theta.leaves(), torch.randn(1, 40, 50))
    assert 0.5 < logits.std().item() < 2


@pytest.mark.parametrize("kind", ["gaussian", "flow", "concat"])
def test_encoders_draw_codes(kind):
    encoder = make_conv_encoder(kind, PIXELS, PLANES, CODES, torch.Generator().manual_seed(1))
    width = PIXELS if kind == "concat" else CODES
    pixels, noise = torch.rand(5, PIXELS), torch.randn(5, 7, width)
    codes = encoder(pixels, noise)
    assert codes.shape == (5, 7, CODES)
    assert codes.std(1).min() > 1e-3
    torch.testing.assert_close(encoder(pixels[2:3], noise[2:3]), codes[2:3])
    torch.testing.assert_close(encoder(pixels, noise[:1])[0], codes[0])


def test_flow_on_convolutions_has_its_density():
    """log q by the product of blocks against slogdet of autograd's Jacobian."""
    encoder = make_conv_encoder("flow", PIXELS, PLANES, CODES, torch.Generator().manual_seed(1), 2)
    encoder = encoder.double()
    pixels, noise = torch.rand(2, PIXELS).double(), torch.randn(2, 4, CODES).double()
    _, log_q = encoder.codes_and_log_density(pixels, noise)
    normal = torch.distributions.Normal(0, 1).log_prob(noise).sum(-1)

    def one(image: torch.Tensor, xi: torch.Tensor) -> torch.Tensor:
        return encoder(image[None], xi[None, None])[0, 0]

    every = torch.func.vmap(torch.func.jacrev(one, 1), (None, 0))
    jacobian = torch.stack([every(image, xi) for image, xi in zip(pixels, noise, strict=True)])
    torch.testing.assert_close(log_q, normal - torch.linalg.slogdet(jacobian).logabsdet)


def test_plane_is_one_convolution_of_two_planes():
    """The split first layer is a convolution of [x, xi] stacked, as the paper prints it."""
    encoder = make_conv_encoder("concat", PIXELS, PLANES, CODES, torch.Generator().manual_seed(1))
    assert isinstance(encoder, ConvPlaneEncoder)
    pixels, noise = torch.rand(2, PIXELS), torch.randn(2, 1, PIXELS)
    stacked = torch.stack([pixels, noise[:, 0]], 1).view(2, 2, 8, 8)
    weight = torch.cat([encoder.from_image.weight, encoder.from_noise.weight], 1)
    planes = F.conv2d(stacked, weight, encoder.from_image.bias, stride=2, padding=2)
    bias = encoder.from_noise.bias
    assert bias is not None
    planes = F.leaky_relu(planes + bias[:, None, None], 0.01)
    planes = F.leaky_relu(encoder.layers[0](planes), 0.01)
    expected = encoder.head(planes.flatten(1))
    torch.testing.assert_close(encoder(pixels, noise)[:, 0], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(TypeError, match="no density"):
        encoder.codes_and_log_density(pixels, noise)


def test_output_scale_multiplies_the_codes_of_a_plane():
    plain, wide = (
        build_networks(
            Config(
                model=ModelConfig(
                    codes=CODES, hidden=PLANES, network="conv", encoder="concat", output_scale=scale
                )
            ),
            PIXELS,
            "cpu",
        ).encoder
        for scale in (1.0, 4.0)
    )
    pixels, noise = torch.rand(3, PIXELS), torch.randn(3, 5, PIXELS)
    assert torch.equal(4 * plain(pixels, noise), wide(pixels, noise))


@pytest.mark.parametrize("name", ["stein_vae", "stein_viwae", "vae"])
def test_methods_of_the_configuration_get_convolutions(name):
    config = Config(
        model=ModelConfig(codes=CODES, hidden=PLANES, network="conv"),
        method=MethodConfig(name=name, theta_particles=2),
    )
    networks = build_networks(config, PIXELS, "cpu")
    assert isinstance(networks.model, BernoulliConv)
    kinds = {"vae": "ConvGaussianEncoder"}
    assert type(networks.encoder).__name__ == kinds.get(name, "ConvFlowEncoder")


@pytest.mark.parametrize("pixels", [60, 36])
def test_sizes_that_do_not_halve_are_refused(pixels):
    with pytest.raises(ValueError, match=r"model\.network conv: 2 layers .* got " + str(pixels)):
        BernoulliConv(CODES, (6, 4), pixels)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"network": "conv", "encoder": "residual"}, "model.encoder"),
        ({"network": "conv", "activation": "softplus"}, "model.activation"),
        ({"activation": "softplus", "encoder": "concat"}, "model.encoder"),
        ({"noise_hidden": 0}, "model.noise_hidden"),
    ],
)
def test_wrong_networks_are_refused(settings, named):
    with pytest.raises(ValueError, match=f"^{named} must be"):
        ModelConfig(**settings)


def test_softplus_acts_on_both_sides():
    """The same draws through another activation."""
    made = [
        build_networks(Config(model=ModelConfig(codes=3, hidden=(5, 4), activation=each)), 6, "cpu")
        for each in ("tanh", "softplus")
    ]
    tanh, softplus = made
    assert torch.equal(tanh.theta.flat, softplus.theta.flat)
    leaves, codes = softplus.theta.leaves(), torch.randn(1, 2, 3)
    hidden = codes
    for layer in (0, 1):
        hidden = F.softplus(hidden @ leaves[f"weight{layer}"] + leaves[f"bias{layer}"])
    expected = hidden @ leaves["weight2"] + leaves["bias2"]
    assert isinstance(softplus.model, BernoulliMlp)
    torch.testing.assert_close(softplus.model.logits(leaves, codes), expected)
    pixels, encoder = torch.rand(2, 6), softplus.encoder
    assert isinstance(encoder, FlowEncoder)
    middle = F.softplus(encoder.trunk.last(F.softplus(encoder.trunk.hidden[0](pixels))))
    torch.testing.assert_close(encoder.features(pixels), middle)


def test_noise_networks_may_be_narrow():
    config = Config(model=ModelConfig(codes=3, hidden=(9,), noise_hidden=4, flow_blocks=2))
    encoder = build_networks(config, 6, "cpu").encoder
    assert isinstance(encoder, FlowEncoder)
    blocks = encoder.blocks
    assert [block.rest.last.in_features for block in blocks] == [4, 4]
