"""An update that is not logged reads nothing from the device and mixes no devices."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from steinvae import trainer as training
from steinvae.models import closed_form
from steinvae.trainer import Trainer

METHODS = {
    "stein": {},
    "strat": {"pairing": "strat"},
    "regression": {"regression_steps": 2},
    "viwae": {"name": "stein_viwae", "importance_samples": 2},
    "viwae gauss": {"name": "stein_viwae", "importance_samples": 2, "log_q": "gauss"},
    "as printed": {"name": "stein_viwae", "importance_samples": 2, "weights": "paper"},
    "moved codes": {"name": "stein_viwae", "importance_samples": 2, "move_codes": True},
    "vae": {"name": "vae"},
    "iwae": {"name": "iwae"},
    "dreg": {"name": "iwae", "iwae_gradient": "dreg"},
    "planar": {"name": "planar_flow"},
    "flow elbo": {"name": "flow_elbo"},
    "control": {"name": "vae_weighted_decoder"},
    "masses": {"mass_rate": 0.3},
    "normalised": {"normalise_direction": True},
    "sum": {"kernel": "sum"},
    "linear": {"kernel": "linear"},
    "fixed decoders": {"fixed_theta": True},
}
LABELS = {
    "stein": {},
    "viwae": {"name": "stein_viwae", "importance_samples": 2},
    "vae": {"name": "vae"},
    "m2": {"name": "m2"},
    "supervised": {"name": "supervised"},
    "guesses": {"guess_above": 0.5, "align_guesses": True},
    "adversary": {"guess_above": 0.5, "adversarial_radius": 1.0},
}
CASES = {name: ({}, method) for name, method in METHODS.items()}
CASES |= {f"labels, {name}": ({"labels_per_class": 5}, method) for name, method in LABELS.items()}


SMALL = {"theta_particles": 2, "code_particles": 4}


class OnDevice(TorchDispatchMode):
    """Refuses tensors made on the host, which would have to be copied: a CUDA graph cannot."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(found) if isinstance(each, torch.Tensor)]
        assert all(each.device.type == "meta" for each in made), func
        return found


@pytest.mark.parametrize(("data", "method"), CASES.values(), ids=CASES.keys())
def test_nothing_is_read(data, method, tiny, digits, tmp_path, monkeypatch):
    """On a device without values: reading one is an error there, and so is another device."""
    monkeypatch.setattr(training, "choose_device", lambda name: torch.device("meta"))
    monkeypatch.setitem(closed_form.NUMBERS_AT_ONCE, "meta", 2**20)
    config = tiny(data=data, method=SMALL | method)
    trainer = Trainer(config, digits, tmp_path)
    moved = []  # Adam's fused kernel is not there for meta: the test below has it
    monkeypatch.setattr(trainer.optimizer, "move", lambda *_, left_out: moved.append(left_out))
    batch = trainer.batch(0)  # noise is drawn on the host
    trainer.batch = lambda step, *, monitor=False: batch._replace(monitor=monitor)  # type: ignore[method-assign]
    with OnDevice():
        trainer.update(0, monitor=False)
        trainer._move(batch._replace(monitor=True), torch.zeros((), device="meta"))
    assert {each.device.type for each in moved} == {"meta"}
    with pytest.raises((RuntimeError, NotImplementedError)):
        trainer.update(1, monitor=True)  # what is logged is read


@pytest.mark.parametrize(("data", "method"), CASES.values(), ids=CASES.keys())
def test_no_derivative_looks_for_zeros(data, method, tiny, digits, tmp_path):
    """Under a dispatch mode torch's derivative of prod takes another way, so a profiler looks."""
    trainer = Trainer(tiny(data=data, method=SMALL | method), digits, tmp_path)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.update(0, monitor=False)
    called = {event.name for event in profile.events() or ()}
    assert "aten::mul" in called
    assert not called & {"aten::nonzero", "aten::masked_select"}


class HostReads(TorchDispatchMode):
    """Operations that make the host wait for values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._opname in ("_local_scalar_dense", "nonzero", "masked_select", "equal"):
            self.found.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", [{}, {"regression_steps": 2}], ids=["once", "twice"])
def test_adam_reads_nothing(method, tiny, digits, tmp_path):
    trainer = Trainer(tiny(method=method), digits, tmp_path)
    trainer.update(0, monitor=False)
    batch = trainer.batch(1)  # indices are checked, on the host where they are drawn
    trainer.batch = lambda step, *, monitor=False: batch  # type: ignore[method-assign]
    with HostReads() as reads:
        trainer.update(1, monitor=False)
    assert reads.found == []
    with HostReads() as reads:
        trainer.update(2, monitor=True)
    assert reads.found
