"""A run of 2 and of 4 processes is that of one, and continues that of any number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import scaling
from stein_kernels.testing import relative_error
from steinvae import checkpoint
from steinvae.models.batch_norm import BatchNorm
from tests.conftest import ROOT
from tests.distributed import training
from tests.train.image_trees import write_tree

# In float64, four updates. Sums over images come in another order, to 1e-16 of their size; Adam
# divides by the size of the gradient, so one that cancels to 1e-6 of its terms is good to 1e-10.
EXACT = 1e-10
METHODS = {
    "stein": {},
    "dealt": {"pairing": "strat"},
    "viwae": {"name": "stein_viwae", "importance_samples": 3},
    "as printed": {"name": "stein_viwae", "importance_samples": 3, "weights": "paper"},
    "moved codes": {"name": "stein_viwae", "importance_samples": 3, "move_codes": True},
    "linear kernel": {"kernel": "linear"},
    "vae": {"name": "vae", "shared_noise": True},
    "regression": {"regression_steps": 2},
    "labels, viwae": {"labelled": True, "name": "stein_viwae", "importance_samples": 3},
    "labels, vae": {"labelled": True, "name": "vae"},
    "guesses": {
        "labelled": True,
        "guess_above": 0.2,
        "align_guesses": True,
        "adversarial_radius": 0.5,
    },
    "labels, m2": {"labelled": True, "name": "m2"},
}


def assert_same(actual, expected) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert relative_error(actual[name], value) <= EXACT, name


def newest(folder: Path) -> checkpoint.Checkpoint:
    path = checkpoint.latest(folder)
    assert path is not None
    return checkpoint.load(path)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_run_is_that_of_one_process(ranks, method, tmp_path):
    expected = training.alone(tmp_path / "one", 4, **method)
    for actual in ranks(training.together, tmp_path / "all", 4, method):
        assert_same(actual, expected)


@pytest.mark.parametrize("name", ["stein", "moved codes", "vae", "labels, viwae", "labels, m2"])
def test_statistics_are_those_of_one_process(ranks, name, tmp_path):
    """But for the monitor's cosines, which are means of the processes' own."""
    expected = training.statistics_alone(tmp_path / "one", METHODS[name])
    for actual in ranks(training.statistics_together, tmp_path / "all", METHODS[name]):
        assert actual.keys() == expected.keys()
        for each, value in expected.items():
            if not each.startswith(("direction_", "field_")):
                assert actual[each] == pytest.approx(value, rel=EXACT), each


def test_batch_normalisation_is_that_of_all_rows(ranks):
    """torch's own on all rows: values, gradients, running averages."""
    rows = torch.randn(8, 3, 2, 5, dtype=torch.float64) * 3 + 7
    towards = torch.randn_like(rows)
    layer = BatchNorm(3).double()
    x = rows.clone().requires_grad_()
    out = layer(x)
    gradients = torch.autograd.grad(out, [x, layer.gain, layer.shift], towards)
    shared = [*gradients[1:], layer.mean, layer.variance]
    answers = ranks(training.normalised, rows, towards)
    torch.testing.assert_close(torch.cat([each[0] for each in answers]), out)
    torch.testing.assert_close(torch.cat([each[1] for each in answers]), gradients[0])
    for _, _, *own in answers:
        for actual, expected in zip(own, shared, strict=True):
            torch.testing.assert_close(actual, expected)


IMAGES = {
    "stein": {},
    "recomputed": {"trainer": {"recompute": True}},
    "vae": {"method": {"name": "vae"}},
    "viwae": {
        "method": {
            "name": "stein_viwae",
            "code_particles": 2,
            "importance_samples": 2,
            "theta_particles": 1,
        }
    },
}


