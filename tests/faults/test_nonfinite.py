"""NaN in losses, gradients and parameters: left out, refused or rolled back, and never saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from steinvae import checkpoint
from steinvae.config import Config, EvaluationConfig, MethodConfig, ModelConfig, TrainerConfig
from steinvae.data import load
from steinvae.gradients import Gradients
from steinvae.logging import MetricsWriter, Progress, read_metrics
from steinvae.nonfinite import NonFiniteError
from steinvae.signals import StopRequest
from steinvae.trainer import Trainer

DIGITS = load("digits")


def config(method: dict | None = None, **trainer) -> Config:
    """20 steps, a record every 4, a checkpoint every 5."""
    settings: dict[str, Any] = {"max_steps": 20, "batch_size": 8, "log_every": 4}
    settings |= {"validate_every": 8, "checkpoint_every": 5, "device": "cpu", **trainer}
    return Config(
        model=ModelConfig(codes=4, hidden=(8,)),
        method=MethodConfig(theta_particles=2, code_particles=4, **(method or {})),
        trainer=TrainerConfig(**settings),
        evaluation=EvaluationConfig(images=4, validation_images=4, validation_samples=8),
    )


def fit(trainer: Trainer) -> Trainer:
    with (
        MetricsWriter(trainer.run_dir, trainer.step or None) as metrics,
        Progress(trainer.config.trainer.max_steps, rank=1) as progress,
    ):
        trainer.fit(metrics, progress, StopRequest())
    return trainer


def spoil(trainer: Trainer, draws: set[int], change: Callable[[Gradients], Gradients]) -> None:
    """Change what the objective makes of these minibatches, wherever a rollback draws them."""
    objective = trainer._objective

    def spoiled(networks, batch, method, data_size):
        gradients = objective(networks, batch, method, data_size)
        drawn = trainer.step - 1 + trainer.state["passed_over"]
        return change(gradients) if drawn in draws else gradients

    trainer._objective = spoiled


def nan_gradient(gradients: Gradients) -> Gradients:
    return gradients._replace(eta=[each * float("nan") for each in gradients.eta])


def infinite_loss(gradients: Gradients) -> Gradients:
    infinite = torch.tensor(float("inf"))
    return gradients._replace(stats=gradients.stats | {"distortion": infinite})


def newest(trainer: Trainer) -> checkpoint.Checkpoint:
    path = checkpoint.latest(trainer.run_dir)
    assert path is not None
    return checkpoint.load(path)


@pytest.mark.parametrize("change", [nan_gradient, infinite_loss])
def test_skip_leaves_the_update_out(change, tmp_path):
    trainer = Trainer(config({"regression_steps": 2}), DIGITS, tmp_path)
    spoil(trainer, {6, 7, 13}, change)
    fit(trainer)
    assert trainer.state["skipped"] == 3
    saved = newest(trainer)
    assert saved.tensors["adam.0.step"] == 17
    assert saved.tensors["adam.1.step"] == 2 * 17  # and its second regression step
    assert [r["train/skipped"] for r in read_metrics(tmp_path / "metrics.jsonl")][-2:] == [3, 3]


def test_raise_ends_the_run_where_it_is_noticed(tmp_path):
    trainer = Trainer(config(on_nonfinite="raise"), DIGITS, tmp_path)
    spoil(trainer, {6}, nan_gradient)
    with pytest.raises(NonFiniteError, match=r"not finite at step 6; .* are from before"):
        fit(trainer)
    assert trainer.step == 8  # the next step that is logged
    assert newest(trainer).step == 5


def test_rollback_goes_on_from_the_checkpoint_with_other_minibatches(tmp_path):
    """Minibatches 5 to 7 are not drawn again: the run is the one that never had them."""
    trainer = Trainer(config(on_nonfinite="rollback"), DIGITS, tmp_path / "failed")
    spoil(trainer, {6}, nan_gradient)
    fit(trainer)
    assert {"rollbacks": 1, "passed_over": 3, "skipped": 0}.items() <= trainer.state.items()
    without = Trainer(config(on_nonfinite="rollback", max_steps=5), DIGITS, tmp_path / "without")
    fit(without)
    without = Trainer(config(on_nonfinite="rollback"), DIGITS, tmp_path / "without")
    without.resume()
    without.state["passed_over"] = 3
    fit(without)
    for name, tensor in without.tensors().items():
        assert torch.equal(tensor, trainer.tensors()[name]), name
    records = read_metrics(tmp_path / "failed" / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 4, 8, 12, 16, 20]
    assert [r["train/rollbacks"] for r in records] == [0, 0, 1, 1, 1, 1]


def test_a_run_that_was_rolled_back_resumes_to_the_same_bits(tmp_path):
    for name, cuts in (("whole", (20,)), ("cut", (12, 20))):
        for steps in cuts:
            settings = config(on_nonfinite="rollback", max_steps=steps)
            trainer = Trainer(settings, DIGITS, tmp_path / name)
            trainer.resume()
            spoil(trainer, {6}, nan_gradient)
            fit(trainer)
    whole, cut = (
        checkpoint.load(tmp_path / n / "checkpoints/step-00000020") for n in ("whole", "cut")
    )
    assert all(torch.equal(whole.tensors[name], tensor) for name, tensor in cut.tensors.items())
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]


def test_rollback_to_the_start(tmp_path):
    trainer = Trainer(config(on_nonfinite="rollback"), DIGITS, tmp_path)
    spoil(trainer, {0}, nan_gradient)
    fit(trainer)
    assert (trainer.state["rollbacks"], trainer.state["passed_over"]) == (1, 1)


@pytest.mark.filterwarnings("ignore:skipping a damaged checkpoint")
@pytest.mark.parametrize(("gone", "fault"), [(True, "has no checkpoint"), (False, "can be used")])
def test_a_rollback_with_nothing_to_go_back_to_ends_the_run(gone, fault, tmp_path):
    """Whose checkpoints were moved away, or damaged, since they were written."""
    trainer = Trainer(config(on_nonfinite="rollback", save_in_background=False), DIGITS, tmp_path)
    spoil(trainer, {6}, nan_gradient)
    update = trainer.update

    def losing(step: int, *, monitor: bool):
        if step == 6 and gone:
            (tmp_path / "checkpoints").rename(tmp_path / "away")
        elif step == 6:
            for path in tmp_path.glob("checkpoints/*/state.json"):
                path.write_text("{")
        return update(step, monitor=monitor)

    trainer.update = losing  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=rf"by step 8, nothing to go back to: .*{fault}"):
        fit(trainer)


def test_rollbacks_that_do_not_help_end_the_run(tmp_path):
    settings = config(on_nonfinite="rollback", nonfinite_limit=3)
    trainer = Trainer(settings, DIGITS, tmp_path)
    spoil(trainer, set(range(6, 1000)), nan_gradient)
    with pytest.raises(NonFiniteError, match=r"after 3 rollbacks .* in a row"):
        fit(trainer)
    assert newest(trainer).step == 5


@pytest.mark.parametrize("policy", ["skip", "raise", "rollback"])
def test_a_state_that_is_not_finite_is_never_saved(policy, tmp_path):
    """Parameters that an update has spoiled with a gradient that was finite."""
    trainer = Trainer(config(on_nonfinite=policy, log_every=100), DIGITS, tmp_path)
    update, spoiled = trainer.update, []

    def breaking(step: int, *, monitor: bool):
        stats = update(step, monitor=monitor)
        if step == 9 and not spoiled:
            spoiled.append(step)
            trainer.networks.theta.flat[0, 0] = float("nan")
        return stats

    trainer.update = breaking  # type: ignore[method-assign]
    if policy == "rollback":
        fit(trainer)
        assert (trainer.state["rollbacks"], newest(trainer).step) == (1, 20)
    else:
        with pytest.raises(NonFiniteError, match="parameters were not finite after step 10"):
            fit(trainer)
        assert newest(trainer).step == 5
    assert all(tensor.isfinite().all() for tensor in newest(trainer).tensors.values())


@pytest.mark.parametrize("policy", ["skip", "raise", "rollback"])
def test_networks_that_are_not_finite_are_not_validated(policy, tmp_path):
    trainer = Trainer(config(on_nonfinite=policy, log_every=100), DIGITS, tmp_path)
    update, spoiled = trainer.update, []

    def breaking(step: int, *, monitor: bool):
        stats = update(step, monitor=monitor)
        if step == 7 and not spoiled:  # 8 is a validation, and neither logged nor saved
            spoiled.append(step)
            for each in trainer.networks.eta():
                each.detach().fill_(float("nan"))
        return stats

    trainer.update = breaking  # type: ignore[method-assign]
    if policy == "rollback":
        fit(trainer)
        assert (trainer.state["rollbacks"], newest(trainer).step) == (1, 20)
    else:
        with pytest.raises(NonFiniteError, match="parameters were not finite after step 8"):
            fit(trainer)


@pytest.mark.parametrize("proposal", ["fitted", "encoder"])
def test_a_diverged_model_is_worse_than_any_and_is_not_reported(proposal, tmp_path, capsys):
    """Its parameters are finite and its NLL is not: null in the metrics, then a line."""
    from steinvae import train

    settings = ("--optimizer.learning_rate=1e12", "--trainer.max_steps=4", "--model.hidden=[8]")
    settings += ("--trainer.validate_every=2", "--trainer.log_every=2", "--trainer.device=cpu")
    settings += ("--method.theta_particles=1", f"--evaluation.proposal={proposal}")
    settings += ("--evaluation.images=4", "--evaluation.samples=20", f"--run_dir={tmp_path}")
    if proposal == "encoder":
        settings += ("--method.name=vae",)
    assert train.main([*settings, "--trainer.baseline=none"]) == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("steinvae.train: the test NLL by ")
    assert "is not finite: the model, which is saved, has diverged" in shown
    path = checkpoint.latest(tmp_path)
    assert path is not None
    assert checkpoint.load(path).state["best_step"] is None
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["validation/nll"] for r in records if "validation/nll" in r] == [None, None]
    assert not (tmp_path / "result.json").exists()


def test_a_second_rollback_passes_over_what_the_first_did_too(tmp_path):
    """From step 8 back to 5, three minibatches passed over, then from 10 back to 5, five more."""
    trainer = Trainer(config(on_nonfinite="rollback"), DIGITS, tmp_path)
    spoil(trainer, {6, 12}, nan_gradient)
    fit(trainer)
    assert (trainer.state["rollbacks"], trainer.state["passed_over"]) == (2, 8)
