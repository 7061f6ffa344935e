"""The decoders' and the encoder's passes in closed form, against autograd of the same model."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from steinvae.models import HasPairGradients, closed_form
from steinvae.models.mlp import BernoulliMlp
from steinvae.pairs import PairGradients, Pairing, pair_gradients
from steinvae.particles import ParticleEnsemble
from steinvae.recognition.residual import NoiseResidual

# float64, sums of fewer than 1e3 terms of order one
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-11)
IMAGES, CODES, GROUP, DECODERS = 3, 12, 2, 4
PAIRINGS = {
    "full": Pairing("full", GROUP),
    "dealt": Pairing("strat", GROUP, torch.tensor([4, 0, 3, 1, 5, 2])),
    "slices": Pairing("full", GROUP, sliced=True),
    "dealt slices": Pairing("strat", GROUP, torch.tensor([4, 0, 3, 1, 5, 2]), sliced=True),
}
CASES = [
    pytest.param(pairing, weighted, id=f"{name}, {'weighted' if weighted else 'uniform'}")
    for name, pairing in PAIRINGS.items()
    for weighted in (False, True)
    if not (weighted and pairing.sliced)  # the printed weights are no weights of pairs
]


class ByAutograd(BernoulliMlp):
    """The same likelihood; whoever changes it has no closed form."""

    def log_likelihood(self, theta, codes, pixels):
        return super().log_likelihood(theta, codes, pixels)


def gradients(
    model: BernoulliMlp,
    pairing: Pairing,
    decoders: int,
    *,
    weighted: bool,
    to_decoders: bool = True,
) -> PairGradients:
    torch.manual_seed(3)
    theta = ParticleEnsemble(model.parameters, decoders, torch.Generator().manual_seed(1))
    theta.flat = theta.flat.double()
    codes = 2 * torch.randn(IMAGES, CODES, model.widths[0]).double()
    pixels = torch.rand(IMAGES, model.widths[-1]).double()  # grey as well as black and white
    pixels[1:].round_()
    ratio = 3 * torch.randn(IMAGES, CODES).double() if weighted else None
    return pair_gradients(model, theta, codes, pixels, pairing, ratio, decoders=to_decoders)


@pytest.mark.parametrize("numbers", [2**20, 40, 1], ids=["one block", "blocks", "a group a block"])
@pytest.mark.parametrize("widths", [(2, (5, 4), 6), (3, (), 230)], ids=["two layers", "linear"])
@pytest.mark.parametrize(("pairing", "weighted"), CASES)
def test_pairs_in_closed_form_are_autograd_s(monkeypatch, pairing, weighted, widths, numbers):
    """230 pixels: two products of 115 factors would be too long, so there are three and a rest."""
    decoders = 6 if pairing.kind == "strat" and not pairing.sliced else DECODERS
    decoders = 12 if pairing.kind == "strat" and pairing.sliced else decoders
    monkeypatch.setitem(closed_form.NUMBERS_AT_ONCE, "cpu", numbers)
    found = gradients(BernoulliMlp(*widths), pairing, decoders, weighted=weighted)
    expected = gradients(ByAutograd(*widths), pairing, decoders, weighted=weighted)
    for first, second in zip(found, expected, strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            close(first, second)


@pytest.mark.parametrize("weighted", [False, True])
def test_softplus_layers_have_their_own_slope(monkeypatch, weighted):
    monkeypatch.setitem(closed_form.NUMBERS_AT_ONCE, "cpu", 40)
    models = (kind(2, (5, 4), 6, "softplus") for kind in (BernoulliMlp, ByAutograd))
    found, expected = (
        gradients(model, PAIRINGS["full"], DECODERS, weighted=weighted) for model in models
    )
    close(found.codes, expected.codes)
    close(found.theta, expected.theta)
    close(found.log_likelihood, expected.log_likelihood)


@pytest.mark.parametrize("kind", [BernoulliMlp, ByAutograd])
@pytest.mark.parametrize("pairing", [PAIRINGS["full"], PAIRINGS["dealt"]], ids=["full", "dealt"])
def test_codes_alone_get_the_same_gradient(monkeypatch, pairing, kind):
    monkeypatch.setitem(closed_form.NUMBERS_AT_ONCE, "cpu", 40)
    model, decoders = kind(2, (5, 4), 6), 6
    whole = gradients(model, pairing, decoders, weighted=False)
    alone = gradients(model, pairing, decoders, weighted=False, to_decoders=False)
    close(alone.codes, whole.codes)
    close(alone.log_likelihood, whole.log_likelihood)
    assert not alone.theta.numel()


def test_closed_form_is_offered_and_given_up():
    assert isinstance(BernoulliMlp(2, (5,), 6), HasPairGradients)
    assert not callable(ByAutograd(2, (5,), 6).pair_gradients)


def test_extreme_logits_keep_value_and_gradient():
    """At logits of 500 to either side: log p is -500 or 0 a pixel, and nothing overflows."""
    model = BernoulliMlp(1, (), 4)
    theta = ParticleEnsemble(model.parameters, 1, torch.Generator())
    theta.flat = torch.tensor([[500.0, -500.0, 500.0, -500.0, 0, 0, 0, 0]])
    pixels = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    found = pair_gradients(model, theta, torch.ones(1, 1, 1), pixels, Pairing())
    torch.testing.assert_close(found.log_likelihood, torch.tensor([[[-1000.0]]]))
    torch.testing.assert_close(found.codes, torch.tensor([[[-1000.0]]]))  # -500 from each wrong one


def test_log_likelihood_in_float32_is_that_of_float64():
    """Products of 112 factors and sums of them: within 784 roundings of a sum of this size."""
    model = BernoulliMlp(8, (30,), 784)
    theta = ParticleEnsemble(model.parameters, 1, torch.Generator().manual_seed(0))
    theta.flat *= 5
    codes, pixels = torch.randn(4, 6, 8), (torch.rand(4, 784) < 0.3).float()
    single = pair_gradients(model, theta, codes, pixels, Pairing())
    theta.flat = theta.flat.double()
    exact = model.log_likelihood(theta.leaves(), codes.double()[None], pixels.double())
    torch.testing.assert_close(single.log_likelihood.double(), exact.detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("numbers", [2**20, 1], ids=["one block", "an image a block"])
@pytest.mark.parametrize("noises", [4, 1], ids=["own noise", "shared noise"])
def test_noise_network_draws_as_forward_does(monkeypatch, noises, numbers):
    monkeypatch.setitem(closed_form.NUMBERS_AT_ONCE, "cpu", numbers)
    residual = NoiseResidual(7, 9, 5, torch.Generator().manual_seed(0)).double()
    features = torch.randn(4, 7).double().requires_grad_()
    noise = torch.randn(noises, 6, 5).double().requires_grad_()
    inputs: list[Tensor] = [features, noise, *residual.parameters()]
    expected, found = residual(features, noise), residual.draw(features, noise)
    close(found, expected)
    cotangent = torch.randn_like(expected)
    for first, second in zip(
        torch.autograd.grad(found, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
        strict=True,
    ):
        close(first, second)
    with torch.no_grad():
        close(residual.draw(features, noise), expected.detach())


def test_drawn_codes_may_not_be_differentiated_twice():
    residual = NoiseResidual(3, 4, 2, torch.Generator().manual_seed(0))
    noise = torch.randn(1, 5, 2).requires_grad_()
    codes = residual.draw(torch.randn(2, 3), noise)
    (once,) = torch.autograd.grad(codes.square().sum(), noise, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()
