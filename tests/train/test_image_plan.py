"""The plan of the all-convolutional nets: the appendix's numbers, real networks, real updates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steinvae import train
from steinvae.config import Config
from steinvae.gradients import Batch
from steinvae.image_plan import advice, make_image_plan
from steinvae.labels.objectives import labelled_objective
from steinvae.labels.task import LabelTask
from steinvae.networks import build_networks
from steinvae.optimizer import Optimizer
from steinvae.presets import load_preset
from tests.train.test_plan_memory import peak_bytes


def scaled(**settings) -> Config:
    """Tiny ImageNet's nets; keywords are settings of `method`, but for recompute."""
    base, recompute = load_preset("tiny_imagenet"), settings.pop("recompute", False)
    method = replace(base.method, **settings)
    return replace(base, method=method, trainer=replace(base.trainer, recompute=recompute))


def test_nets_of_the_appendix_cost_what_they_cost():
    """METHOD of the field: 3.2 GFLOP forward; 10.96 million weights, and biases and gains."""
    plan = make_image_plan(load_preset("imagenet"))
    gains = 3 * 4 * sum((64, 128, 256, 512)) + 3 * sum((64, 128, 256, 512))
    assert plan.encoder_parameters - 10_961_152 < 3 * (gains + 600)
    assert (plan.decoders, plan.codes, plan.decoder_passes) == (20, 20, 64 * 20)
    assert plan.flops / (6 * 64 * 20) == pytest.approx(1.6e9, rel=0.05)


@pytest.mark.parametrize(("pairing", "each"), [("full", 2), ("strat", 1)])
def test_printed_weights_have_decoders_of_every_group(pairing, each):
    """Each of the k groups is seen by its own decoders alone."""
    many = {"name": "stein_viwae", "weights": "paper", "importance_samples": 3}
    config = scaled(**many, code_particles=2, theta_particles=2, pairing=pairing)
    plan = make_image_plan(config)
    assert (plan.decoders, plan.codes) == (6, 6)
    assert plan.decoder_passes == config.trainer.batch_size * 6 * each


@pytest.mark.parametrize("method", ["stein_vae", "vae"])
def test_parameters_are_those_of_the_networks(method):
    config = scaled(name=method)
    plan = make_image_plan(config)
    count = build_networks(config, 3 * 64**2, "cpu", 1000).parameter_count()
    assert plan.decoder_parameters == count["decoder"]
    assert plan.decoders * plan.decoder_parameters == count["decoders"]
    assert plan.encoder_parameters == count["encoder"]
    total = count["decoders"] + count["encoder"] + count["labels"]
    assert plan.state_bytes == 4 * 3 * total  # labelled: no best copy


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recompute": True},
        {"pairing": "full", "code_particles": 4},
        {"name": "vae"},
    ],
    ids=["dealt", "computed again", "all pairs", "vae"],
)
def test_an_update_holds_what_the_plan_says(settings):
    """Planned over measured. More is planned than is held: not all outputs are kept thrice."""
    config = scaled(**settings)
    networks = build_networks(config, 3 * 64**2, "cpu", 40)
    optimizer = Optimizer(networks, config.optimizer)
    update = labelled_objective(config.method.name, LabelTask(100, 900, 600.0))
    images, samples = config.trainer.batch_size, config.method.codes_per_image
    wide = getattr(networks.encoder, "noise_dimension", config.model.codes)

    def step() -> None:
        batch = Batch(
            0.25 * torch.randn(images, 3 * 64**2),
            torch.randn(images, samples, wide),
            torch.randperm(config.method.code_particles),
            labels=torch.arange(images // 2),
        )
        with networks.training():
            found = update(networks, batch, config.method, 1000)
        optimizer.apply(found.theta, found.eta, found.labels)

    step()
    ratio = make_image_plan(config).step_bytes / peak_bytes(step)
    assert 0.85 < ratio < 1.4, ratio


def test_what_labels_alone_train_decodes_nothing():
    plan = make_image_plan(scaled(name="supervised", zeta=None))
    assert (plan.decoder_passes, plan.flops, plan.decoding_bytes) == (0, 0, 0)
    assert plan.encoder_bytes > 0


def test_what_does_not_fit_is_refused_with_advice(capsys, monkeypatch):
    config = load_preset("imagenet")
    kept = replace(config, trainer=replace(config.trainer, recompute=False))
    assert advice(config, 141 * 10**9) is None  # one H200
    viwae = replace(config.method, name="stein_viwae", importance_samples=10)
    half = replace(config.trainer, precision="bfloat16")
    assert advice(replace(config, method=viwae), 141 * 10**9) is not None
    assert advice(replace(config, method=viwae, trainer=half), 141 * 10**9) is None
    text = advice(replace(kept, trainer=replace(kept.trainer, batch_size=512)), 80 * 10**9)
    assert text is not None
    assert "--trainer.recompute true" in text
    assert advice(load_preset("paper"), 1) is None  # planned by other means
    monkeypatch.setattr("steinvae.image_plan.device_bytes", lambda device: 10**9)
    assert train.main(["--preset", "imagenet", "--plan"]) == 1
    shown = capsys.readouterr()
    assert "memory: in all, about:" in shown.out
    assert "a smaller trainer.batch_size" in shown.err


def test_each_process_is_planned_with_its_share(monkeypatch):
    """On GPUs of their own; on a CPU all share the memory of one machine."""
    config = load_preset("imagenet")
    whole = make_image_plan(config).total_bytes
    share = replace(config, trainer=replace(config.trainer, batch_size=8))
    part = make_image_plan(share).total_bytes
    assert part < whole / 2
    between = (part + whole) // 2
    assert advice(config, between) is not None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpus = replace(config, trainer=replace(config.trainer, device="cuda"))
    assert advice(gpus, between, processes=8) is None
    assert advice(gpus, part - 1, processes=8) is not None
    cpus = replace(config, trainer=replace(config.trainer, device="cpu"))
    assert advice(cpus, 8 * part, processes=8) is None
    assert advice(cpus, 8 * part - 1, processes=8) is not None


@pytest.mark.parametrize(("name", "low", "high"), [("stein_vae", 9, 10), ("vae", 1, 3)])
def test_an_encoder_with_a_noise_plane_is_planned_once_a_code(name, low, high):
    """And one without it once an image, but for its noise; also where there are as many codes as
    pixels."""
    base = load_preset("tiny_imagenet")
    hidden, pixels = base.model.hidden[:3], base.data.crop**2
    places = (base.data.crop // 2 ** len(hidden)) ** 2

    def encoder_bytes(codes: int, particles: int) -> int:
        method = replace(base.method, name=name, code_particles=particles)
        model = replace(base.model, codes=codes, hidden=hidden)
        return make_image_plan(replace(base, method=method, model=model)).encoder_bytes

    for codes in (pixels, pixels - places):
        assert low <= encoder_bytes(codes, 20) / encoder_bytes(codes, 2) <= high
