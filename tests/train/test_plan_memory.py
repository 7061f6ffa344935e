"""The plan's bytes are those of real updates: by torch's allocator, and by the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from steinvae.config import Config, DataConfig, MethodConfig, ModelConfig, TrainerConfig
from steinvae.density.likelihood import noise_dimension
from steinvae.gradients import Batch
from steinvae.networks import build_networks
from steinvae.objectives import OBJECTIVES
from steinvae.optimizer import Optimizer
from steinvae.plan import PIXELS, WORDS_OF_A_DOCUMENT, make_plan
from steinvae.presets import load_preset
from steinvae.sparse_rows import sparse_rows

PRINTED = {"name": "stein_viwae", "weights": "paper", "shared_noise": True, "encoder": "concat"}
CASES = {
    "viwae": {"name": "stein_viwae", "code_particles": 10},
    "viwae, exact q": {"name": "stein_viwae", "code_particles": 10, "log_q": "jac"},
    "many codes": {"code_particles": 100},
    "decoders, dealt": {"code_particles": 20, "theta_particles": 20, "pairing": "strat"},
    "decoders, all pairs": {"code_particles": 20, "theta_particles": 3},
    "printed": {**PRINTED, "code_particles": 4, "theta_particles": 4, "importance_samples": 3},
    "vae": {"name": "vae", "code_particles": 50},
    "iwae": {"name": "iwae", "code_particles": 50},
    "planar": {"name": "planar_flow", "code_particles": 20},
    "flow elbo": {"name": "flow_elbo", "code_particles": 2},
    "conv": {"network": "conv", "code_particles": 5},
    "conv, decoders, all pairs": {"network": "conv", "code_particles": 3, "theta_particles": 2},
    "conv, vae": {"network": "conv", "name": "vae", "code_particles": 1},
    "conv, noise as a plane": {"network": "conv", "encoder": "concat", "code_particles": 4},
}


def configure(settings: dict[str, Any]) -> Config:
    """MNIST's networks, 16 images a batch."""
    method = {"theta_particles": 1, **settings}
    encoder, images = method.pop("encoder", "flow"), method.pop("batch_size", 16)
    network = method.pop("network", "mlp")
    hidden = (32, 64) if network == "conv" else (200, 200)
    return Config(
        data=DataConfig(name="binarized_mnist"),
        model=ModelConfig(network=network, codes=50, hidden=hidden, encoder=encoder),
        method=MethodConfig(**method),
        trainer=TrainerConfig(batch_size=images, device="cpu"),
    )


def updates(config: Config) -> Callable[[], None]:
    """One update of a configuration, on random images."""
    method, images = config.method, config.trainer.batch_size
    networks = build_networks(config, PIXELS["mnist"], "cpu")
    optimizer = Optimizer(networks, config.optimizer)

    def update() -> None:
        pixels = (torch.rand(images, PIXELS["mnist"]) < 0.2).float()
        rows = 1 if method.shared_noise else images
        noise = torch.randn(rows, method.codes_per_image, noise_dimension(networks.encoder))
        batch = Batch(pixels, noise, torch.randperm(method.code_particles))
        found = OBJECTIVES[method.name](networks, batch, method, 50_000)
        optimizer.apply(found.theta, found.eta)

    return update


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes of tensors that are alive at once within a call, by torch's own allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    return max(accumulate(change for _, change in sorted(changes)))


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_an_update_holds_what_the_plan_says(settings):
    """Planned over measured. At least 0.93: small temporaries are not in the plan. At most 1.3: it
    has the weighted inputs of every layer also where nothing is weighted.
    """
    config = configure(settings)
    update, plan = updates(config), make_plan(config)
    update()  # Adam's moments are made by the first
    assert 0.93 < plan.step_bytes / peak_bytes(update) < 1.3


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"code_particles": 4},
        {"name": "stein_vae", "code_particles": 10, "theta_particles": 2},
        {"name": "vae"},
        {"name": "flow_elbo", "encoder": "layered"},
    ],
    ids=["preset", "many codes", "decoders", "vae", "layered"],
)
def test_an_update_on_documents_holds_what_the_plan_says(settings):
    """The deep network, documents of as many different words as the plan assumes."""
    base, own = load_preset("text_deep"), dict(settings)
    model = replace(base.model, encoder=own.pop("encoder", "gaussian"))
    config = replace(base, model=model, method=replace(base.method, **own))
    method, images, words = config.method, config.trainer.batch_size, PIXELS["20news"]
    networks = build_networks(config, words, "cpu")
    optimizer = Optimizer(networks, config.optimizer)
    present = WORDS_OF_A_DOCUMENT["20news"]

    def update() -> None:
        rows = torch.arange(images).repeat_interleave(present)
        places = torch.rand(images, words).topk(present).indices.flatten()
        counts = sparse_rows(rows, places, torch.ones(images * present), (images, words))
        noise = torch.randn(images, method.codes_per_image, config.model.codes)
        batch = Batch(counts, noise, torch.randperm(method.code_particles))
        found = OBJECTIVES[method.name](networks, batch, method, 10_000)
        optimizer.apply(found.theta, found.eta)

    update()
    assert 0.93 < make_plan(config).step_bytes / peak_bytes(update) < 1.3


PROBE = """
import json, re, sys
from pathlib import Path
import torch
from tests.train.test_plan_memory import configure, updates

def kilobytes(name):
    return int(re.findall(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[0])

torch.set_num_threads(1)
updates(configure({"name": "stein_viwae", "code_particles": 2}))()  # loads what is loaded lazily
before = kilobytes("VmRSS")
update = updates(configure(json.loads(sys.argv[1])))
update(), update()
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "settings",
    [
        {"code_particles": 40, "theta_particles": 40, "pairing": "strat"},
        {"name": "stein_viwae", "code_particles": 200, "batch_size": 64},
    ],
    ids=["many decoders", "many codes"],
)
def test_a_process_grows_by_what_the_plan_says(settings):
    """Peak resident memory of two updates beyond the libraries, of some hundred MB planned.

    Without the best parameters so far, which validation would copy. glibc by itself moves the size
    from which it gives freed blocks back, and then keeps up to six tenths more, by how they fall;
    held at its initial 128 KiB it gives them back, and 1.00 and 1.07 of the plan are left.
    """
    command = [sys.executable, "-c", PROBE, json.dumps(settings)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    plan = make_plan(configure(settings))
    planned = plan.state_bytes * 3 / 4 + plan.step_bytes
    assert planned > 150e6  # so that a few MB of code that comes in do not count
    assert 0.9 < int(done.stdout) / planned < 1.2
