"""Appendix D's networks: its table, batch normalisation by particle, gradients against autograd."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from steinvae.config import ModelConfig
from steinvae.image_networks import make_colour_encoder
from steinvae.models.residual import SPREAD, Decoder, GaussianResidual
from steinvae.models.stages import Down, Stack, kept_numbers
from steinvae.pairs import Pairing, pair_gradients
from steinvae.particles import ParticleEnsemble
from steinvae.recognition.planes import NoisePlaneEncoder, PlanesGaussianEncoder, image_planes
from steinvae.stein import posterior_scores

HIDDEN, SIDE, STACK = (3, 4), 16, 2
PIXELS, CODES = 3 * SIDE**2, 2 * 2 * 3

TABLE = [(64, 56), (128, 28), (256, 14), (512, 7)]
"""Appendix D: kernels and side of every stage."""


def printed_parameters(planes: int) -> int:
    """Of the convolutions as printed: `planes` beside the image, then 3x3 down and stacks."""
    down = 7 * 7 * planes * 64 + sum(9 * a * b for a, b in ((64, 128), (128, 256), (256, 512)))
    return down + sum(3 * 9 * kernels**2 for kernels, _ in TABLE)


def weights(net: nn.Module) -> int:
    return sum(own.numel() for name, own in net.named_parameters() if name.endswith("weight"))


def test_encoder_is_the_appendix_table():
    with torch.device("meta"):
        net = Down(4, (64, 128, 256, 512), 3, 512)
        shapes = []
        for stack in net.stacks:
            stack.register_forward_hook(lambda *found: shapes.append(tuple(found[2].shape[1:])))
        code = net(net.convolve(torch.empty(2, 4, 224, 224)))
    assert shapes == [(kernels, side, side) for kernels, side in TABLE]
    assert tuple(code.shape) == (2, 512, 7, 7)
    assert weights(net) == printed_parameters(4) == 10_961_152
    assert [len(stack.layers) for stack in net.stacks if isinstance(stack, Stack)] == [3] * 4


def test_decoder_mirrors_it():
    with torch.device("meta"):
        net = Decoder((64, 128, 256, 512), 3, 512, 7)
        shapes = []
        for stack in net.up.stacks:
            stack.register_forward_hook(lambda *found: shapes.append(tuple(found[2].shape[1:])))
        image = net(torch.empty(2, 7 * 7 * 512))
    assert shapes == [(kernels, side, side) for kernels, side in reversed(TABLE)]
    assert tuple(image.shape) == (2, 3, 224, 224)
    assert weights(net) == printed_parameters(3) == 10_958_016


def model(particles: int = 2) -> tuple[GaussianResidual, ParticleEnsemble]:
    """In float64, with gains, biases and scales that are not where they start."""
    made = GaussianResidual(CODES, HIDDEN, PIXELS, STACK)
    made.track(particles, "cpu")
    made.statistics = made.statistics.double()
    theta = ParticleEnsemble(made.parameters, particles, torch.Generator().manual_seed(0))
    theta.flat = theta.flat.double()
    theta.flat += 0.1 * torch.randn(theta.flat.shape, generator=torch.Generator().manual_seed(1))
    return made, theta


def pairs(images: int = 3, samples: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    codes = torch.randn(images, samples, CODES, generator=generator).double()
    return codes, 0.25 * torch.randn(images, PIXELS, generator=generator).double()


def by_hand(net: Decoder, codes: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Sum over pixels of log N(x; mu, sigma^2), by torch.distributions."""
    images, samples, _ = codes.shape
    mean = SPREAD * net(codes.flatten(0, 1)).flatten(1).unflatten(0, (images, samples))
    normal = torch.distributions.Normal(mean, SPREAD * net.log_scale.exp())
    return normal.log_prob(pixels[:, None]).sum(-1)


def particle(theta: ParticleEnsemble, number: int) -> Decoder:
    """One decoder as an ordinary module."""
    net = Decoder(HIDDEN, STACK, 3, 2).double()
    own = {name: view[number] for name, view in theta.views(theta.flat).items()}
    net.load_state_dict(own, strict=False)
    return net


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_a_module_in_training_mode(weighted, recompute):
    """Unweighted in the codes, weighted in theta; averages move by one minibatch, once."""
    made, theta = model()
    made.compute(recompute=recompute, bfloat16=False)
    codes, pixels = pairs()
    ratio = torch.randn(codes.shape[:2]).double() if weighted else None
    found = pair_gradients(made, theta, codes, pixels, Pairing(group=2), ratio)
    to_codes = []
    for number in range(2):
        net, free = particle(theta, number).train(), codes.clone().requires_grad_()
        value = by_hand(net, free, pixels)
        torch.testing.assert_close(found.log_likelihood[number], value, rtol=1e-10, atol=1e-8)
        to_codes.append(torch.autograd.grad(value.sum(), free, retain_graph=True)[0])
        w = torch.ones_like(value)
        if ratio is not None:
            w = (value.detach() + ratio).unflatten(1, (2, 2)).softmax(-1).flatten(1)
        to_theta = torch.autograd.grad((w * value).sum(), list(net.parameters()))
        flat = torch.cat([gradient.flatten() for gradient in to_theta])
        torch.testing.assert_close(found.theta[number], flat, rtol=1e-8, atol=1e-6)
        moved = torch.cat([own.flatten() for own in net.buffers()])
        torch.testing.assert_close(made.statistics[number], moved)
    torch.testing.assert_close(found.codes, torch.stack(to_codes).mean(0), rtol=1e-8, atol=1e-8)


