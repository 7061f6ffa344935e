"""The worked example of the documentation runs as it is printed, and learns."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from steinvae._atomic import InUseError
from steinvae.checkpoint import lock_run_dir
from steinvae.logging import read_metrics
from steinvae.networks import Networks
from steinvae.particles import Parameter, ParticleEnsemble
from steinvae.run import prepare_with, train
from steinvae.signals import StopRequest
from steinvae.train import main as train_command

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_model.md"


@pytest.fixture
def example(tmp_path, monkeypatch) -> dict:
    """What the page's code leaves behind, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    names: dict = {"__name__": "own_model"}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_example_of_the_documentation_trains(example):
    nll = example["result"]["nll"]
    assert nll["estimator"] == "iw_g(100)"
    records = read_metrics(Path("runs/own/metrics.jsonl"))
    trained = [record for record in records if "train/distortion" in record]
    assert trained[-1]["train/distortion"] < trained[0]["train/distortion"] - 100
    assert 1 < trained[-1]["train/effective_samples"] <= 5
    first, last = (item["validation/nll"] for item in records if "validation/nll" in item)
    assert last < first
    assert {"config.yaml", "result.json", "samples.png"} <= {
        path.name for path in Path("runs/own").iterdir()
    }


def test_run_of_own_networks_has_a_report_and_a_lock(example):
    assert "iw_g(100)" in Path("runs/own/report.md").read_text("utf-8")
    config = replace(example["config"], run_dir="runs/second")
    trainer = prepare_with(example["networks"], config, example["dataset"])
    held = lock_run_dir(Path("runs/second"))
    with held, StopRequest() as stop, pytest.raises(InUseError, match="in use by"):
        train(trainer, stop)


def test_run_of_own_networks_is_not_overwritten(example):
    with pytest.raises(ValueError, match="already holds a run"):
        prepare_with(example["networks"], example["config"], example["dataset"])


def test_run_of_own_networks_is_continued_with_its_settings_alone(example):
    config = replace(example["config"], resume="auto")
    prepare_with(example["networks"], config, example["dataset"])
    before = Path("runs/own/config.yaml").read_bytes()
    other = replace(config, optimizer=replace(config.optimizer, learning_rate=1e-2))
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate is 0\.01, was"):
        prepare_with(example["networks"], other, example["dataset"])
    assert Path("runs/own/config.yaml").read_bytes() == before


@pytest.mark.parametrize("module", ["evaluate", "sample", "train"])
def test_commands_refuse_a_run_of_own_networks(example, capsys, module):
    command = import_module(f"steinvae.{module}").main
    arguments = {
        "evaluate": ["runs/own"],
        "sample": ["runs/own", "--output", "some.png"],
        "train": ["--config", "runs/own/config.yaml", "--run_dir", "runs/own", "--resume", "auto"],
    }
    assert command(arguments[module]) == 1
    said = capsys.readouterr().err
    assert "runs/own is a run of networks of its own, GaussianPixels, AffineEncoder" in said
    assert "prepare_with and Config(resume='auto')" in said


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_run_of_own_networks_that_had_no_configuration_yet_is_left_alone(example, capsys, resume):
    Path("runs/begun").mkdir()
    shutil.copy("runs/own/own_networks.json", "runs/begun")
    assert train_command(["--run_dir=runs/begun", f"--resume={resume}"]) == 1
    assert "runs/begun" in capsys.readouterr().err
    assert [path.name for path in Path("runs/begun").iterdir() if path.name != ".lock"] == [
        "own_networks.json"
    ]


def test_networks_that_are_refused_keep_their_statistics(example, made):
    encoder_with_statistics(made)
    made.model.log_likelihood = lambda *given: None
    before = {name: value.clone() for name, value in made.tensors().items()}
    with pytest.raises(TypeError, match="tensor of numbers"):
        prepare_with(made, replace(example["config"], run_dir="runs/no"), example["dataset"])
    assert all(value.equal(before[name]) for name, value in made.tensors().items())


def test_run_of_a_command_is_not_continued_with_own_networks(example):
    Path("runs/own/own_networks.json").unlink()
    config = replace(example["config"], resume="auto")
    with pytest.raises(ValueError, match=r"is a run of python -m steinvae\.train, not of prepare_"):
        prepare_with(example["networks"], config, example["dataset"])


