"""The Stein move: a shift by the other codes, whose weights stay exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steinvae.config import Config, MethodConfig, ModelConfig
from steinvae.gradients import Batch
from steinvae.moves import linear_part, moved_viwae, shift
from steinvae.networks import Networks
from steinvae.objectives import stein_viwae
from steinvae.particles import ParticleEnsemble
from steinvae.recognition import make_encoder, standard_normal
from steinvae.run import baseline
from steinvae.stein import posterior_scores
from tests.method.models import CODES, PIXELS, LinearEncoder, LinearGaussian

MOVED = MethodConfig(
    name="stein_viwae",
    theta_particles=1,
    code_particles=1,
    importance_samples=5,
    move_codes=True,
    code_step=1.0,
)


class Affine(LinearEncoder):
    """Its density by the Jacobian that autograd gives."""

    injective, linear = True, True


def posterior_networks(off: float, wider: float = 1.0) -> Networks:
    """A linear Gaussian model with its posterior, the mean off by `off` and the spread scaled."""
    model = LinearGaussian()
    theta = ParticleEnsemble(model.parameters, 1, torch.Generator().manual_seed(2), "cpu")
    theta.flat = theta.flat.double()
    to_mean, covariance = model.posterior(theta.leaves()["weight"][0].detach().double())
    scale = wider * torch.linalg.cholesky(covariance)
    return Networks(model, theta, Affine(to_mean + off, scale).double())


def draw(images: int, samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(images, PIXELS, generator=generator).double()
    return pixels, torch.randn(images, samples, CODES, generator=generator).double()


def test_shift_is_the_mean_over_the_other_codes_of_a_group():
    pull, factor = torch.randn(2, 6, 3).double(), torch.randn(2, 3, 3).double()
    expected = torch.zeros_like(pull)
    for b in range(2):
        for j in range(6):
            others = [i for i in range(6) if i // 3 == j // 3 and i != j]
            expected[b, j] = factor[b] @ factor[b].T @ pull[b, others].mean(0)
    torch.testing.assert_close(shift(pull, factor, 3), expected)


def test_a_full_step_brings_a_shifted_posterior_onto_its_target():
    """Where q is right up to its mean, codes after the move are the posterior's: equal weights."""
    networks = posterior_networks(0.3)
    pixels, noise = draw(3, 5)
    stats = moved_viwae(networks, Batch(pixels, noise, monitor=True), MOVED, 40).stats
    assert "stein_discrepancy" not in stats  # there is no kernel
    assert stats["effective_samples"].item() == pytest.approx(5, abs=1e-9)
    assert stats["moved"] > 0.1
    still = MethodConfig(**{**vars(MOVED), "move_codes": False, "log_q": "jac"})
    drawn = stein_viwae(networks, Batch(pixels, noise), still, 40).stats
    assert drawn["effective_samples"] < 4.5


def evidence_ratio(samples: int, *, leave_out: bool) -> tuple[Tensor, Tensor]:
    """Mean over 40,000 draws of p(x, z') / q(z | x) / p(x), and its error, for a wrong q."""
    networks = posterior_networks(0.1, wider=1.2)
    pixels, noise = draw(1, 40_000 * samples)
    noise = noise.unflatten(1, (-1, samples))[0]
    pixels = pixels.expand(len(noise), -1)
    with torch.no_grad():
        codes, log_q = networks.encoder.codes_and_log_density(pixels, noise)
        score = -torch.linalg.solve(networks.encoder.scale.mT, noise[..., None])[..., 0]  # type: ignore[operator, union-attr]
    posterior = posterior_scores(networks.model, networks.theta, codes, pixels, data_size=1).codes
    pull = posterior - score
    factor = linear_part(networks, pixels)
    step = shift(pull, factor, samples)
    if not leave_out:
        step = pull.mean(1, keepdim=True) @ factor @ factor.mT
    moved = (codes + step).detach()
    leaves = networks.theta.leaves()
    log_joint = networks.model.log_likelihood(leaves, moved[None], pixels)[0] + standard_normal(
        moved
    )
    log_x = networks.model.log_evidence(leaves["weight"][0], pixels[:1])  # type: ignore[attr-defined]
    ratio = (log_joint - log_q - log_x).exp().mean(1).detach()
    return ratio.mean(), ratio.std() / len(ratio) ** 0.5


def test_weights_of_moved_codes_have_the_evidence_as_their_mean():
    """To five errors; a code that shifts by its own score too has another density."""
    mean, error = evidence_ratio(3, leave_out=True)
    assert error < 0.01
    assert (mean - 1).abs() < 5 * error
    biased, error = evidence_ratio(3, leave_out=False)
    assert (biased - 1).abs() > 10 * error


def test_the_encoder_follows_the_drawn_codes_and_the_decoder_the_moved(make_networks, pixels):
    """A step too small to see leaves the update of exact weights at the drawn codes."""
    networks = make_networks()
    networks.encoder = make_encoder(
        "triangular", 6, (5,), 2, torch.Generator().manual_seed(0)
    ).double()
    batch = Batch(pixels, torch.randn(4, 10, 2).double())
    settings = {**vars(MOVED), "code_particles": 2}
    tiny = MethodConfig(**{**settings, "code_step": 1e-12})
    still = MethodConfig(**{**settings, "move_codes": False, "log_q": "jac"})
    got, expected = (stein_viwae(networks, batch, method, 40) for method in (tiny, still))
    torch.testing.assert_close(got.theta, expected.theta, rtol=1e-8, atol=1e-10)
    whole = stein_viwae(networks, batch, MethodConfig(**settings), 40)
    torch.testing.assert_close(got.eta, whole.eta, rtol=0, atol=0)
    assert (whole.theta - got.theta).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "stein_vae", "code_particles": 2}, "method.name"),
        ({"weights": "z"}, "method.weights"),
        ({"pairing": "strat"}, "method.pairing"),
        ({"mass_rate": 0.1}, "method.mass_rate"),
        ({"normalise_direction": True}, "method.normalise_direction"),
        ({"regression_steps": 2}, "method.regression_steps"),
        ({"temperature": 5.0, "annealing_steps": 3}, "method.temperature"),
        ({"importance_samples": 1, "code_particles": 2}, "method.importance_samples"),
    ],
)
def test_what_a_move_does_not_go_with_is_named(change, named):
    with pytest.raises(ValueError, match=named.replace(".", r"\.") + ".*move_codes"):
        MethodConfig(**{**vars(MOVED), **change})


@pytest.mark.parametrize("encoder", ["residual", "concat"])
def test_a_move_needs_a_density(encoder):
    with pytest.raises(ValueError, match=r"method\.move_codes must be false.*folds"):
        Config(model=ModelConfig(encoder=encoder), method=MOVED)


def test_baseline_has_the_two_decoder_passes_of_moved_codes():
    method = MethodConfig(
        name="stein_viwae", code_particles=4, importance_samples=3, log_q="jac", move_codes=True
    )
    beside = baseline(Config(method=method))
    assert beside is not None
    assert (beside.method.name, beside.method.codes_per_image) == ("vae", 2 * 4 * 3)
