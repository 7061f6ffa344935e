"""One optimisation step of Stein VAE and Stein VIWAE: ours, written naively, and IWAE's; and the
matrix products of ours alone.

Processor time, so that a machine which does something else as well tells the same; the rivals take
turns. MNIST's networks: 784-200-200 and 50 codes, batches of 64. A share is a part of the same
step: both Stein directions with their medians, log q, and the weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch

from bench import naive_step
from bench.environment import set_threads
from bench.products import make_products
from bench.shapes import QUICK_THREADS, SEED, THREADS, Shape
from steinvae import gradients, objectives, pairs
from steinvae.config import Config, MethodConfig, ModelConfig
from steinvae.device import keep_freed_memory
from steinvae.gradients import Batch
from steinvae.networks import Networks, build_networks
from steinvae.optimizer import Optimizer

IMAGES, CODES, PIXELS, DATA = 64, 50, 784, 50_000
ROUNDS = 5
STEIN = (
    *((objectives, name) for name in ("code_direction", "log_prior_over_q")),
    (gradients, "theta_direction"),
    (pairs, "group_weights"),
)


class Setting(NamedTuple):
    experiment: str
    samples: int
    """S, codes an image."""

    decoders: int = 1
    group: int = 1
    pairing: str = "strat"
    encoder: str = "flow"


SETTINGS = (
    Setting("train_step_stein_vae", 20),
    Setting("train_step_stein_vae", 50),
    Setting("train_step_stein_vae", 100),
    Setting("train_step_stein_vae_decoders", 20, decoders=20),
    Setting("train_step_stein_vae_all_pairs", 20, decoders=20, pairing="full"),
    Setting("train_step_stein_viwae", 20, group=5),
    Setting("train_step_stein_viwae", 50, group=5),
    Setting("train_step_stein_viwae", 100, group=5),
    Setting("train_step_stein_viwae_gaussian", 50, group=5, encoder="gaussian"),
)


@contextmanager
def stein_seconds(spent: list[float]) -> Iterator[None]:
    """Adds the processor time of every Stein move and weight to `spent[0]`."""

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(*args, **kwargs)
            spent[0] += time.process_time() - start
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in STEIN:
            patch.setattr(module, name, timed(getattr(module, name)))
        yield


def configure(name: str, setting: Setting) -> Config:
    """MNIST's networks with the method of that name."""
    group = setting.group if name == "stein_viwae" else 1
    method = MethodConfig(
        name=name,  # type: ignore[arg-type]
        code_particles=setting.samples // group,
        importance_samples=group,
        theta_particles=setting.decoders,
        pairing=setting.pairing,  # type: ignore[arg-type]
    )
    model = ModelConfig(codes=CODES, hidden=(200, 200), encoder=setting.encoder)  # type: ignore[arg-type]
    return Config(model=model, method=method)


def make_step(name: str, setting: Setting, *, naive: bool = False) -> Callable[[], None]:
    """One update from a drawn minibatch, Adam included."""
    torch.manual_seed(SEED)
    config = configure(name, setting)
    method = config.method
    networks = build_networks(config, PIXELS, "cpu")
    optimizer = Optimizer(networks, config.optimizer)
    pixels = (torch.rand(IMAGES, PIXELS) < 0.2).float()

    def step() -> None:
        batch = Batch(pixels, torch.randn(IMAGES, setting.samples, CODES))
        optimizer.apply(*_gradients(networks, batch, method, naive))

    return step


def products_of(name: str, setting: Setting) -> Callable[[], None]:
    """The matrix products of that step."""
    networks = build_networks(configure(name, setting), PIXELS, "cpu")
    seen = setting.samples // (setting.decoders if setting.pairing == "strat" else 1)
    return make_products(networks, IMAGES, setting.samples, seen)


def _gradients(networks: Networks, batch: Batch, method: MethodConfig, naive: bool) -> tuple:
    if naive:
        return naive_step.gradients(networks, batch, method, DATA)
    found = objectives.OBJECTIVES[method.name](networks, batch, method, DATA)
    return found.theta, found.eta


def seconds_of(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def cases(quick: bool) -> list[tuple[Setting, int]]:
    settings, threads = (SETTINGS[:1], QUICK_THREADS) if quick else (SETTINGS, THREADS)
    return [(setting, count) for setting in settings for count in threads]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = cases(bool(metafunc.config.getoption("--bench-quick")))
    names = [f"{one.experiment}-{one.samples}-{count}t" for one, count in found]
    metafunc.parametrize(("setting", "count"), found, ids=names)


def test_train_step(benchmark, collector, setting, count):
    set_threads(count)
    keep_freed_memory()  # as training does; the rivals have it too
    name = "stein_viwae" if setting.group > 1 else "stein_vae"
    shape, spent, shares = Shape(IMAGES, setting.samples, CODES), [0.0], []
    steps = {"ours": make_step(name, setting), "naive": make_step(name, setting, naive=True)}
    steps["products"] = products_of(name, setting)
    if setting.decoders == 1:
        steps["iwae"] = make_step("iwae", setting)
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {method: [] for method in steps}

    def turns() -> None:
        for number in range(ROUNDS):
            for method in list(steps)[:: -1 if number % 2 else 1]:
                found[method].append(seconds_of(steps[method]))
            spent[0] = 0.0
            with stein_seconds(spent):
                whole = seconds_of(steps["ours"])
            shares.append(spent[0] / whole)

    benchmark.group = "training step (times are those of all rounds)"
    benchmark.pedantic(turns)
    benchmark.extra_info.update(collector.describe(shape, count))
    for method, seconds in found.items():
        for value in seconds:
            collector.add(setting.experiment, method, shape, count, "cpu_seconds", value)
    for share in shares:
        collector.add(setting.experiment, "ours", shape, count, "stein_share", share)
    assert statistics.median(found["ours"]) > 0