def test_run_is_not_continued_with_networks_of_another_class(example):
    class Renamed(example["AffineEncoder"]):
        pass

    config = replace(example["config"], resume="auto")
    networks = replace(example["networks"], encoder=Renamed(6, 64))
    with pytest.raises(ValueError, match="AffineEncoder, got GaussianPixels, Renamed"):
        prepare_with(networks, config, example["dataset"])


def encoder_without_codes(made):
    del made.encoder.codes


def encoder_with_an_unused_parameter(made):
    made.encoder.extra = torch.nn.Linear(2, 2)


def encoder_whose_draw(change):
    def make(made):
        plain = made.encoder.forward
        made.encoder.draw = lambda pixels, noise: change(plain(pixels, noise))

    return make


def encoder_of_other_pixels(made):
    made.encoder.mean = torch.nn.Linear(63, 6)


def encoder_that_promises_nothing(made):
    made.encoder.injective = False


def model_whose(method, change):
    def make(made):
        plain = getattr(made.model, method)
        setattr(made.model, method, lambda *given: change(plain(*given)))

    return make


def model_with_another_parameter(used: bool):
    def make(made):
        parameters = (*made.model.parameters, Parameter("more", (3,), 1.0))
        made.model.parameters = parameters
        if used:
            return
        made.theta = ParticleEnsemble(parameters, 2, torch.Generator().manual_seed(0))

    return make


def model_that_misses_a_parameter(made):
    made.model.parameters = made.model.parameters[:1]
    made.theta = ParticleEnsemble(made.model.parameters, 2, torch.Generator().manual_seed(0))


def encoder_that_is_frozen(made):
    made.encoder.requires_grad_(False)


def model_without_the_codes(made):
    plain = made.model.log_likelihood
    made.model.log_likelihood = lambda theta, codes, pixels: plain(theta, codes.detach(), pixels)


MISTAKES = [
    (encoder_that_is_frozen, ValueError, "AffineEncoder has no parameter to train"),
    (encoder_whose_draw(lambda z: z / 0), ValueError, "must give finite codes"),
    (model_without_the_codes, ValueError, "log_likelihood does not depend on codes"),
    (model_whose("log_likelihood", lambda x: None), TypeError, "tensor of numbers, got NoneType"),
    (model_whose("mean_images", lambda x: None), TypeError, "tensor of images, got NoneType"),
    (encoder_without_codes, TypeError, "AffineEncoder.codes must be the int d"),
    (encoder_with_an_unused_parameter, ValueError, "does not depend on extra.weight, extra.bias"),
    (encoder_whose_draw(lambda z: z[:, 0]), ValueError, "(B, S, d) = (2, 3, 6)"),
    (encoder_whose_draw(lambda z: z.double()), ValueError, "got (2, 3, 6) of torch.float64"),
    (encoder_whose_draw(lambda z: z.detach()), ValueError, "must be differentiable"),
    (encoder_whose_draw(lambda z: (z, z)), TypeError, "a tensor of codes, got tuple"),
    (encoder_of_other_pixels, ValueError, "AffineEncoder.draw failed, given pixels (2, 64)"),
    (encoder_that_promises_nothing, TypeError, "method.log_q jac needs an encoder"),
    (model_whose("log_likelihood", lambda x: x.sum(-1)), ValueError, "(M, B, n) = (2, 2, 3)"),
    (model_whose("log_likelihood", lambda x: x.detach()), ValueError, "must be differentiable"),
    (model_whose("log_likelihood", lambda x: x / 0), ValueError, "must be finite before training"),
    (model_whose("mean_images", lambda x: x[:, :5]), ValueError, "(n, X) = (3, 64), got (3, 5)"),
    (model_with_another_parameter(used=False), ValueError, "does not depend on more: use or"),
    (model_with_another_parameter(used=True), ValueError, "theta must hold the parameters of"),
    (model_that_misses_a_parameter, ValueError, "log_likelihood failed, given codes (2, 2, 3, 6)"),
]


@pytest.fixture
def made(example):
    """The page's networks anew, in an empty folder, to be spoilt."""
    model, encoder = example["GaussianPixels"](6, 64), example["AffineEncoder"](6, 64)
    theta = ParticleEnsemble(model.parameters, 2, torch.Generator().manual_seed(0))
    return Networks(model, theta, encoder)


