"""Settings that a method never reads: named if and only if the bits of an update stay."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steinvae import train
from steinvae.config import Config, MethodConfig, ModelConfig
from steinvae.config.unread import READ_BY, SWITCHES, unread, unread_lines
from steinvae.presets import PRESETS, load_preset
from steinvae.trainer import Trainer

OTHER = {
    "self_term": "include",
    "importance_samples": 3,
    "weights": "none",
    "log_q": "kde",
    "theta_particles": 4,
    "pairing": "strat",
    "label_particles": 3,
    "bandwidth": 0.7,
    "bandwidth_factor": 2.0,
    "kernel_block": 2,
    "kernel": "sum",
    "theta_bandwidth": 50.0,
    "regression_steps": 2,
    "code_step": 0.3,
    "iwae_gradient": "dreg",
    "mass_codes": 9,
}
ALWAYS = {
    *("name", "code_particles", "entropy_weight", "zeta", "guess_above", "align_guesses"),
    *("adversarial_radius", "move_codes", "temperature", "annealing_steps"),
    *("normalise_direction", "mass_rate", "fixed_theta", "shared_noise"),
}
"""Read by every method that takes them."""

VIWAE = {"name": "stein_viwae", "importance_samples": 2}
CASES = [
    {"name": "stein_vae"},
    {"name": "stein_vae", "kernel": "linear"},
    {"name": "stein_vae", "mass_rate": 0.3},
    {"name": "stein_vae", "regression_steps": 3},
    {"name": "stein_vae", "theta_particles": 1},
    {"name": "stein_vae", "fixed_theta": True},
    VIWAE,
    VIWAE | {"importance_samples": 1},
    VIWAE | {"weights": "none", "theta_particles": 2},
    VIWAE | {"weights": "paper", "theta_particles": 1},  # a decoder for each of the k codes
    VIWAE | {"weights": "paper", "theta_particles": 1, "importance_samples": 1},
    VIWAE | {"move_codes": True},
    VIWAE | {"kernel": "linear"},
    VIWAE | {"kernel": "linear", "log_q": "kde"},
    {"name": "vae"},
    {"name": "iwae"},
    {"name": "planar_flow"},
    {"name": "vae_weighted_decoder"},
    {"name": "vae_weighted_decoder", "importance_samples": 1},
    {"name": "flow_elbo"},
]
LABELLED = [{"name": name} for name in ("stein_vae", "vae", "m2", "supervised")]
LABELLED += [{"name": "stein_vae", "theta_particles": 1}]


@pytest.fixture
def updated(tiny, digits, tmp_path):
    """All that an update leaves, and the settings it was made by."""

    def make(method: dict, labels: bool) -> tuple[Config, dict[str, Tensor]]:
        config = tiny(
            data={"labels_per_class": 3} if labels else {},
            model={"codes": 3, "hidden": (4,)},
            method={"code_particles": 4, "theta_particles": 2, **method},
            trainer={"batch_size": 6},
        )
        trainer = Trainer(config, digits, tmp_path)
        trainer.update(0, monitor=False)
        return config, trainer.tensors()

    return make


@pytest.mark.parametrize(
    ("method", "labels"),
    [*((case, False) for case in CASES), *((case, True) for case in LABELLED)],
    ids=str,
)
def test_what_is_named_has_no_effect_and_what_is_not_has_one(method, labels, updated):
    """Adam's moments are compared too: its first step hides the length of a gradient."""
    plain, before = updated(method, labels)
    compared = 0
    for name, value in OTHER.items():
        if value == getattr(plain.method, name):
            continue
        try:
            changed, after = updated(method | {name: value}, labels)
        except ValueError:  # refused
            continue
        same = before.keys() == after.keys() and all(
            torch.equal(before[key], after[key]) for key in before
        )
        assert unread(changed, plain) == ([f"method.{name}"] if same else []), name
        compared += 1
    assert compared > 8


def test_every_setting_has_a_place():
    names = {field.name for field in fields(MethodConfig)}
    assert set(OTHER) == set(READ_BY) >= set(SWITCHES)
    assert set(READ_BY) | ALWAYS == names
    assert not set(READ_BY) & ALWAYS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_what_a_preset_sets_is_not_named(name):
    preset = load_preset(name)
    assert unread(preset, preset) == []
    method = replace(preset.method, name="vae", move_codes=False)
    beside = replace(preset, method=method)
    assert unread(beside, preset) == []


@pytest.mark.parametrize("name", ["vae", "planar_flow", "stein_vae", "flow_elbo"])
@pytest.mark.parametrize(("setting", "value"), [("encoder", "gaussian"), ("planar_layers", 3)])
def test_what_of_the_model_is_named(name, setting, value, tiny, digits, tmp_path):
    def after(**model) -> dict[str, Tensor]:
        config = tiny(model={"codes": 3, "hidden": (4,), **model}, method={"name": name})
        trainer = Trainer(config, digits, tmp_path)
        trainer.update(0, monitor=False)
        return trainer.tensors()

    before, changed = after(), after(**{setting: value})
    same = before.keys() == changed.keys() and all(
        torch.equal(before[key], changed[key]) for key in before
    )
    config = Config(model=ModelConfig(**{setting: value}), method=MethodConfig(name=name))
    assert unread(config, Config()) == ([f"model.{setting}"] if same else [])


def test_reasons_are_given():
    def lines(**method) -> list[str]:
        return unread_lines(Config(method=MethodConfig(**method)), Config())

    assert lines(importance_samples=50) == [
        "method.importance_samples = 50 has no effect on method.name stein_vae "
        "(read by stein_viwae, vae_weighted_decoder, flow_elbo)"
    ]
    assert lines(kernel="linear", bandwidth=2.0) == [
        "method.bandwidth = 2.0 has no effect with method.kernel linear"
    ]
    assert lines(theta_particles=1, theta_bandwidth=2.0) == [
        "method.theta_bandwidth = 2.0 has no effect with one decoder"
    ]
    assert lines(name="stein_viwae", importance_samples=50) == []


def test_command_says_it_once_and_of_the_method_alone(tmp_path: Path, capsys):
    short = ["--trainer.max_steps=1", "--trainer.device=cpu", "--evaluation.images=2"]
    quiet = [*short, "--evaluation.samples=5", f"--run_dir={tmp_path / 'quiet'}"]
    assert train.main([*quiet, "--method.bandwidth=2", "--method.theta_particles=2"]) == 0
    assert "no effect" not in capsys.readouterr().err
    loud = [*short, "--evaluation.samples=5", f"--run_dir={tmp_path / 'loud'}"]
    assert train.main([*loud, "--method.importance_samples=50", "--method.weights=both"]) == 0
    shown = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    assert [line.split(" has ")[0] for line in shown] == [
        "steinvae.train: method.importance_samples = 50",
        "steinvae.train: method.weights = both",
    ]