def test_evaluation_is_a_density_with_running_averages():
    """A pair's value is its own; it is that of the module in evaluation mode."""
    made, theta = model()
    codes, pixels = pairs()
    pair_gradients(made, theta, codes, pixels, Pairing())
    before = made.statistics.clone()
    whole = made.log_likelihood(theta.leaves(), codes[None], pixels)
    alone = made.log_likelihood(theta.leaves(), codes[None, 1:2, 2:3], pixels[1:2])
    torch.testing.assert_close(whole[:, 1:2, 2:3], alone)
    assert torch.equal(made.statistics, before)
    net = particle(theta, 1).eval()
    sizes = [own.numel() for own in net.buffers()]
    for own, value in zip(net.buffers(), before[1].split(sizes), strict=True):
        own.copy_(value)
    torch.testing.assert_close(whole[1], by_hand(net, codes, pixels).detach())
    drawn = made.mean_images(theta.leaves(), codes.flatten(0, 1))
    torch.testing.assert_close(drawn[1], SPREAD * net(codes[0, 1:2]).flatten().detach())


def test_particles_are_alike_and_apart():
    """Exchanged decoders give exchanged results, statistics included."""
    made, theta = model()
    codes, pixels = pairs()
    first = pair_gradients(made, theta, codes, pixels, Pairing())
    kept = made.statistics.clone()
    made.track(2, "cpu")
    made.statistics = made.statistics.double()
    theta.flat = theta.flat.flip(0)
    second = pair_gradients(made, theta, codes, pixels, Pairing())
    assert torch.equal(first.theta, second.theta.flip(0))
    assert torch.equal(kept, made.statistics.flip(0))
    assert not torch.allclose(kept[0], kept[1])


def encoder(kind: Any = NoisePlaneEncoder) -> Any:
    return kind(PIXELS, HIDDEN, CODES, torch.Generator().manual_seed(4), STACK).double()


def test_noise_is_a_fourth_plane():
    """The split first convolution is the printed one, of all planes stacked; places come first."""
    made = encoder().train()
    pixels, noise = pairs()[1], torch.randn(3, 5, SIDE**2).double()
    plain = copy.deepcopy(made)
    images = image_planes(pixels, SIDE)[:, None].expand(-1, 5, -1, -1, -1)
    stacked = torch.cat([images, noise.view(3, 5, 1, SIDE, SIDE)], 2).flatten(0, 1)
    planes = plain.down(plain.down.convolve(stacked))
    found = made(pixels, noise).flatten(0, 1)
    torch.testing.assert_close(found.view(15, 2, 2, 3), planes.permute(0, 2, 3, 1))
    shared = made(pixels, noise[:1])
    assert shared.shape == (3, 5, CODES)


@pytest.mark.parametrize("training", [False, True])
def test_output_scale_multiplies_codes(training):
    shape = ModelConfig(
        network="residual", encoder="concat", codes=CODES, hidden=HIDDEN, stack=STACK
    )
    plain, wide = (
        make_colour_encoder(
            "concat",
            replace(shape, output_scale=scale),
            PIXELS,
            torch.Generator().manual_seed(0),
        ).train(training)
        for scale in (1.0, 4.0)
    )
    pixels, noise = torch.rand(3, PIXELS), torch.randn(3, 5, SIDE**2)
    assert torch.equal(4 * plain(pixels, noise), wide(pixels, noise))


