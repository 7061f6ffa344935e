"""The HMC kernel leaves its target invariant, is reversible, and its steps find their aim."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steinvae.density.annealed import ais
from steinvae.density.annealing import Annealing, find_steps
from steinvae.density.hmc import Chains, Draws, leapfrog, posterior_likelihood, start, transition
from tests.method.models import linear_networks

GRID = torch.linspace(-6, 4, 20_001, dtype=torch.float64)
INVERSE_TEMPERATURE = 0.7


def skewed(codes: Tensor) -> tuple[Tensor, Tensor]:
    """log L(z) = 2 z - 3 exp(z): far from Gaussian, so that moments of odd order count."""
    rising = codes.exp()
    return (2 * codes - 3 * rising).sum(-1), 2 - 3 * rising


def tempered() -> Tensor:
    """f_b on the grid, normalised."""
    log_density = INVERSE_TEMPERATURE * skewed(GRID[:, None])[0] - 0.5 * GRID.square()
    return log_density.softmax(0)


def exact_draws(count: int) -> Tensor:
    """(1, count, 1) by the inverse of the distribution function."""
    below = tempered().cumsum(0)
    uniform = torch.rand(count, dtype=torch.float64)
    return GRID[torch.searchsorted(below, uniform).clamp_max(len(GRID) - 1)][None, :, None]


def draws(like: Tensor) -> Draws:
    shape = (*like.shape[:-1], 2)
    return Draws(torch.randn_like(like), torch.rand(shape, dtype=like.dtype))


def move(chains: Chains, step: float) -> tuple[Chains, Tensor]:
    length = torch.full((1, 1), step, dtype=torch.float64)
    return transition(skewed, chains, draws(chains.codes), INVERSE_TEMPERATURE, length, leapfrogs=3)


@pytest.mark.parametrize("step", [0.3, 0.9])
def test_target_is_left_invariant(step):
    """Moments of exact draws after 1 and after 8 transitions, within 4 standard errors."""
    density, count = tempered(), 40_000
    chains = start(skewed, exact_draws(count))
    for transitions in range(8):
        chains, acceptance = move(chains, step)
        if transitions in (0, 7):
            for order in (1, 2, 3):
                wanted = (density * GRID**order).sum()
                powers = chains.codes.flatten() ** order
                assert (powers.mean() - wanted).abs() < 4 * powers.std() / count**0.5
    assert acceptance.mean() > 0.5
    assert step < 0.5 or acceptance.mean() < 0.9  # so rejections matter


def test_pairs_of_states_are_exchangeable():
    """Detailed balance: under the target (z, z') and (z', z) have one distribution."""
    before = start(skewed, exact_draws(40_000))
    after, _ = move(before, 0.9)
    old, new = before.codes.flatten(), after.codes.flatten()
    for asymmetric in (old * new**2 - new * old**2, old * new**3 - new * old**3, old - new):
        assert asymmetric.mean().abs() < 4 * asymmetric.std() / len(old) ** 0.5


def test_leapfrog_is_undone_by_turning_round():
    chains = start(skewed, torch.randn(2, 5, 3, dtype=torch.float64))
    momentum = torch.randn_like(chains.codes)
    step = torch.rand(2, 5, dtype=torch.float64)
    there, carried = leapfrog(skewed, chains, momentum, 0.4, step, 4)
    back, returned = leapfrog(skewed, there, -carried, 0.4, step, 4)
    assert (there.codes - chains.codes).abs().max() > 0.1
    torch.testing.assert_close(back.codes, chains.codes, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(returned, -momentum, rtol=1e-9, atol=1e-9)


def test_proposal_of_infinite_energy_is_rejected():
    """exp overflows: the energy of the proposal is infinite or NaN, the chain stays where it is."""
    chains = start(skewed, torch.zeros(1, 4, 1, dtype=torch.float64))
    moved, acceptance = move(chains, 1e4)
    torch.testing.assert_close(moved.codes, chains.codes)
    assert (acceptance == 0).all()


def test_likelihood_gradient_is_that_of_the_model():
    model, networks = linear_networks(1, 1.0)
    pixels, codes = torch.randn(3, 4), torch.randn(3, 5, 2)
    value, gradient = posterior_likelihood(networks, pixels, "mixture")(codes)
    weight = networks.theta.flat[0].view(2, 4)
    by_hand = (pixels[:, None] - codes @ weight) @ weight.T / model.noise**2
    torch.testing.assert_close(gradient, by_hand, rtol=1e-4, atol=1e-4)
    direct = model.log_likelihood(networks.theta.leaves(), codes[None], pixels)[0]
    torch.testing.assert_close(value, direct.double().detach())


@pytest.mark.parametrize("noise", [0.5, 0.05])
def test_pilot_finds_the_step_of_each_image(noise):
    """Posteriors ten times as narrow take steps about as much smaller; acceptance stays at 0.65."""
    model, networks = linear_networks(1, 1.0)
    model.noise = noise
    settings = Annealing(temperatures=250, chains=16)
    pixels = noise * torch.randn(6, 4)
    evaluate = posterior_likelihood(networks, pixels, "mixture")
    steps = find_steps(evaluate, networks, range(6), settings, seed=0)
    assert steps.shape == (249, 6)
    acceptance = ais(networks, pixels, settings, seed=0).acceptance
    assert (acceptance - settings.acceptance).abs().max() < 0.12
    width = torch.linalg.eigvalsh(model.posterior(networks.theta.flat[0].view(2, 4))[1]).sqrt()
    assert (steps[-20:].mean() / width.min()).log().abs() < 1
