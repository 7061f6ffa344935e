"""Captured updates: the same parameters as plain ones, whatever the method."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from steinvae import captured, monitor
from steinvae import trainer as training
from steinvae.device import prepare_process
from steinvae.optimizer import learning_rate
from steinvae.trainer import Trainer
from tests.train.tape import Tape
from tests.train.test_no_host_read import CASES

SMALL = {"theta_particles": 2, "code_particles": 4}
STEPS = 8
"""Of which half are logged; of either kind one is plain, one captured and two replayed."""


@pytest.fixture
def tape(monkeypatch) -> Tape:
    own = Tape()
    monkeypatch.setattr(training, "recorder", lambda device: own)
    monkeypatch.setattr(captured, "WARM_UP", 1)
    return own


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    left_out = {"left out": trainer._nonfinite._counts}
    return trainer.networks.tensors() | trainer.optimizer.tensors() | left_out


def assert_same(one: Trainer, other: Trainer) -> None:
    torch.testing.assert_close(everything(one), everything(other), rtol=0, atol=0)


def pair(config, digits, tmp_path) -> tuple[Trainer, Trainer]:
    """A trainer that captures, and one that takes learning rates likewise but does not."""
    replayed, plain = (Trainer(config, digits, tmp_path) for _ in range(2))
    plain._graphs = None
    return replayed, plain


def update(trainer: Trainer, step: int) -> dict[str, float]:
    return trainer.update(step, monitor=step % 2 == 0)


@pytest.mark.parametrize(("data", "method"), CASES.values(), ids=CASES.keys())
def test_replays_are_updates(data, method, tiny, digits, tape, tmp_path):
    config = tiny(data=data, method=SMALL | method, trainer={"cuda_graph": True})
    replayed, plain = pair(config, digits, tmp_path)
    for step in range(STEPS):
        assert update(replayed, step) == update(plain, step)
    assert (tape.captures, tape.replays) == (2, STEPS - 2)
    assert_same(replayed, plain)


@pytest.mark.parametrize("data", [{}, {"labels_per_class": 5}], ids=["images", "labels"])
@pytest.mark.parametrize("name", ["vae", "stein_vae"])
def test_replays_of_convolutions(name, data, tiny, digits, tape, tmp_path):
    model = {"network": "conv", "hidden": (4, 8)}
    method = SMALL | {"name": name}
    config = tiny(data=data, model=model, method=method, trainer={"cuda_graph": True})
    replayed, plain = pair(config, digits, tmp_path)
    for step in range(STEPS):
        assert update(replayed, step) == update(plain, step)
    assert_same(replayed, plain)


def test_replay_leaves_out_what_is_not_finite(tiny, digits, tape, tmp_path):
    config = tiny(trainer={"cuda_graph": True})
    trainers = pair(config, digits, tmp_path)
    for trainer in trainers:
        make = trainer.batch

        def spoiled(step, *, monitor=False, make=make):
            batch = make(step, monitor=monitor)
            return batch._replace(noise=batch.noise / (step not in (5, 6)))

        trainer.batch = spoiled
        for step in range(STEPS):
            update(trainer, step)
        assert trainer._nonfinite.read()[:3] == (2, 0, 2)
    assert_same(*trainers)


def test_captures_anew_after_a_checkpoint_is_read(tiny, digits, tape, tmp_path):
    """What the capture saw, Adam's moments among it, has been replaced."""
    config = tiny(trainer={"cuda_graph": True})
    trainers = pair(config, digits, tmp_path)
    for trainer in trainers:
        for step in range(STEPS):
            update(trainer, step)
            if step == 4:
                trainer.step = 5
                trainer.save(trainer.tensors())
                trainer.settle()
                trainer.resume()
    assert tape.captures > 2
    assert_same(*trainers)


def test_a_run_goes_on_with_or_without_captures(tiny, digits, tape, tmp_path):
    for captures in (True, False, True):
        trainer = Trainer(tiny(trainer={"cuda_graph": captures}), digits, tmp_path)
        assert trainer.resume() == (trainer.step > 0)
        before = trainer.networks.theta.flat.clone()
        for step in range(trainer.step, trainer.step + STEPS):
            update(trainer, step)
        trainer.step += STEPS
        trainer.save(trainer.tensors())
        trainer.settle()
        assert not torch.equal(before, trainer.networks.theta.flat)
    assert trainer.step == 3 * STEPS


def test_the_rate_follows_its_cosine(tiny, digits, tape, tmp_path):
    trainer = Trainer(tiny(trainer={"cuda_graph": True}), digits, tmp_path)
    groups = trainer.optimizer._adam.param_groups
    for step in (0, 1000):
        trainer.optimizer.schedule(step)
        expected = learning_rate(trainer.config.optimizer, step)
        assert [group["lr"].item() for group in groups] == pytest.approx([expected] * len(groups))


def test_products_are_as_precise_as_asked(tiny, digits, tmp_path, monkeypatch):
    """Of the update alone: what torch has been told holds around it."""

    def told() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = told()
    for precision, within in (("tf32", ("high", True)), ("float32", before)):
        trainer = Trainer(tiny(trainer={"precision": precision}), digits, tmp_path)
        objective, seen = trainer._objective, []
        trainer._objective = lambda *arguments, own=objective, into=seen: (
            into.append(told()) or own(*arguments)
        )
        trainer.update(0, monitor=False)
        assert seen == [within]
        assert told() == before


def test_a_command_convolves_as_it_says_and_repeats_itself(tiny, monkeypatch):
    """On a GPU: torch's defaults are TF32, and whichever algorithm is the fastest."""
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    monkeypatch.setattr(cudnn, "deterministic", False)
    prepare_process(tiny())
    assert (cudnn.allow_tf32, cudnn.deterministic) == (False, True)


def test_the_monitor_copies_nothing_from_the_host(tiny, digits, tape, tmp_path):
    """Of encoders that fold, whose folds are counted at logged updates."""
    config = tiny(model={"encoder": "concat"}, method=SMALL, trainer={"cuda_graph": True})
    replayed, plain = pair(config, digits, tmp_path)
    monitor._reference_noise.cache_clear()
    for step in range(STEPS):
        found = update(replayed, step)
        assert found == update(plain, step)
        assert ("folded" in found) == (step % 2 == 0)


def test_a_closed_trainer_is_not_left_to_the_collector(tiny, digits, tape, tmp_path):
    """Its graphs, collected while another update is captured, would end that capture."""
    trainer = Trainer(tiny(trainer={"cuda_graph": True}), digits, tmp_path)
    for step in range(STEPS):
        update(trainer, step)
    trainer.close()
    kept = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert kept() is None
    finally:
        gc.enable()


def test_nothing_is_collected_during_a_capture():
    assert gc.isenabled()
    with captured._no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_no_capture_on_several_processes(tiny, digits, tmp_path):
    from steinvae.distributed import ShardedTrainer  # half a second of DTensor

    with pytest.raises(ValueError, match=r"trainer\.cuda_graph must be false on several"):
        ShardedTrainer(tiny(trainer={"cuda_graph": True}), digits, tmp_path, None)  # type: ignore[arg-type]


def test_no_capture_on_a_cpu(tiny, digits, tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.cuda_graph must be false on cpu"):
        Trainer(tiny(trainer={"cuda_graph": True}), digits, tmp_path)