def test_encoder_computes_again_what_it_does_not_keep():
    pixels, noise = pairs()[1], torch.randn(3, 5, SIDE**2).double()
    found = []
    for recompute in (False, True):
        made = encoder().train()
        made.compute(recompute=recompute, bfloat16=False)
        made(pixels, noise).square().sum().backward()
        found.append([*(p.grad for p in made.parameters()), *made.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [NoisePlaneEncoder, PlanesGaussianEncoder])
def test_evaluation_of_an_image_is_its_own(kind):
    made, pixels = encoder(kind).train(), pairs()[1]
    noise = torch.randn(3, 2, getattr(made, "noise_dimension", CODES)).double()
    made(pixels, noise)
    made.eval()
    whole = made(pixels, noise)
    torch.testing.assert_close(whole[1:2], made(pixels[1:2], noise[1:2]))
    assert not torch.allclose(whole, made.train()(pixels, noise))


def test_gaussian_encoder_has_a_density():
    made, pixels = encoder(PlanesGaussianEncoder).eval(), pairs()[1]
    noise = torch.randn(3, 2, CODES).double()
    codes, log_q = made.codes_and_log_density(pixels, noise)
    mean, log_sigma = made.moments(made.features(pixels))
    normal = torch.distributions.Normal(mean[:, None], log_sigma.exp()[:, None])
    torch.testing.assert_close(log_q, normal.log_prob(codes).sum(-1))


def test_bfloat16_is_close_to_float32():
    """Each of some 20 roundings to 8 bits, there and back, is 2^-9 or less, and batch normalisation
    of few rows doubles them: 0.08. Likelihoods come in float32."""
    made, theta = model()
    theta.flat, made.statistics = theta.flat.float(), made.statistics.float()
    codes, pixels = (each.float() for each in pairs())
    plain = pair_gradients(made, theta, codes, pixels, Pairing())
    made.compute(recompute=False, bfloat16=True)
    rough = pair_gradients(made, theta, codes, pixels, Pairing())
    assert rough.theta.dtype == rough.log_likelihood.dtype == torch.float32
    made.compute(recompute=True, bfloat16=True)
    again = pair_gradients(made, theta, codes, pixels, Pairing())
    assert torch.equal(again.theta, rough.theta)
    for one, other in zip(plain[:3], rough[:3], strict=True):
        assert 0 < (one - other).norm() < 0.15 * one.norm()
    net, noise = encoder().float().train(), torch.randn(3, 5, SIDE**2)
    drawn = net(pixels, noise)
    net.compute(recompute=False, bfloat16=True)
    again = net(pixels, noise)
    assert again.dtype == torch.float32
    assert 0 < (drawn - again).norm() < 0.05 * drawn.norm()


LOOKS_AT_INPUTS = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo


@LOOKS_AT_INPUTS
def test_compiled_nets_are_the_same(monkeypatch):
    """Traced and differentiated by torch.compile, without the minute that C++ takes."""
    for module in ("models.residual", "recognition.planes"):
        monkeypatch.setattr(f"steinvae.{module}.COMPILER", "aot_eager")
    torch._dynamo.reset()
    codes, pixels = pairs()
    found, noise = [], torch.randn(3, 2, SIDE**2).double()
    for compiled in (False, True):
        made, theta = model()
        made.compute(recompute=False, bfloat16=False, compiled=compiled)
        gradients = pair_gradients(made, theta, codes, pixels, Pairing())
        net = encoder().train()
        net.compute(recompute=False, bfloat16=False, compiled=compiled)
        drawn = net(pixels, noise)
        drawn.square().sum().backward()
        to_eta = [own.grad for own in net.parameters()]
        found.append([*gradients[:3], made.statistics, drawn, *to_eta, *net.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()


@LOOKS_AT_INPUTS
def test_compiled_decoders_weigh_codes(monkeypatch):
    """Gradients of codes and, weighted, of parameters: two ways back through one compiled pass."""
    monkeypatch.setattr("steinvae.models.residual.COMPILER", "aot_eager")
    torch._dynamo.reset()
    codes, pixels = pairs()
    found = []
    for compiled in (False, True):
        made, theta = model()
        made.compute(recompute=False, bfloat16=False, compiled=compiled)
        ratio = torch.zeros(codes.shape[:2], dtype=codes.dtype)
        scores = posterior_scores(
            made, theta, codes, pixels, data_size=10, pairing=Pairing(), log_ratio=ratio
        )
        found.append([scores.codes, scores.theta])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()


def test_kept_numbers_are_those_of_autograd():
    """Three for each output of a layer; the rectified ones may be kept as their own inputs."""
    net, rows, held = Down(4, HIDDEN, STACK, HIDDEN[-1]).train(), 5, {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        if saved.ndim == 4 and len(saved) == rows:
            held[saved.data_ptr()] = saved
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = net(torch.randn(rows, HIDDEN[0], 4, 4, requires_grad=True))
    measured = sum(saved.numel() for saved in held.values()) / rows
    assert out.shape == (rows, HIDDEN[-1], 2, 2)
    assert 0.9 < kept_numbers(HIDDEN, STACK, SIDE, recompute=False) / measured < 1.15


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((CODES, HIDDEN, PIXELS - 3, STACK), "square images in 3 colours"),
        ((CODES, HIDDEN, 3 * 12**2, STACK), "must be a multiple of 8"),
        ((CODES + 1, HIDDEN, PIXELS, STACK), "model.codes must be a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        GaussianResidual(*arguments)
