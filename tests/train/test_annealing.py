"""The temperature of the codes' target, theta left alone, and the scale of codes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steinvae.config import MethodConfig, ModelConfig
from steinvae.gradients import temperature
from steinvae.networks import build_networks
from steinvae.objectives import OBJECTIVES
from steinvae.trainer import Trainer

ANNEALED = ["stein_vae", "stein_viwae", "planar_flow", "flow_elbo"]


def test_temperature_falls_geometrically_to_one():
    method = MethodConfig(temperature=16.0, annealing_steps=4)
    assert [temperature(method, step) for step in range(6)] == [16.0, 8.0, 4.0, 2.0, 1.0, 1.0]
    assert temperature(MethodConfig(), 0) == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.5, "annealing_steps": 3},
        {"temperature": 2.0},
        {"annealing_steps": 3},
        {"temperature": 2.0, "annealing_steps": 3, "name": "vae"},
        {"temperature": 2.0, "annealing_steps": 3, "name": "stein_viwae", "weights": "both"},
    ],
)
def test_settings_that_do_not_fit_are_named(changes):
    with pytest.raises(ValueError, match=r"method\.(temperature|annealing_steps) must be"):
        MethodConfig(**changes)


@pytest.mark.parametrize("name", ANNEALED)
def test_temperature_one_leaves_the_bits_and_two_moves_the_encoder_alone(
    name, tiny, digits, tmp_path
):
    """The same batch at T = 1 as without annealing, bit for bit; theta's gradient has no T."""
    config = tiny(method={"name": name, "code_particles": 3, "importance_samples": 2})
    trainer = Trainer(config, digits, tmp_path)
    batch = trainer.batch(0)
    objective, method = OBJECTIVES[name], config.method
    plain = objective(trainer.networks, batch, method, 1000)
    one = objective(trainer.networks, batch._replace(temperature=1.0), method, 1000)
    two = objective(trainer.networks, batch._replace(temperature=2.0), method, 1000)
    assert all(torch.equal(a, b) for a, b in zip(plain.eta, one.eta, strict=True))
    assert torch.equal(plain.theta, two.theta)
    assert not all(torch.equal(a, b) for a, b in zip(plain.eta, two.eta, strict=True))


def test_annealed_stein_direction_is_that_of_the_divided_score(tiny, digits, tmp_path):
    """phi is linear in the score plus a repulsion: eta's gradient is affine in 1 / T."""
    config = tiny(method={"code_particles": 5})
    trainer = Trainer(config, digits, tmp_path)
    at = {
        t: OBJECTIVES["stein_vae"](
            trainer.networks, trainer.batch(0)._replace(temperature=t), config.method, 1000
        ).eta
        for t in (1.0, 2.0, 4.0)
    }
    for one, two, four in zip(at[1.0], at[2.0], at[4.0], strict=True):
        scale = one.abs().max().item()
        torch.testing.assert_close(one - two, 2 * (two - four), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["planar_flow", "flow_elbo"])
def test_a_hot_elbo_is_the_entropy_alone(name, tiny, digits, tmp_path):
    """E[log q - log p(x, z) / T] at T = 1e12: nothing of the model is left in eta's gradient."""
    config = tiny(method={"name": name, "code_particles": 3, "importance_samples": 2})
    trainer = Trainer(config, digits, tmp_path)
    batch = trainer.batch(0)._replace(temperature=1e12)
    found = OBJECTIVES[name](trainer.networks, batch, config.method, 1000).eta
    _, log_q = trainer.networks.encoder.codes_and_log_density(batch.pixels, batch.noise)
    expected = torch.autograd.grad(log_q.mean(), trainer.networks.eta(), materialize_grads=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_fixed_theta_leaves_its_bits_and_trains_the_encoder(tiny, digits, tmp_path):
    config = tiny(method={"fixed_theta": True})
    trainer = Trainer(config, digits, tmp_path)
    before = {name: item.clone() for name, item in trainer.networks.tensors().items()}
    for step in range(3):
        trainer.update(step, monitor=False)
    after = trainer.networks.tensors()
    assert torch.equal(after["theta"], before["theta"])
    assert any(not torch.equal(after[name], before[name]) for name in before if name != "theta")


def test_output_scale_multiplies_codes_and_jacobian(tiny):
    plain, wide = (
        build_networks(tiny(model={"encoder": "concat", "output_scale": scale}), 6, "cpu").encoder
        for scale in (1.0, 4.0)
    )
    pixels, noise = torch.rand(3, 6), torch.randn(3, 5, 4)
    assert torch.equal(4 * plain(pixels, noise), wide(pixels, noise))
    assert torch.equal(4 * plain.jacobian(pixels, noise), wide.jacobian(pixels, noise))
    with pytest.raises(ValueError, match=r"model\.output_scale must be positive, got 0"):
        replace(ModelConfig(), output_scale=0)
