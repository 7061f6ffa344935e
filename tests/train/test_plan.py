"""The plan's numbers are those of real networks and real updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from steinvae import train
from steinvae.cli import parse_config
from steinvae.config import LABELLED, ModelConfig
from steinvae.models.closed_form import ClosedForm
from steinvae.models.conv import BernoulliConv
from steinvae.models.mlp import BernoulliMlp
from steinvae.networks import build_networks
from steinvae.plan import PIXELS, WORDS_OF_A_DOCUMENT, make_plan
from steinvae.presets import load_preset
from steinvae.trainer import Trainer

CASES = {
    "stein": {"theta_particles": 3},
    "strat": {"theta_particles": 5, "pairing": "strat"},
    "viwae": {"name": "stein_viwae", "theta_particles": 2, "importance_samples": 3},
    "printed": {
        "name": "stein_viwae",
        "weights": "paper",
        "code_particles": 4,
        "theta_particles": 2,
        "importance_samples": 3,
    },
    "printed and dealt": {
        "name": "stein_viwae",
        "weights": "paper",
        "code_particles": 4,
        "theta_particles": 2,
        "importance_samples": 3,
        "pairing": "strat",
    },
    "vae": {"name": "vae", "theta_particles": 4},
    "iwae": {"name": "iwae"},
    "planar": {"name": "planar_flow"},
    "control": {"name": "vae_weighted_decoder"},
    "flow elbo": {"name": "flow_elbo"},
}


def passes_of_an_update(trainer: Trainer) -> list[int]:
    """Pairs of a code and a decoder, call by call."""
    model, calls = trainer.networks.model, []
    assert isinstance(model, BernoulliMlp)
    original = model.pair_gradients

    def counting(*arguments: Any, **options: Any) -> ClosedForm:
        found = original(*arguments, **options)
        calls.append(found.log_likelihood.numel())
        return found

    model.pair_gradients = counting  # type: ignore[method-assign]
    trainer.update(0, monitor=False)
    return calls


@pytest.mark.parametrize("method", CASES.values(), ids=CASES.keys())
def test_passes_are_those_of_an_update(method, tiny, digits, tmp_path):
    config = tiny(method=method)
    trainer, plan = Trainer(config, digits, tmp_path), make_plan(config)
    calls = passes_of_an_update(trainer)
    assert calls == [plan.decoder_passes]
    assert plan.images_at_once == config.trainer.batch_size
    assert plan.encoder_images_at_once == config.trainer.batch_size


@pytest.mark.parametrize("name", LABELLED)
def test_passes_with_labels_are_those_of_both_halves(name, tiny, digits, tmp_path):
    data = {"labels_per_class": 5}
    config = tiny(data=data, method={"name": name, "theta_particles": 3})
    trainer, plan = Trainer(config, digits, tmp_path), make_plan(config)
    calls = passes_of_an_update(trainer)
    assert sum(calls) == plan.decoder_passes == trainer.work.decoder_passes
    decodes = name != "supervised"
    assert (plan.decoder_passes > 0, plan.decoding_bytes > 0) == (decodes, decodes)


@pytest.mark.parametrize("encoder", ["flow", "residual", "concat", "gaussian", "triangular"])
@pytest.mark.parametrize("method", CASES.values(), ids=CASES.keys())
def test_parameters_are_those_of_the_networks(method, encoder, tiny):
    if method.get("name") == "flow_elbo":
        encoder = "flow"  # others are refused
    model = ModelConfig(codes=3, hidden=(7, 5), encoder=encoder, flow_blocks=3, planar_layers=4)
    config = tiny(model=model, method=method)
    plan = make_plan(config)
    count = build_networks(config, 64, "cpu").parameter_count()
    assert plan.decoder_parameters == count["decoder"]
    assert plan.decoders * plan.decoder_parameters == count["decoders"]
    assert plan.encoder_parameters == count["encoder"]


@pytest.mark.parametrize("kind", ["flow", "gaussian", "concat"])
def test_parameters_of_convolutions(kind, tiny):
    config = tiny(model=ModelConfig(network="conv", codes=3, hidden=(4, 5), encoder=kind))
    plan, networks = make_plan(config), build_networks(config, 64, "cpu")
    count = networks.parameter_count()
    assert plan.decoder_parameters == count["decoder"]
    assert plan.encoder_parameters == count["encoder"]


def test_products_of_convolutions_are_those_that_torch_counts(tiny):
    config = tiny(model=ModelConfig(network="conv", codes=3, hidden=(4, 5)))
    networks, plan = build_networks(config, 64, "cpu"), make_plan(config)
    model = networks.model
    assert isinstance(model, BernoulliConv)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(networks.theta.leaves(), torch.zeros(1, 1, 3))
    each = networks.theta.particles * plan.flops / plan.decoder_passes
    assert counter.get_total_flops() == each / 3


def test_chunks_of_convolutions_are_bounded_by_what_they_keep(tiny, digits, monkeypatch, tmp_path):
    """Two images at a time where the bound says so, planned and done."""
    config = tiny(model=ModelConfig(network="conv", codes=3, hidden=(4, 5)))
    trainer = Trainer(config, digits, tmp_path)
    model = trainer.networks.model
    assert isinstance(model, BernoulliConv)
    kept = model.kept_per_pair
    each = config.method.code_particles * config.method.theta_particles
    for module in ("steinvae.pairs", "steinvae.plan"):
        monkeypatch.setattr(f"{module}.PAIRS_AT_ONCE", 2 * each * kept)
    rows, original = [], model.log_likelihood

    def counting(theta: Any, codes: Any, pixels: Any) -> Any:
        rows.append(len(pixels))
        return original(theta, codes, pixels)

    monkeypatch.setattr(model, "log_likelihood", counting)
    trainer.update(0, monitor=False)
    assert max(rows) == make_plan(config).images_at_once == 2


def test_state_is_what_a_run_holds(tiny, digits, tmp_path):
    config = tiny()
    trainer, plan = Trainer(config, digits, tmp_path), make_plan(config)
    trainer.update(0, monitor=False)
    trainer._remember(trainer.validate())
    held = (trainer.networks.tensors(), trainer.optimizer.tensors(), trainer._best)
    measured = sum(item.nbytes for tensors in held for item in tensors.values() if item.ndim)
    assert measured == plan.state_bytes
    assert all(own.grad is None for own in (trainer.networks.theta.flat, *trainer.networks.eta()))


def test_pixels_are_those_of_the_data(digits):
    assert digits.train.pixels.shape[1] == PIXELS["digits"]


def test_printed_recipe_costs_what_it_costs():
    plan = make_plan(load_preset("paper"))
    assert (plan.decoders, plan.codes, plan.decoder_parameters) == (5000, 5000, 207_984)
    assert plan.decoder_passes == 64 * 100 * 100 * 50
    assert plan.images_at_once == 5  # 500,000 pairs each, 50 numbers of a gradient
    assert plan.state_bytes > 4 * 4 * 5000 * 207_984
    assert "32,000,000 (" in plan.report()


@pytest.mark.parametrize("encoder", ["gaussian", "layered"])
def test_layers_of_gammas_have_the_parameters_of_their_networks(encoder):
    config = load_preset("text_deep")
    method = replace(config.method, name="flow_elbo")
    config = replace(config, model=replace(config.model, encoder=encoder), method=method)
    plan = make_plan(config)
    count = build_networks(config, PIXELS["20news"], "cpu").parameter_count()
    assert plan.decoder_parameters == count["decoder"]
    assert plan.encoder_parameters == count["encoder"]
    # of a pass: two layers between units, and the words that a document has
    assert plan.flops == 6 * 640 * (200 * 200 + 200 * 50 + 200 * WORDS_OF_A_DOCUMENT["20news"])


def test_validation_of_all_images_is_not_called_free():
    config = load_preset("text")
    assert config.evaluation.validation_images == 0
    assert "of all validation images" in make_plan(config).report()


@pytest.mark.parametrize(
    ("arguments", "helps"),
    [
        (["--preset=paper"], "try fewer method.theta_particles ("),
        (
            [],
            "try fewer method.theta_particles, --method.pairing strat, "
            "fewer method.code_particles, a smaller trainer.batch_size (",
        ),
        (["--model.hidden=[5000,5000]", "--method.name=vae"], "try smaller networks ("),
    ],
)
def test_what_does_not_fit_is_planned_with_a_warning(arguments, helps, capsys, monkeypatch):
    total = make_plan(parse_config("train", "", arguments)).total_bytes
    monkeypatch.setattr("steinvae.image_plan.device_bytes", lambda device: total - 1)
    assert train.main([*arguments, "--plan"]) == 0
    shown = capsys.readouterr()
    assert "memory: in all, about:" in shown.out
    (line,) = shown.err.splitlines()
    assert line.startswith("steinvae.train: an update needs about ")
    assert helps in line
    monkeypatch.setattr("steinvae.image_plan.device_bytes", lambda device: total)
    assert train.main([*arguments, "--plan"]) == 0
    assert capsys.readouterr().err == ""


def test_command_prints_the_plan_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--preset", "paper", "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "decoder passes a step:" in shown
    assert "memory: in all, about:" in shown
    assert list(tmp_path.iterdir()) == []
