"""The Gibbs sampler against exact posteriors of one and two topics, and by Geweke's joint test.

Seeds are fixed, so a test gives the same answer every time; p-values of 1e-3 and z-values of 4 say
how surprising a right sampler would have to be to fail.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import cumulative_trapezoid
from scipy.sparse import csr_array
from scipy.special import gammaln
from scipy.stats import dirichlet, gamma, kstest, poisson

from steinvae.gibbs import (
    Chain,
    Prior,
    Tokens,
    assign,
    learn_topics,
    log_joint,
    posterior_draws,
    sweep,
)

PRIOR = Prior(shape=0.8, rate=0.5, concentration=0.6)
TOPICS = np.array([[0.6, 0.3, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]])
DOCUMENT = np.array([[3, 2, 1, 1]])


def test_one_topic_is_a_gamma():
    """V = 1: z | x ~ Gamma(a + sum x, rate b + 1), whatever theta is."""
    draws = posterior_draws(
        Tokens.of(DOCUMENT), TOPICS[:1], PRIOR, seed=1, chains=4_000, burn_in=1, draws=1, thin=1
    )
    exact = gamma(PRIOR.shape + DOCUMENT.sum(), scale=1 / (PRIOR.rate + 1))
    assert kstest(draws.ravel(), exact.cdf).pvalue > 1e-3


def test_two_topics_against_a_grid():
    """Both marginals, and one of the sum, by Kolmogorov and Smirnov; 4,000 independent chains."""
    draws = posterior_draws(
        Tokens.of(DOCUMENT), TOPICS, PRIOR, seed=2, chains=4_000, burn_in=60, draws=1, thin=1
    )[:, 0, 0]
    root = np.linspace(1e-4, 5.5, 700)  # z = t^4 removes the singularity z^(a - 1) at 0
    first, second = np.meshgrid(root, root, indexing="ij")
    z = np.stack([first, second], -1) ** 2
    log_density = (DOCUMENT * np.log(z @ TOPICS)).sum(-1) - (1 + PRIOR.rate) * z.sum(-1)
    log_density += ((PRIOR.shape - 1) * np.log(z)).sum(-1) + np.log(first) + np.log(second)
    density = np.exp(log_density - log_density.max())
    for axis in (0, 1):
        marginal = cumulative_trapezoid(density.sum(1 - axis), root, initial=0)
        exact = np.interp(np.sqrt(draws[:, axis]), root, marginal / marginal[-1])
        assert kstest(exact, "uniform").pvalue > 1e-3
    joint = density / density.sum()
    product = (joint * z.prod(-1)).sum()
    sample = draws.astype(np.float64).prod(-1)
    assert abs(sample.mean() - product) < 4 * sample.std() / len(sample) ** 0.5


def test_geweke_joint_distribution():
    """Drawing x | z, theta between sweeps leaves the joint of (x, z, theta) as its law.

    So moments of z, theta and x must be those of drawing all from the prior, where they are known:
    E z = a/b, E z^2 = a(a+1)/b^2, E theta = 1/P, E theta^2 = (alpha+1)/(P(P alpha+1)), and
    E[z_0 theta_00] = a/(b P). Standard errors are those of 100 batch means.
    """
    documents, words, topics, rounds = 3, 3, 2, 6_000
    prior = Prior(shape=1.5, rate=1.0, concentration=0.8)
    empty = Tokens.of(np.zeros((documents, words)))
    chain = Chain.start(empty, prior, 3, topics=topics)
    rows = np.empty((rounds, 6))
    for each in range(rounds):
        drawn = chain.rng.poisson(chain.scores @ chain.topics)
        z, theta = chain.scores, chain.topics
        rows[each] = [
            z.mean(),
            (z**2).mean(),
            (theta**2).mean(),
            theta[0, 0],
            z[0, 0] * theta[0, 0],
            drawn.mean(),
        ]
        sweep(chain, Tokens.of(drawn), prior, learn_topics=True)
    a, b, alpha = prior.shape, prior.rate, prior.concentration
    expected = [
        a / b,
        a * (a + 1) / b**2,
        (alpha + 1) / (words * (words * alpha + 1)),
        1 / words,
        a / (b * words),
        topics * a / (b * words),
    ]
    batches = rows.reshape(100, -1, 6).mean(1)
    error = batches.std(0, ddof=1) / len(batches) ** 0.5
    assert (np.abs(batches.mean(0) - expected) < 4 * error).all()
    assert (error < 0.05 * np.array(expected)).all()  # the test would see a factor


def test_log_joint_follows_its_formula():
    """Differences of the log joint in z are those of Poisson and gamma densities by scipy."""
    tokens = Tokens.of(DOCUMENT)
    chain = Chain.start(tokens, PRIOR, 4, topics=2)
    rate = (chain.scores @ chain.topics)[0]
    seen = poisson.logpmf(DOCUMENT[0], rate).sum()
    of_scores = gamma.logpdf(chain.scores, PRIOR.shape, scale=1 / PRIOR.rate).sum()
    of_topics = sum(dirichlet.logpdf(row, [PRIOR.concentration] * 4) for row in chain.topics)
    factorials = gammaln(DOCUMENT + 1).sum()
    expected = seen + factorials + of_scores + of_topics
    assert log_joint(chain, tokens, PRIOR) == pytest.approx(expected, rel=1e-9)


def test_every_token_goes_to_one_topic_and_never_to_one_of_weight_zero():
    many = Tokens.of(np.array([[0, 3, 2, 40_000], [0, 0, 0, 0]]))
    chain = Chain.start(many, PRIOR, 5, topics=TOPICS)
    by_document, by_word = assign(chain, many)
    assert by_document.sum(1).tolist() == [40_005, 0]
    assert by_word.sum(0).tolist() == [0, 3, 2, 40_000]
    assert by_word[0, 3] == 0


@pytest.mark.parametrize("stop", [5, 17])
def test_a_chain_continues_bit_for_bit(tmp_path, stop):
    """Interrupted before the average starts, and within it."""
    tokens = Tokens.of(np.random.default_rng(0).poisson(1.0, (6, 5)))
    whole = Chain.start(tokens, PRIOR, 6, topics=3)
    average = learn_topics(whole, tokens, PRIOR, sweeps=20, average=6)
    first, checkpoint = Chain.start(tokens, PRIOR, 6, topics=3), tmp_path / "chain.npz"

    def interrupt(chain: Chain) -> None:
        if chain.sweeps == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_topics(
            first,
            tokens,
            PRIOR,
            sweeps=20,
            average=6,
            checkpoint=checkpoint,
            checkpoint_every=1,
            progress=interrupt,
        )
    second = Chain.load(checkpoint)
    assert second.sweeps == stop
    again = learn_topics(second, tokens, PRIOR, sweeps=20, average=6, checkpoint=checkpoint)
    assert len(second.trace) == 2
    assert second.trace == whole.trace
    np.testing.assert_array_equal(again, average)
    np.testing.assert_array_equal(second.scores, whole.scores)
    finished = Chain.load(checkpoint)
    np.testing.assert_array_equal(
        learn_topics(finished, tokens, PRIOR, sweeps=20, average=6), average
    )


def test_sparse_and_dense_counts_are_the_same_tokens():
    dense = np.random.default_rng(1).poisson(0.7, (4, 6))
    for sparse in (csr_array(dense), csr_array(dense.astype(np.float32))):
        tokens = Tokens.of(sparse)
        rebuilt = np.zeros_like(dense)
        np.add.at(rebuilt, (tokens.documents, tokens.words), 1)
        np.testing.assert_array_equal(rebuilt, dense)


def test_refuses_what_is_no_count():
    with pytest.raises(ValueError, match="whole numbers"):
        Tokens.of(np.array([[0.5]]))
    with pytest.raises(ValueError, match="rate must be positive"):
        Prior(rate=0.0)
