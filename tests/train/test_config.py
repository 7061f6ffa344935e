"""Settings: every wrong value names itself, and every configuration survives a round trip."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
import yaml

from steinvae.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    TrainerConfig,
)
from steinvae.config_tree import from_dict, to_dict
from steinvae.presets import PRESETS, load_preset

SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "method": MethodConfig,
    "optimizer": OptimizerConfig,
    "trainer": TrainerConfig,
    "evaluation": EvaluationConfig,
}

WRONG = [
    ("data", {"workers": -1}, "data.workers"),
    ("data", {"name": "digits", "labels_per_class": 0}, "data.labels_per_class"),
    ("data", {"name": "digits", "labels_per_class": 5, "split_seed": -1}, "data.split_seed"),
    ("method", {"name": "m2", "code_particles": 1}, "method.code_particles"),
    ("method", {"label_particles": 0}, "method.label_particles"),
    ("method", {"guess_above": 1.0}, "method.guess_above"),
    ("method", {"zeta": 0.0}, "method.zeta"),
    ("model", {"stack": 2}, "model.stack"),
    ("model", {"label_kernels": 8}, "model.label_kernels"),
    (
        "model",
        {"network": "residual", "encoder": "concat", "label_kernels": 0},
        "model.label_kernels",
    ),
    ("trainer", {"compile": True, "recompute": True}, "trainer.compile"),
    ("data", {"name": "binarized_mnist", "binarization": "dynamic"}, "data.binarization"),
    ("data", {"name": "binarized_mnist", "binarization": "none"}, "data.binarization"),
    ("model", {"codes": 0}, "model.codes"),
    ("model", {"hidden": ()}, "model.hidden"),
    ("model", {"hidden": (64, 0)}, "model.hidden"),
    ("model", {"flow_blocks": 0}, "model.flow_blocks"),
    ("model", {"planar_layers": 0}, "model.planar_layers"),
    ("model", {"input_dropout": 1.0}, "model.input_dropout"),
    ("model", {"decoder": "deep_poisson"}, "model.layers"),
    ("model", {"layers": (3, 2), "codes": 5}, "model.layers"),
    ("model", {"decoder": "deep_poisson", "layers": (3, 0), "codes": 3}, "model.layers"),
    ("model", {"decoder": "deep_poisson", "layers": (3, 2), "codes": 4}, "model.codes"),
    ("model", {"encoder": "layered"}, "model.encoder"),
    ("model", {"gamma_shapes": (0.01,)}, "model.gamma_shapes"),
    ("model", {"gamma_shapes": (0.3, 0.3)}, "model.gamma_shapes"),
    ("method", {"kernel_block": -1}, "method.kernel_block"),
    ("optimizer", {"encoder_factor": 0.0}, "optimizer.encoder_factor"),
    ("method", {"importance_samples": 0}, "method.importance_samples"),
    ("method", {"name": "flow_elbo", "weights": "z"}, "method.weights"),
    ("method", {"name": "vae_weighted_decoder", "weights": "both"}, "method.weights"),
    ("method", {"name": "stein_viwae", "log_q": "track"}, "method.log_q"),
    (
        "method",
        {"name": "stein_viwae", "code_particles": 1, "importance_samples": 1},
        "method.code_particles",
    ),
    ("method", {"code_particles": 0}, "method.code_particles"),
    ("method", {"code_particles": 1}, "method.code_particles"),
    ("method", {"theta_particles": 0}, "method.theta_particles"),
    (
        "method",
        {"pairing": "strat", "code_particles": 10, "theta_particles": 3},
        "method.code_particles",
    ),
    ("method", {"regression_steps": 0}, "method.regression_steps"),
    ("method", {"code_step": 0.0}, "method.code_step"),
    ("method", {"bandwidth": "mean"}, "method.bandwidth"),
    ("method", {"bandwidth": -1.0}, "method.bandwidth"),
    ("method", {"theta_bandwidth": float("inf")}, "method.theta_bandwidth"),
    ("method", {"bandwidth_factor": 0.0}, "method.bandwidth_factor"),
    ("method", {"bandwidth": 0.5, "bandwidth_factor": 2.0}, "method.bandwidth_factor"),
    (
        "method",
        {"name": "stein_viwae", "weights": "both", "kernel": "sum"},
        "method.kernel",
    ),
    ("method", {"kernel": "sum", "normalise_direction": True}, "method.kernel"),
    (
        "method",
        {"name": "vae_weighted_decoder", "entropy_weight": 0.0},
        "method.entropy_weight",
    ),
    ("method", {"name": "flow_elbo", "entropy_weight": 0.5}, "method.entropy_weight"),
    ("method", {"mass_rate": -0.1}, "method.mass_rate"),
    ("method", {"name": "vae", "mass_rate": 0.1}, "method.mass_rate"),
    ("method", {"name": "vae", "normalise_direction": True}, "method.normalise_direction"),
    ("method", {"mass_codes": 1}, "method.mass_codes"),
    ("optimizer", {"learning_rate": 0.0}, "optimizer.learning_rate"),
    ("optimizer", {"learning_rate": float("nan")}, "optimizer.learning_rate"),
    ("optimizer", {"final_fraction": 1.5}, "optimizer.final_fraction"),
    ("optimizer", {"decay_steps": 0}, "optimizer.decay_steps"),
    ("trainer", {"max_steps": 0}, "trainer.max_steps"),
    ("trainer", {"batch_size": 0}, "trainer.batch_size"),
    ("trainer", {"log_every": 0}, "trainer.log_every"),
    ("trainer", {"validate_every": 0}, "trainer.validate_every"),
    ("trainer", {"checkpoint_every": 0}, "trainer.checkpoint_every"),
    ("trainer", {"keep_checkpoints": 0}, "trainer.keep_checkpoints"),
    ("trainer", {"nonfinite_limit": 0}, "trainer.nonfinite_limit"),
    ("trainer", {"monitor_every": -1}, "trainer.monitor_every"),
    ("trainer", {"patience": -1}, "trainer.patience"),
    ("trainer", {"threads": -1}, "trainer.threads"),
    ("evaluation", {"images": -1}, "evaluation.images"),
    ("evaluation", {"samples": 0}, "evaluation.samples"),
    ("evaluation", {"validation_images": -1}, "evaluation.validation_images"),
    ("evaluation", {"validation_samples": 0}, "evaluation.validation_samples"),
    ("evaluation", {"fit_samples": 3}, "evaluation.fit_samples"),
    ("evaluation", {"inflation": 0.9}, "evaluation.inflation"),
]


@pytest.mark.parametrize(("section", "values", "named"), WRONG, ids=lambda item: str(item))
def test_wrong_value_names_its_setting(section, values, named):
    with pytest.raises(ValueError, match=named.replace(".", r"\.")) as caught:
        SECTIONS[section](**values)
    assert "got" in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"method": MethodConfig(kernel="sum", kernel_block=2)}, "method.kernel"),
        (
            {
                "model": ModelConfig(network="conv", hidden=(8, 16)),
                "method": MethodConfig(name="planar_flow"),
            },
            "model.network",
        ),
        (
            {"data": DataConfig(name="nyt"), "model": ModelConfig(activation="softplus")},
            "model.activation",
        ),
        (
            {"data": DataConfig(name="nyt"), "model": ModelConfig(noise_hidden=4)},
            "model.noise_hidden",
        ),
    ],
    ids=lambda item: str(item) if isinstance(item, str) else "",
)
def test_sections_that_do_not_fit_each_other_are_refused(sections: dict[str, Any], named):
    with pytest.raises(ValueError, match=rf"^{re.escape(named)} must be "):
        Config(**sections)


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be between 0"):
        Config(seed=-1)


def test_one_code_is_enough_where_no_other_is_needed():
    assert MethodConfig(code_particles=1, self_term="include").code_particles == 1
    assert MethodConfig(name="vae", code_particles=1).code_particles == 1


@pytest.mark.parametrize("encoder", ["residual", "concat"])
def test_exact_density_of_an_encoder_that_folds_is_refused(encoder):
    model = ModelConfig(encoder=encoder)
    weighted = MethodConfig(name="stein_viwae", log_q="jac")
    with pytest.raises(ValueError, match=rf"method\.log_q must be .*encoder {encoder}.* got 'jac'"):
        Config(model=model, method=weighted)
    Config(model=model, method=MethodConfig(name="stein_viwae", log_q="jac", weights="none"))
    Config(model=model, method=MethodConfig(log_q="jac"))  # stein_vae has no weights
    Config(method=weighted)
    with pytest.raises(
        ValueError, match=r"model\.encoder must be flow, gaussian or triangular.*flow_elbo"
    ):
        Config(model=model, method=MethodConfig(name="flow_elbo"))


def test_decoder_fits_the_data():
    assert Config().decoder == "bernoulli"
    assert Config(data=DataConfig(name="nyt")).decoder == "softmax"
    for data, decoder in (("digits", "softmax"), ("nyt", "bernoulli")):
        with pytest.raises(ValueError, match=rf"model\.decoder must be .*{data}, got '{decoder}'"):
            Config(data=DataConfig(name=data), model=ModelConfig(decoder=decoder))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("trainer", "allowed"),
    [
        ({"precision": "bfloat16"}, "float32 or tf32"),
        ({"recompute": True}, "false"),
        ({"compile": True}, "false"),
    ],
)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_a_way_to_compute_that_a_network_has_not_is_refused(network, trainer, allowed):
    (name,) = trainer
    model = ModelConfig(network=network, hidden=(8, 16))
    with pytest.raises(ValueError, match=rf"trainer\.{name} must be {allowed} for .*{network}"):
        Config(model=model, trainer=TrainerConfig(**trainer))
    images = load_preset("tiny_imagenet")
    dataclasses.replace(images, trainer=dataclasses.replace(images.trainer, **trainer))


def test_a_run_ends_at_temperature_one():
    hot = MethodConfig(temperature=4.0, annealing_steps=10)
    Config(method=hot, trainer=TrainerConfig(max_steps=10))
    with pytest.raises(ValueError, match=r"annealing_steps must be at most .*max_steps 9.*got 10"):
        Config(method=hot, trainer=TrainerConfig(max_steps=9))


def test_what_a_captured_update_cannot_hold_is_refused():
    captured = TrainerConfig(cuda_graph=True)
    hot = MethodConfig(temperature=4.0, annealing_steps=10)
    with pytest.raises(ValueError, match=r"method\.annealing_steps must be 0 with .*got 10"):
        Config(method=hot, trainer=captured)
    for preset in ("text", "tiny_imagenet"):
        config = load_preset(preset)
        with pytest.raises(ValueError, match=rf"trainer\.cuda_graph .*{config.data.name}, got"):
            dataclasses.replace(config, trainer=captured)


def test_an_encoder_that_kernels_cannot_judge_is_refused():
    deep = load_preset("text_deep")
    model = dataclasses.replace(deep.model, encoder="layered")
    with pytest.raises(ValueError, match=r"model\.encoder must be gaussian or flow"):
        dataclasses.replace(deep, model=model)
    own = dataclasses.replace(deep.method, name="flow_elbo")
    assert (
        dataclasses.replace(deep, model=model, method=own).method.encoder_kind(model) == "layered"
    )


def test_a_folding_encoder_is_no_proposal():
    evaluation = EvaluationConfig(proposal="encoder")
    with pytest.raises(ValueError, match=r"evaluation\.proposal must be fitted"):
        Config(model=ModelConfig(encoder="residual"), evaluation=evaluation)
    Config(evaluation=evaluation)


def test_codes_and_decoders_are_counted_in_groups():
    groups: dict[str, Any] = {"code_particles": 4, "importance_samples": 3, "theta_particles": 2}
    method = MethodConfig(name="stein_viwae", **groups)
    assert (method.codes_per_image, method.decoders) == (12, 2)
    printed = MethodConfig(name="stein_viwae", weights="paper", **groups)
    assert (printed.codes_per_image, printed.decoders) == (12, 6)
    assert MethodConfig(**groups).codes_per_image == 4
    assert MethodConfig(name="iwae", **groups).codes_per_image == 4


@pytest.mark.parametrize("name", ["vae", "iwae", "planar_flow", "flow_elbo"])
def test_baselines_train_one_decoder(name):
    assert MethodConfig(name=name, theta_particles=5).decoders == 1
    assert MethodConfig(theta_particles=5).decoders == 5


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_round_trip_through_json_and_yaml(preset):
    config = load_preset(preset)
    assert config.preset == preset
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sead": 1}, "unknown setting sead"),
        ({"method": {"nme": "vae"}}, r"unknown setting method\.nme"),
        (None, "expected settings by name, got None"),
        ({"method": "vae"}, "expected settings under method, got 'vae'"),
        ({"model": {"codes": "eight"}}, r"model\.codes cannot be 'eight'"),
        ({"model": {"codes": 8.5}}, r"model\.codes cannot be 8\.5"),
        ({"model": {"hidden": 128}}, r"model\.hidden cannot be 128"),
        ({"method": {"name": "vea"}}, r"method\.name cannot be 'vea'"),
        ({"trainer": {"recompute": 1}}, r"trainer\.recompute cannot be 1"),
        ({"trainer": {"threads": True}}, r"trainer\.threads cannot be True"),
    ],
)
def test_what_is_no_configuration_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(values)


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="preset must be one of"):
        load_preset("mnist_smal")


@pytest.mark.parametrize("section", [Config, *SECTIONS.values()])
def test_settings_are_frozen_and_keyword_only(section):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(section(), dataclasses.fields(section)[0].name, None)
    with pytest.raises(TypeError):
        section("digits")


def test_a_number_of_numpy_is_written_as_a_number():
    config = Config(optimizer=OptimizerConfig(learning_rate=np.float64(1e-3)))
    assert "learning_rate: 0.001\n" in yaml.safe_dump(to_dict(config))


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"resume": True}, "resume must be 'never' or 'auto', got True"),
        ({"run_dir": ["x"]}, "run_dir must be str or None"),
        ({"method": MethodConfig(self_term="leave-one-out")}, r"method\.self_term must be"),  # type: ignore[arg-type]
        ({"method": MethodConfig(weights="thet")}, r"method\.weights must be 'theta' or"),  # type: ignore[arg-type]
        ({"trainer": TrainerConfig(max_steps=True)}, r"trainer\.max_steps must be int, got True"),
        ({"model": ModelConfig(hidden=(8, 2.5))}, "a tuple of int"),  # type: ignore[arg-type]
    ],
)
def test_a_value_of_another_type_is_refused_in_python_too(sections: dict[str, Any], named):
    """Before, a name that is none trained something else without a word."""
    with pytest.raises(ValueError, match=named):
        Config(**sections)