@pytest.mark.parametrize(("spoil", "kind", "said"), MISTAKES)
def test_mistake_in_own_networks_is_said_before_anything_is_written(
    example, made, spoil, kind, said
):
    spoil(made)
    config = replace(example["config"], run_dir="runs/spoilt")
    with pytest.raises(kind, match=re.escape(said)):
        prepare_with(made, config, example["dataset"])
    assert not Path("runs/spoilt").exists()


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("vae", TypeError, "method.name vae needs a GaussianEncoder, got AffineEncoder"),
        ("iwae", TypeError, "method.name iwae needs a GaussianEncoder"),
        ("vae_weighted_decoder", TypeError, "needs a GaussianEncoder"),
        ("flow_elbo", TypeError, "method.name flow_elbo needs an encoder that is injective"),
        ("stein_viwae", TypeError, "method.move_codes needs an encoder that is injective"),
    ],
)
def test_method_says_which_encoder_it_needs(example, made, name, kind, said):
    made.encoder.injective = False
    moves = name == "stein_viwae"
    method = replace(example["config"].method, name=name, log_q="gauss", move_codes=moves)
    config = replace(example["config"], run_dir="runs/spoilt", method=method)
    with pytest.raises(kind, match=re.escape(said)):
        prepare_with(made, config, example["dataset"])


def encoder_with_statistics(made):
    made.encoder.mean = torch.nn.Sequential(
        torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.5), made.encoder.mean
    )


def model_that_views(made):
    """codes.view needs the memory that training gives it."""
    plain = made.model.means
    made.model.means = lambda theta, z: plain(theta, z.view(-1, z.shape[-2], z.shape[-1]))


def model_that_draws_with_numpy(made):
    plain = made.model.mean_images
    made.model.mean_images = lambda *given: torch.from_numpy(plain(*given).numpy())


@pytest.mark.parametrize(
    "make", [encoder_with_statistics, model_that_views, model_that_draws_with_numpy]
)
def test_networks_that_train_are_not_refused_and_not_changed(example, made, make):
    make(made)
    before = {name: value.clone() for name, value in made.tensors().items()}
    drawn = torch.get_rng_state()
    trainer = prepare_with(
        made, replace(example["config"], run_dir="runs/some"), example["dataset"]
    )
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not made.encoder.training  # a finished run that is continued is tested as it is
    assert all(value.equal(before[name]) for name, value in made.tensors().items())
    trainer.update(0, monitor=False)


@pytest.mark.parametrize(("first", "then"), [(False, True), (True, False)])
def test_moments_stay_with_their_parameters_where_others_are_frozen(example, made, first, then):
    """log_scale (6,) is the first of the encoder's parameters, frozen before or after."""
    config = replace(example["config"], run_dir="runs/frozen")
    made.encoder.log_scale.requires_grad_(not first)
    with StopRequest() as stop:
        train(prepare_with(made, config, example["dataset"]), stop)
    made.encoder.log_scale.requires_grad_(not then)
    longer = replace(config.trainer, max_steps=62)
    config = replace(config, resume="auto", trainer=longer)
    trainer = prepare_with(made, config, example["dataset"])
    moments = trainer.optimizer.tensors()
    assert moments["adam.2.exp_avg"].shape == made.encoder.mean.weight.shape
    assert "adam.1.exp_avg" not in moments
    trainer.update(60, monitor=False)
    assert ("adam.1.exp_avg" in trainer.optimizer.tensors()) == first
    assert all(bool(value.isfinite().all()) for value in made.tensors().values())


def test_frozen_parameters_of_an_encoder_stay(example, made):
    before = made.encoder.mean.weight.detach().clone()
    bias = made.encoder.mean.bias.detach().clone()
    made.encoder.mean.weight.requires_grad_(False)
    trainer = prepare_with(
        made, replace(example["config"], run_dir="runs/frozen"), example["dataset"]
    )
    for step in range(3):
        trainer.update(step, monitor=False)
    assert torch.equal(made.encoder.mean.weight, before)
    assert not torch.equal(made.encoder.mean.bias, bias)
