"""The loop: it learns, survives NaN, stops early, and selects on validation images only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from steinvae.config import OptimizerConfig
from steinvae.device import choose_device
from steinvae.logging import MetricsWriter, Progress, read_metrics
from steinvae.networks import build_networks
from steinvae.nonfinite import NonFiniteError
from steinvae.optimizer import learning_rate
from steinvae.signals import StopRequest
from steinvae.trainer import Trainer


def fit(trainer: Trainer) -> Trainer:
    with (
        MetricsWriter(trainer.run_dir, trainer.step or None) as metrics,
        Progress(trainer.config.trainer.max_steps, rank=1) as progress,
    ):
        trainer.fit(metrics, progress, StopRequest())
    return trainer


METHODS = {
    "vae": {"name": "vae"},
    "iwae": {"name": "iwae"},
    "dreg": {"name": "iwae", "iwae_gradient": "dreg"},
    "planar": {"name": "planar_flow"},
    "control": {"name": "vae_weighted_decoder", "code_particles": 2},
    "flow elbo": {"name": "flow_elbo", "code_particles": 2},
    "flow elbo alone": {"name": "flow_elbo", "code_particles": 2, "weights": "none"},
    "stein": {},
    "include": {"self_term": "include"},
    "ensemble": {"theta_particles": 3},
    "strat": {"theta_particles": 5, "pairing": "strat"},
    "regression": {"regression_steps": 3},
    "shared": {"shared_noise": True},
    "median": {"bandwidth": "median", "theta_bandwidth": "median_squared"},
    "number": {"bandwidth": 0.7},
    "viwae": {"name": "stein_viwae", "code_particles": 2},
    "viwae jac": {"name": "stein_viwae", "code_particles": 2, "log_q": "jac"},
    "viwae both": {"name": "stein_viwae", "code_particles": 2, "weights": "both"},
    "as printed": {
        "name": "stein_viwae",
        "self_term": "include",
        "code_particles": 4,
        "theta_particles": 2,
        "importance_samples": 2,
        "weights": "paper",
        "bandwidth": "median",
        "shared_noise": True,
    },
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_method_learns(method, tiny, digits, tmp_path):
    """150 steps take at least 8 nats off the 44 of uniform pixels."""
    config = tiny(
        method=method,
        trainer={"max_steps": 150, "validate_every": 150},
        optimizer={"learning_rate": 5e-3, "decay_steps": 150},
    )
    trainer = Trainer(config, digits, tmp_path)
    before = trainer.validate().value
    assert fit(trainer).validate().value < before - 8


@pytest.mark.parametrize("encoder", ["residual", "concat", "gaussian"])
def test_other_encoders_learn(encoder, tiny, digits, tmp_path):
    config = tiny(
        model={"encoder": encoder},
        trainer={"max_steps": 150, "validate_every": 150},
        optimizer={"learning_rate": 5e-3, "decay_steps": 150},
    )
    trainer = Trainer(config, digits, tmp_path)
    before = trainer.validate().value
    assert fit(trainer).validate().value < before - 8


def test_decoders_differ_and_the_mixture_beats_one_alone(tiny, digits, tmp_path):
    trainer = fit(Trainer(tiny(method={"theta_particles": 3}), digits, tmp_path))
    theta = trainer.networks.theta.flat
    assert torch.cdist(theta, theta)[0, 1:].min() > 1
    estimate = trainer.validate()
    assert estimate.value < estimate.single


@pytest.mark.parametrize("method", ["stein_vae", "stein_viwae", "flow_elbo", "planar_flow"])
def test_methods_start_from_the_same_networks(method, tiny):
    other = build_networks(tiny(method={"name": method}), 64, "cpu").tensors()
    vae = build_networks(tiny(method={"name": "vae"}), 64, "cpu").tensors()
    assert set(vae) < set(other)
    assert all(torch.equal(vae[name], other[name]) for name in vae)


def test_direction_is_compared_where_monitor_every_says(tiny, digits, tmp_path):
    """At those steps there is a record, whatever log_every says; metrics stay as they were."""
    runs = {}
    for every in (0, 5):
        config = tiny(trainer={"max_steps": 10, "monitor_every": every})
        trainer = fit(Trainer(config, digits, tmp_path / str(every)))
        runs[every] = {
            item["step"]: item for item in read_metrics(trainer.run_dir / "metrics.jsonl")
        }
    assert list(runs[0]) == [1, 4, 6, 8]
    assert list(runs[5]) == [1, 4, 5, 6, 8, 10]
    compared = [
        step for step, record in runs[5].items() if "train/direction_cosine_field" in record
    ]
    assert compared == [5, 10]
    assert all(runs[5][step] == record for step, record in runs[0].items())


def poison(trainer: Trainer, steps: set[int]) -> None:
    """Make the gradients of these updates NaN."""
    objective = trainer._objective

    def poisoned(networks, batch, method, data_size):
        gradients = objective(networks, batch, method, data_size)
        bad = trainer.step - 1 in steps
        return gradients._replace(theta=gradients.theta * float("nan")) if bad else gradients

    trainer._objective = poisoned


def test_update_with_nan_gradient_is_skipped_and_counted(tiny, digits, tmp_path):
    trainer = Trainer(tiny(), digits, tmp_path)
    poison(trainer, {3, 4, 9})
    fit(trainer)
    assert trainer.state["skipped"] == 3
    assert trainer.state["skipped_in_a_row"] == 0
    assert all(tensor.isfinite().all() for tensor in trainer.networks.tensors().values())
    assert trainer.optimizer.tensors()["adam.0.step"] == 17
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["train/skipped"] == 3


def test_skipped_update_changes_nothing(tiny, digits, tmp_path):
    trainer = Trainer(tiny(), digits, tmp_path)
    trainer.update(0, monitor=False)
    trainer.step = 2
    poison(trainer, {1})
    before = {
        name: tensor.clone()
        for name, tensor in (trainer.networks.tensors() | trainer.optimizer.tensors()).items()
    }
    trainer.update(1, monitor=False)
    after = trainer.networks.tensors() | trainer.optimizer.tensors()
    assert trainer._nonfinite.read().total == 1
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_too_many_nan_gradients_in_a_row_end_the_run_and_lose_nothing(tiny, digits, tmp_path):
    config = tiny(trainer={"nonfinite_limit": 4})
    trainer = Trainer(config, digits, tmp_path)
    poison(trainer, set(range(11, 100)))
    with pytest.raises(NonFiniteError, match=r"4 updates in a row.*step 14.*nonfinite_limit is 4"):
        fit(trainer)
    resumed = Trainer(config, digits, tmp_path)
    assert resumed.resume()
    assert resumed.step == 10
    assert resumed.state["skipped"] == 0


def test_updates_in_a_row_are_seen_whenever_they_end(tiny, digits, tmp_path):
    """They are over before the next save, and numbers are logged in between."""
    trainer = Trainer(tiny(trainer={"nonfinite_limit": 4, "log_every": 1}), digits, tmp_path)
    poison(trainer, {0, 1, 2, 3})
    with pytest.raises(NonFiniteError, match=r"4 updates in a row"):
        fit(trainer)


def test_early_stopping_counts_validations_without_gain(tiny, digits, tmp_path, monkeypatch):
    config = tiny(trainer={"max_steps": 100, "validate_every": 2, "patience": 3})
    trainer = Trainer(config, digits, tmp_path)
    values = iter([9.0, 8.0, 8.5, float("nan"), 8.0, 7.0])
    template = trainer.validate()

    def scripted():
        return type(template)(
            estimator="scripted",
            value=next(values),
            standard_error=0.0,
            images=1,
            single=0.0,
            per_image=torch.zeros(1),
        )

    monkeypatch.setattr(trainer, "validate", scripted)
    fit(trainer)
    assert trainer.step == 10  # validations at 2, 4 (best), 6, 8, 10
    assert (trainer.state["best_value"], trainer.state["best_step"]) == (8.0, 4)


def test_selection_takes_the_parameters_of_the_best_validation(tiny, digits, tmp_path):
    config = tiny(trainer={"max_steps": 12, "validate_every": 6})
    trainer = fit(Trainer(config, digits, tmp_path))
    best = {name: tensor.clone() for name, tensor in trainer._best.items()}
    with torch.no_grad():
        trainer.networks.theta.flat.zero_()  # what came after the best is worse
    assert trainer.select() == trainer.state["best_step"] == 12
    assert all(torch.equal(best[n], t) for n, t in trainer.networks.tensors().items())


def test_test_split_is_not_looked_at_in_training(tiny, digits, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise RuntimeError("the test split was read")

    original = type(digits.test).batch

    def batch(split, *arguments):
        return refuse() if split is digits.test else original(split, *arguments)

    monkeypatch.setattr(type(digits.test), "batch", batch)
    trainer = fit(Trainer(tiny(), digits, tmp_path))
    trainer.select()
    with pytest.raises(RuntimeError, match="the test split was read"):
        digits.test.batch(torch.arange(2))


def test_batches_depend_on_seed_and_step_alone(tiny, digits, tmp_path):
    first, second = (Trainer(tiny(), digits, tmp_path / name) for name in "ab")
    first.batch(0)
    one, other = first.batch(7), second.batch(7)
    assert torch.equal(one.pixels, other.pixels)
    assert torch.equal(one.noise, other.noise)
    elsewhere = Trainer(tiny(seed=1), digits, tmp_path / "c").batch(7)
    assert not torch.equal(elsewhere.noise, second.batch(7).noise)
    assert not torch.equal(second.batch(8).noise, second.batch(7).noise)


def test_learning_rate_follows_its_cosine():
    config = OptimizerConfig(learning_rate=1.0, final_fraction=0.1, decay_steps=100)
    rates = [learning_rate(config, step) for step in (0, 50, 100, 1000)]
    assert rates == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_checkpoint_of_other_networks_is_refused(tiny, digits, tmp_path: Path):
    fit(Trainer(tiny(), digits, tmp_path))
    other = Trainer(tiny(model={"codes": 5}), digits, tmp_path)
    with pytest.raises(ValueError, match="theta expected shape"):
        other.resume()


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match=r"trainer\.device is cuda"):
        choose_device("cuda")


def test_an_update_has_the_learning_rate_of_its_own_step(tiny, digits, tmp_path):
    """A cosine of one step to nothing: update 0 moves by Adam's first step, update 1 stays."""
    settings = {"learning_rate": 1e-3, "decay_steps": 1, "final_fraction": 0.0}
    trainer = Trainer(tiny(optimizer=settings), digits, tmp_path)
    theta = trainer.networks.theta.flat
    places = [theta.clone()]
    for step in (0, 1):
        trainer.update(step, monitor=False)
        places.append(theta.clone())
    torch.testing.assert_close((places[1] - places[0]).abs().max().item(), 1e-3, rtol=0.01, atol=0)
    assert torch.equal(places[2], places[1])


