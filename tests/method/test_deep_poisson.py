"""The deep Poisson network: its quantile map, its likelihood and prior, and its layered encoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Multinomial

from steinvae.config import Config, DataConfig, MethodConfig, ModelConfig, TrainerConfig
from steinvae.data.count_files import Bags
from steinvae.data.documents import split
from steinvae.density import encoder_bounds, iw_g
from steinvae.density.likelihood import prepared
from steinvae.models.deep_poisson import DeepPoisson
from steinvae.models.gamma_quantile import log_gamma_quantile
from steinvae.networks import Networks, build_networks
from steinvae.particles import ParticleEnsemble
from steinvae.recognition import standard_normal
from steinvae.trainer import Trainer

LAYERS, WORDS = (4, 3, 2), 7


def some_networks(encoder: str = "layered") -> Networks:
    config = Config(
        data=DataConfig(name="nyt"),
        model=ModelConfig(
            decoder="deep_poisson",
            layers=LAYERS,
            codes=9,
            hidden=(6,),
            encoder=encoder,  # type: ignore[arg-type]
        ),
        method=MethodConfig(name="flow_elbo"),
    )
    return build_networks(config, WORDS, "cpu")


def some_model() -> tuple[DeepPoisson, dict[str, torch.Tensor]]:
    model = DeepPoisson(LAYERS, WORDS, shapes=(1.5, 0.7, 0.4))
    theta = ParticleEnsemble(model.parameters, 2, torch.Generator().manual_seed(0))
    theta.flat = theta.flat.double()
    leaves = {name: leaf.detach() for name, leaf in theta.leaves().items()}
    leaves["base"] = 0.3 * torch.randn(2, 1, WORDS, dtype=torch.float64)
    return model, leaves


def units(
    model: DeepPoisson, leaves: dict[str, torch.Tensor], m: int, codes: torch.Tensor
) -> list[torch.Tensor]:
    """z_1, z_2, ... of codes (n, d), as the model is written down."""
    z: list[torch.Tensor] = []
    blocks = codes.split(LAYERS, -1)
    rate = torch.ones(1, LAYERS[-1], dtype=codes.dtype)
    for number in reversed(range(len(LAYERS))):
        z.insert(0, rate * log_gamma_quantile(blocks[number], model.shapes[number]).exp())
        if number:
            weight = log_gamma_quantile(leaves[f"weight{number}"][m], model.weight_shape).exp()
            rate = z[0] @ weight
    return z


@pytest.mark.parametrize("shape", [0.05, 0.3, 1.0, 20.0])
def test_quantile_map_sends_the_normal_law_to_the_gamma_law(shape):
    u = torch.linspace(-6, 6, 1001, dtype=torch.float64, requires_grad=True)
    log_g = log_gamma_quantile(u, shape)
    (slope,) = torch.autograd.grad(log_g.sum(), u)
    law = stats.gamma(shape, scale=1 / shape)
    g = np.exp(log_g.detach().numpy())
    representable = g > 1e-290
    expected = np.where(u.detach() < 0, stats.norm.cdf(u.detach()), stats.norm.sf(u.detach()))
    found = np.where(u.detach() < 0, law.cdf(g), law.sf(g))
    # an error of 3e-7 in log g moves the tail by at most that times g f / (1 - F), below 200 here
    assert found[representable] == pytest.approx(expected[representable], rel=1e-4)
    # the density of u by the change of variables, dF/du = f(g) g dlog g/du
    density = stats.gamma.pdf(g, shape, scale=1 / shape) * g * slope.numpy()
    assert density[representable] == pytest.approx(
        stats.norm.pdf(u.detach())[representable], rel=1e-3
    )


def test_quantile_map_goes_on_linearly_beyond_its_table():
    u = torch.tensor([-30.0, -12.0, 12.0, 30.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_gamma_quantile(u, 0.3).sum(), u)
    assert slope[0] == slope[1] > 0
    assert slope[2] == slope[3] > 0
    ends = torch.tensor([-9.0, 9.0], dtype=torch.float64)
    inside, outside = (log_gamma_quantile(ends + shift, 0.3) for shift in (0.0, 1e-9))
    assert torch.allclose(inside, outside, atol=1e-6)


def test_likelihood_is_that_of_poisson_counts_given_their_sum():
    model, leaves = some_model()
    counts = torch.poisson(torch.full((5, WORDS), 0.8)).double() + torch.eye(5, WORDS).double()
    codes = torch.randn(1, 5, 3, 9, dtype=torch.float64)
    found = model.log_likelihood(leaves, codes, counts)
    assert found.shape == (2, 5, 3)
    for m in range(2):
        words = (
            log_gamma_quantile(leaves["words"][m], model.weight_shape) + 4 * leaves["base"][m]
        ).exp()
        for b in range(5):
            rates = units(model, leaves, m, codes[0, b])[0] @ words
            law = Multinomial(int(counts[b].sum()), probs=rates)
            orders = torch.lgamma(counts[b].sum() + 1) - torch.lgamma(counts[b] + 1).sum()
            assert torch.allclose(found[m, b], law.log_prob(counts[b]) - orders, atol=1e-9)
    own = model.log_likelihood(leaves, codes.expand(2, -1, -1, -1), counts)
    assert torch.allclose(own, found)
    one = torch.eye(WORDS, dtype=torch.float64)
    single = model.log_likelihood(leaves, codes[:, :1].expand(1, WORDS, 3, 9), one)[0, :, 0]
    means = model.mean_images(leaves, codes[0, 0, :1])
    assert torch.allclose(single.exp(), means[0])


def test_normal_codes_have_the_law_of_the_layers_of_gammas():
    """N(u; 0, I) = prod_l prod_k Gamma(z_lk; a_l, a_l / rate_lk) |det dz/du|."""
    model, leaves = some_model()
    codes = torch.randn(9, dtype=torch.float64)
    z = units(model, leaves, 0, codes[None])
    log_p = torch.zeros(())
    for number, own in enumerate(z):
        mean = torch.ones(LAYERS[-1], dtype=torch.float64)
        if number < len(LAYERS) - 1:
            weight = leaves[f"weight{number + 1}"][0]
            mean = z[number + 1][0] @ log_gamma_quantile(weight, model.weight_shape).exp()
        shape = model.shapes[number]
        law = torch.distributions.Gamma(shape, shape / mean)
        log_p = log_p + law.log_prob(own[0]).sum()

    def every(u: torch.Tensor) -> torch.Tensor:
        return torch.cat([own[0] for own in units(model, leaves, 0, u[None])])

    jacobian = torch.autograd.functional.jacobian(every, codes)
    found = log_p + torch.linalg.slogdet(jacobian).logabsdet  # type: ignore[arg-type]
    assert float(found) == pytest.approx(float(standard_normal(codes)), abs=1e-4)


def test_units_start_at_the_words_of_their_documents():
    """W_0 over the base rates is the median times (s + p/2) / (3p/2), within e^-3 to e^3."""
    model = DeepPoisson((2, 3), 4)
    theta = ParticleEnsemble(model.parameters, 1, torch.Generator().manual_seed(0))
    totals = torch.tensor([4.0, 3.0, 999.0, 0.0])
    documents = torch.tensor([[[1.0, 0.0, 3.0, 0.0], [0.0, 0.0, 5.0, 0.0]]])
    between = theta.views(theta.flat)["weight1"].clone()
    model.start_at(theta.views(theta.flat), documents, totals)
    leaves = theta.leaves()
    share = (totals + 1) / 1010
    base = leaves["base"][0, 0] * 4
    assert torch.allclose(base, share.log() - share.log().mean(), atol=1e-5)
    median = stats.gamma(0.3, scale=1 / 0.3).median()
    weights = (model.log_word_weights(leaves)[0] - base).exp() / median
    expected = (documents[0] / documents[0].sum(1, keepdim=True) / share + 0.5) / 1.5
    assert float(expected[0, 0]) > np.exp(3)
    assert torch.allclose(weights, expected.clamp(max=np.exp(3)).float(), rtol=1e-3)
    assert torch.equal(leaves["weight1"], between)


def test_a_run_starts_at_documents_or_at_the_prior(tmp_path):
    counts = np.random.RandomState(0).randint(1, 5, 44).astype(np.int32)
    words = np.tile(np.array([0, 2, 3, 6], dtype=np.int32), 11)
    bags = Bags(start=np.arange(0, 45, 4), words=words, counts=counts)
    dataset = split("nyt", bags, bags, tuple("abcdefg"), {})
    model = ModelConfig(decoder="deep_poisson", layers=LAYERS, codes=9, hidden=(6,))
    config = Config(
        data=DataConfig(name="nyt"),
        model=model,
        method=MethodConfig(name="vae"),
        trainer=TrainerConfig(batch_size=4),
    )
    at_prior = replace(config, model=replace(model, start="prior"))
    prior = build_networks(at_prior, WORDS, "cpu").theta.flat
    assert torch.equal(Trainer(at_prior, dataset, tmp_path).networks.theta.flat, prior)
    first, second = (Trainer(config, dataset, tmp_path).networks for _ in range(2))
    assert torch.equal(first.theta.flat, second.theta.flat)
    heavy = first.model.topics(first.theta.leaves())[0][0] > 1 / WORDS  # type: ignore[attr-defined]
    assert not bool(heavy[:, [1, 4, 5]].any())  # words that no document has


def test_prepared_parameters_give_the_same_likelihood():
    networks = some_networks()
    leaves = networks.theta.leaves()
    codes, counts = torch.randn(1, 2, 3, 9), torch.ones(2, WORDS)
    plain = networks.model.log_likelihood(leaves, codes, counts)
    assert prepared(networks).keys() > leaves.keys()
    assert torch.equal(networks.model.log_likelihood(prepared(networks), codes, counts), plain)


def test_documents_do_not_depend_on_their_company():
    networks = some_networks()
    counts = torch.poisson(torch.full((20, WORDS), 0.8)) + torch.eye(WORDS)[torch.arange(20) % 7]
    codes = torch.randn(1, 20, 3, 9)
    leaves = networks.theta.leaves()
    together = networks.model.log_likelihood(leaves, codes, counts)
    alone = [
        networks.model.log_likelihood(leaves, codes[:, b : b + 1], counts[b : b + 1])
        for b in range(20)
    ]
    assert torch.allclose(together, torch.cat(alone, 1), rtol=1e-4)  # float32 sums, other order


def test_topics_follow_the_layers_down_to_words():
    model, leaves = some_model()
    topics = model.topics(leaves)
    assert [tuple(each.shape) for each in topics] == [(2, k, WORDS) for k in LAYERS]
    words = (
        log_gamma_quantile(leaves["words"][1], model.weight_shape) + 4 * leaves["base"][1]
    ).exp()
    below = [log_gamma_quantile(leaves[f"weight{n}"][1], model.weight_shape).exp() for n in (1, 2)]
    expected = below[1] @ below[0] @ words
    assert torch.allclose(topics[2][1], expected / expected.sum(-1, keepdim=True))


def test_layered_encoder_has_the_density_of_its_jacobian():
    encoder = some_networks().encoder.double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    counts = torch.poisson(torch.full((3, WORDS), 2.0, dtype=torch.float64))
    noise = torch.randn(3, 4, 9, dtype=torch.float64)
    codes, log_q = encoder.codes_and_log_density(counts, noise)
    assert torch.equal(encoder(counts, noise), codes)
    jacobian = encoder.jacobian(counts, noise).detach()
    sign, log_det = torch.linalg.slogdet(jacobian)
    assert bool((sign > 0).all())
    assert torch.allclose(log_q, standard_normal(noise) - log_det)
    top, middle = slice(7, 9), slice(4, 7)
    assert float(jacobian[..., middle, top].abs().min()) > 0  # a layer answers to those above
    assert float(jacobian[..., top, :7].abs().max()) == 0


@pytest.mark.parametrize("kind", ["layered", "gaussian"])
def test_encoders_of_layers_start_near_the_prior(kind):
    encoder = some_networks(kind).encoder
    codes = encoder(torch.ones(1, WORDS), torch.randn(1, 4000, 9)).detach()
    assert float(codes.mean((0, 1)).abs().max()) < 0.3
    assert torch.allclose(codes.std(1), torch.ones(1, 9), atol=0.3)


@pytest.mark.parametrize("kind", ["layered", "gaussian"])
def test_the_encoder_as_proposal_gives_its_own_bound(kind):
    networks = some_networks(kind)
    counts = torch.poisson(torch.full((6, WORDS), 2.0)) + 1
    options = {"samples": 4000, "seed": 3}
    mixture, _ = iw_g(networks, counts, proposal="encoder", **options)
    other = encoder_bounds(networks, counts, **options).s_elbo["mixture"]
    # two sets of 4,000 samples: the relative error of a mean weight is sqrt(var w / n) below 5 %
    assert torch.allclose(mixture, other, atol=0.15)


def test_bounds_by_the_encoder_do_not_depend_on_chunks(monkeypatch):
    networks = some_networks()
    counts = torch.poisson(torch.full((6, WORDS), 2.0)) + 1
    together = encoder_bounds(networks, counts, samples=20, seed=0)
    monkeypatch.setattr("steinvae.density.elbo.LOGITS_AT_ONCE", 1)
    alone = encoder_bounds(networks, counts, samples=20, seed=0)
    assert torch.allclose(together.elbo["mixture"], alone.elbo["mixture"], rtol=1e-5)
    assert together.determinants == alone.determinants


def test_a_shape_for_each_layer_or_one_for_all():
    with pytest.raises(ValueError, match=r"shapes must be one or 3, as there are layers, got 2"):
        DeepPoisson((8, 6, 3), 20, shapes=(3.0, 0.1))