@pytest.mark.parametrize("changes", IMAGES.values(), ids=IMAGES.keys())
def test_images_in_files_are_shared_out(ranks, changes, tmp_path):
    """A run on images with batch normalisation is that of one process, and each reads its own."""
    tree = write_tree(tmp_path / "images")
    expected = training.images_alone(tmp_path / "one", tree, 3, **changes)
    for actual, read in ranks(training.images_together, tmp_path / "all", tree, 3, changes):
        assert_same(actual, expected)
        assert read == {8 // ranks.size}


def test_any_number_of_processes_continues(ranks, tmp_path):
    """2 updates by the ranks, then 2 by one; 2 by one, then 2 by the ranks."""
    expected = training.alone(tmp_path / "one", 4)
    ranks(training.together, tmp_path / "there", 2, {})
    assert newest(tmp_path / "there").step == 2
    assert_same(training.alone(tmp_path / "there", 4), expected)
    training.alone(tmp_path / "back", 2)
    for actual in ranks(training.together, tmp_path / "back", 4, {}):
        assert_same(actual, expected)


def test_four_processes_continue_two(started, tmp_path):
    expected = training.alone(tmp_path / "one", 4)
    started(2)(training.together, tmp_path / "there", 2, {})
    for actual in started(4)(training.together, tmp_path / "there", 4, {}):
        assert_same(actual, expected)


def test_a_gradient_that_is_not_finite_on_one_rank_is_left_out_by_all(ranks, tmp_path):
    answers = ranks(training.spoiled, tmp_path, ranks.size - 1)
    for tensors, skipped in answers:
        assert skipped == 1
        assert tensors["adam.0.step"] == tensors["adam.1.step"] == 3
        assert all(torch.equal(value, answers[0][0][name]) for name, value in tensors.items())
        assert all(value.isfinite().all() for value in tensors.values())


def test_rollbacks_in_a_row_are_counted_alike_by_all_ranks(ranks, tmp_path):
    """A save ends the row in every process, not in the one that writes alone."""
    assert ranks(training.rolled_back, tmp_path) == [10] * ranks.size


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_rank_ends_all_at_one_step_once_it_is_saved(ranks, number, code, tmp_path):
    assert ranks(training.stopped, tmp_path, number) == [(code, 5, True)] * ranks.size


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_an_update_moves(started, size, tmp_path):
    """Scores by reduce-scatter and theta by all-gather, as ZeRO 1 does, and M x M numbers.

    Adam's moments are those of the slice.
    """
    answers = started(size)(training.traffic_of_an_update, tmp_path)
    for rank, (calls, encoder, moments) in enumerate(answers):
        assert calls == scaling.update(training.DECODERS, training.DECODER, encoder, size)
        width = scaling.slice_width(training.DECODER, size)
        own = min(width, training.DECODER - rank * width)
        assert moments[0] == (training.DECODERS, own)


def test_settings_that_cannot_be_shared_out(ranks):
    for batch, labels, compiled in ranks(training.refusals):
        size = ranks.size
        assert batch == f"trainer.batch_size must be a multiple of the {size} processes, got 9"
        assert labels.startswith(
            f"trainer.batch_size must be a multiple of {2 * size} where labels"
        )
        assert compiled.startswith("trainer.compile must be false on several processes")


COMMAND = [
    *("-m", "torch.distributed.run", "--nproc-per-node", "2"),
    *("-m", "steinvae.train", "--trainer.max_steps", "200000", "--trainer.log_every", "1"),
    *("--trainer.device", "cpu", "--trainer.baseline", "none", "--trainer.batch_size", "8"),
    *("--method.code_particles", "4", "--run_dir", "run"),
]


@pytest.mark.slow
def test_torchrun_stops_all_at_one_step(tmp_path):
    """SIGTERM to the launcher, which hands it on: the run is saved, and no process hangs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    metrics = tmp_path / "run" / "metrics.jsonl"
    with subprocess.Popen([sys.executable, *COMMAND], cwd=tmp_path, env=environment) as launcher:
        while not (metrics.exists() and metrics.stat().st_size):
            assert launcher.poll() is None
            time.sleep(0.2)
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(60)
    saved = newest(tmp_path / "run")
    assert saved.tensors["adam.0.exp_avg"].shape == saved.tensors["theta"].shape