def test_every_validation_has_the_same_noise(tiny, digits, tmp_path):
    """Values of the same parameters are the same, whatever the step: the best is no lucky draw."""
    trainer = Trainer(tiny(), digits, tmp_path)
    first = trainer.validate().value
    trainer.step = 7
    assert trainer.validate().value == first


@pytest.mark.parametrize(("best", "selected"), [(float("inf"), 8), (float("-inf"), 6)])
def test_a_run_that_ends_between_validations_makes_one_more(best, selected, tiny, digits, tmp_path):
    """The last parameters are taken where they are better than the best before, and only there."""
    config = tiny(trainer={"max_steps": 8, "validate_every": 6})
    trainer = fit(Trainer(config, digits, tmp_path))
    last = trainer.networks.theta.flat.clone()
    trainer.state["best_value"] = best
    assert trainer.select() == selected
    expected = last if selected == 8 else trainer._best["theta"]
    assert torch.equal(trainer.networks.theta.flat, expected)
    assert not torch.equal(last, trainer._best["theta"])


def test_last_parameters_stay_where_labels_are_in_use(tiny, digits, tmp_path):
    """However much better an earlier image model was."""
    settings = {"max_steps": 8, "validate_every": 6}
    config = tiny(data={"labels_per_class": 10}, trainer=settings)
    trainer = fit(Trainer(config, digits, tmp_path))
    last = trainer.networks.theta.flat.clone()
    trainer.state["best_value"] = float("-inf")
    assert trainer.select() == 8
    assert torch.equal(trainer.networks.theta.flat, last)


def test_updates_in_a_row_are_counted_across_a_resume(tiny, digits, tmp_path):
    """Two before the checkpoint of step 5 and two after it are four."""
    first = Trainer(tiny(trainer={"max_steps": 5, "nonfinite_limit": 4}), digits, tmp_path)
    poison(first, {3, 4})
    fit(first)
    second = Trainer(tiny(trainer={"nonfinite_limit": 4}), digits, tmp_path)
    assert second.resume()
    poison(second, {5, 6})
    with pytest.raises(NonFiniteError, match=r"4 updates in a row.*step 6"):
        fit(second)


def test_skipped_update_leaves_running_averages(tiny, digits, tmp_path):
    guesses = {"guess_above": 0.5, "align_guesses": True}
    config = tiny(data={"labels_per_class": 10}, method=guesses)
    trainer = Trainer(config, digits, tmp_path)
    (predicted,) = trainer.networks.averages()
    start = predicted.clone()
    trainer.update(0, monitor=False)
    before = predicted.clone()
    assert not torch.equal(before, start)
    trainer.step = 2
    poison(trainer, {1})
    trainer.update(1, monitor=False)
    assert torch.equal(predicted, before)
