"""Models of counts: the softmax decoder, encoders on log(1 + n), and both perplexities."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch
from torch.distributions import Multinomial

from steinvae.config import Config, DataConfig, MethodConfig, ModelConfig, TrainerConfig
from steinvae.count_trunk import CountTrunk
from steinvae.data.count_files import Bags
from steinvae.data.documents import Documents, split
from steinvae.density import iw_g
from steinvae.models.mlp import TanhMlp
from steinvae.models.softmax_counts import SoftmaxCounts
from steinvae.networks import Networks, build_networks
from steinvae.particles import ParticleEnsemble
from steinvae.perplexity import perplexity, text_results, unigram_nll
from steinvae.recognition import GaussianEncoder
from steinvae.topics import npmi
from steinvae.trainer import Trainer

CODES, WORDS = 2, 7


def some_counts(documents: int = 5) -> torch.Tensor:
    return torch.poisson(torch.full((documents, WORDS), 2.0)) + torch.eye(documents, WORDS)


def some_networks(encoder: str = "flow", method: str = "stein_vae", decoders: int = 2) -> Networks:
    config = Config(
        data=DataConfig(name="nyt"),
        model=ModelConfig(codes=CODES, hidden=(6,), encoder=encoder),  # type: ignore[arg-type]
        method=MethodConfig(name=method, theta_particles=decoders),  # type: ignore[arg-type]
    )
    return build_networks(config, WORDS, "cpu")


def test_likelihood_is_the_multinomial_without_its_coefficient():
    model = SoftmaxCounts(CODES, WORDS)
    theta = ParticleEnsemble(model.parameters, 3, torch.Generator().manual_seed(0))
    theta.flat = theta.flat.double()
    leaves = {name: leaf.detach() for name, leaf in theta.leaves().items()}
    leaves["bias"] = torch.randn(3, 1, WORDS, dtype=torch.float64)
    counts = some_counts().double()
    codes = torch.randn(1, 5, 4, CODES, dtype=torch.float64)
    found = model.log_likelihood(leaves, codes, counts)
    assert found.shape == (3, 5, 4)
    for m in range(3):
        for b in range(5):
            logits = codes[0, b] @ leaves["weight"][m] + leaves["bias"][m]
            law = Multinomial(int(counts[b].sum()), logits=logits)
            orders = torch.lgamma(counts[b].sum() + 1) - torch.lgamma(counts[b] + 1).sum()
            assert torch.allclose(found[m, b], law.log_prob(counts[b]) - orders, atol=1e-10)
    own = model.log_likelihood(leaves, codes.expand(3, -1, -1, -1), counts)
    assert torch.allclose(own, found)


def test_mean_words_are_probabilities_of_decoders_in_turn():
    networks = some_networks()
    codes = torch.randn(4, CODES)
    means = networks.model.mean_images(networks.theta.leaves(), codes)
    assert torch.allclose(means.sum(1), torch.ones(4))
    one = {name: leaf[1:] for name, leaf in networks.theta.leaves().items()}
    assert torch.allclose(means[1], networks.model.mean_images(one, codes)[1])


@pytest.mark.parametrize("kind", ["gaussian", "residual", "flow"])
def test_encoders_see_the_logarithm_of_counts(kind):
    networks = some_networks(kind)
    counts, noise = some_counts(), torch.randn(5, 3, CODES)
    encoder = networks.encoder
    assert isinstance(encoder, GaussianEncoder)
    weight, bias = encoder.trunk.last.weight, encoder.trunk.last.bias
    expected = (torch.log1p(counts) @ weight.T + bias).tanh()
    assert torch.allclose(encoder.features(counts), expected, atol=1e-6)
    assert encoder(counts, noise).shape == (5, 3, CODES)


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_densities_of_count_encoders_are_those_of_their_jacobian(kind):
    networks = some_networks(kind)
    counts, noise = some_counts(), torch.randn(5, 3, CODES)
    _, log_q = networks.encoder.codes_and_log_density(counts, noise)
    jacobian = networks.encoder.jacobian(counts, noise)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1)
    assert torch.allclose(log_q, normal - torch.linalg.slogdet(jacobian).logabsdet, atol=1e-5)


def test_reported_bound_is_the_integral_over_codes():
    networks = some_networks("gaussian", "vae")
    counts = some_counts(3)
    line = torch.linspace(-6, 6, 241)
    grid = torch.cartesian_prod(line, line)
    log_likelihood = networks.model.log_likelihood(
        networks.theta.leaves(), grid.expand(1, 3, -1, -1), counts
    )[0].double()
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid).sum(-1).double()
    area = 2 * torch.log(line[1] - line[0]).double()
    exact = (log_likelihood + log_prior).logsumexp(-1) + area
    # an untrained encoder is narrow and off the mark: a wide proposal, and 20,000 draws of it
    found = iw_g(networks, counts, samples=20_000, seed=0, inflation=4.0)[0]
    assert (found - exact).abs().max() < 0.1


def test_concat_is_refused_for_counts():
    config = Config(data=DataConfig(name="20news"))
    with pytest.raises(ValueError, match=r"model\.encoder must be another than concat for 20news"):
        replace(config, model=replace(config.model, encoder="concat"))
    replace(
        config,
        model=replace(config.model, encoder="concat"),
        method=MethodConfig(name="vae"),  # whose encoder is the Gaussian part
    )


def test_both_conventions_of_perplexity():
    nll, lengths = torch.tensor([2.0, 30.0]), torch.tensor([1.0, 10.0])
    found = perplexity(nll, lengths)
    assert found.corpus == pytest.approx(exp(32 / 11))
    assert found.per_document == pytest.approx(exp((2 + 3) / 2))
    assert found.per_document_error == pytest.approx(exp(2.5) * (0.5**0.5) / 2**0.5)
    words = 50.0  # drawn alike from V words, every document has perplexity V
    uniform = perplexity(torch.log(torch.tensor(words)) * lengths, lengths)
    assert uniform.corpus == pytest.approx(words)
    assert uniform.per_document == pytest.approx(words)
    with pytest.raises(ValueError, match="length of 0"):
        perplexity(nll, torch.tensor([0.0, 1.0]))


def test_unigram_adds_one_to_every_word():
    totals, counts = torch.tensor([3.0, 0.0]), torch.tensor([[1.0, 2.0]])
    expected = -(torch.tensor(4 / 5).log() + 2 * torch.tensor(1 / 5).log())
    assert unigram_nll(counts, totals).item() == pytest.approx(expected.item())


def test_coherence_of_words_that_always_never_and_sometimes_meet():
    # words 0 1 together in half of the documents, 2 in the other half, 3 in every second of both
    rows = [[0, 1], [0, 1, 3], [2], [2, 3]]
    start = np.cumsum([0, *map(len, rows)])
    words = np.array([word for row in rows for word in row], dtype=np.int32)
    bags = Bags(start, words, np.full(len(words), 4, dtype=np.int32))
    documents = Documents(bags, 5, np.arange(4))
    top = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 4]])
    assert npmi(top, documents).tolist() == pytest.approx([1.0, -1.0, 0.0, -1.0])
    both = log(0.25 / (0.5 * 0.5)) / -log(0.25)
    three = npmi(torch.tensor([[1, 0, 3]]), documents).item()
    assert three == pytest.approx((1.0 + both + both) / 3)


@pytest.mark.parametrize("hidden", [(6,), (6, 5)])
def test_trunk_on_present_words_is_the_dense_product(hidden):
    trunk = CountTrunk((WORDS, *hidden), torch.Generator().manual_seed(0))
    plain = TanhMlp((WORDS, *hidden), torch.Generator().manual_seed(0))
    counts = some_counts()
    counts[1] = 0  # a document without words has the bias
    found, expected = trunk(counts), plain(counts.log1p())
    assert torch.allclose(found, expected, atol=1e-6)
    for net, output in ((trunk, found), (plain, expected)):
        output.square().sum().backward()
        assert all(parameter.grad is not None for parameter in net.parameters())
    for own, other in zip(trunk.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad, atol=1e-5)  # type: ignore[arg-type]
        assert own.grad.stride() == own.stride()  # type: ignore[union-attr]


def test_resumed_training_on_counts_repeats_the_whole_run(tmp_path):
    """Adam's moments come back in the memory order of the word-major first layer."""
    bags = Bags(
        start=np.arange(0, 45, 4),
        words=np.tile(np.array([0, 2, 3, 6], dtype=np.int32), 11),
        counts=np.random.RandomState(0).randint(1, 5, 44).astype(np.int32),
    )
    dataset = split("nyt", bags, bags, tuple("abcdefg"), {})
    config = Config(
        data=DataConfig(name="nyt"),
        model=ModelConfig(codes=CODES, hidden=(6,)),
        method=MethodConfig(theta_particles=1),
        trainer=TrainerConfig(batch_size=4, max_steps=8),
    )
    whole, first = (Trainer(config, dataset, tmp_path / name) for name in ("whole", "parts"))
    for step in range(8):
        whole.update(step, monitor=False)
    for step in range(4):
        first.update(step, monitor=False)
    first.step = 4
    first.save(first.tensors())
    first.settle()
    second = Trainer(config, dataset, tmp_path / "parts")
    assert second.resume()
    for step in range(4, 8):
        second.update(step, monitor=False)
    for name, tensor in whole.networks.tensors().items():
        assert torch.equal(tensor, second.networks.tensors()[name]), name


def test_perplexities_are_of_the_documents_that_were_measured():
    """Every second one of a test set in the order of lengths. Words drawn alike: perplexity V."""
    rows = np.arange(9)
    bags = Bags(rows, np.zeros(8, dtype=np.int32), np.arange(1, 9, dtype=np.int32))
    dataset = split("nyt", bags, bags, tuple("abcdefg"), {})
    lengths = torch.tensor([1.0, 3.0, 5.0, 7.0])
    found = text_results(dataset, log(WORDS) * lengths)
    assert found["perplexity"]["per_document"] == pytest.approx(WORDS)
    assert found["perplexity"]["corpus"] == pytest.approx(WORDS)


def test_words_of_every_document_say_nothing_of_each_other():
    """Shares of 1: independent, with 0 over 0 for a ratio."""
    bags = Bags(np.array([0, 2, 4]), np.array([0, 1, 0, 1], dtype=np.int32), np.ones(4, np.int32))
    assert npmi(torch.tensor([[0, 1]]), Documents(bags, 3, np.arange(2))).tolist() == [0.0]
