"""Training on a CUDA device: captured updates are the plain ones."""

from __future__ import annotations

import pytest
import torch

from stein_kernels import testing

pytestmark = pytest.mark.gpu

METHODS = ("vae", "iwae", "stein_vae", "stein_viwae", "vae_weighted_decoder", "flow_elbo")
STEPS = 12


@pytest.mark.parametrize("method", METHODS)
def test_replays_are_updates(backend, method, tmp_path):
    """Plain three times, then replayed; of either kind some are logged."""
    needs = "training needs what the extra `train` installs"
    presets = pytest.importorskip("steinvae.presets", reason=needs, exc_type=ImportError)
    training = pytest.importorskip("steinvae.trainer", reason=needs, exc_type=ImportError)
    config = presets.load_preset("mnist_small")
    own = {"name": method, "importance_samples": 5, "code_particles": 10, "theta_particles": 2}
    config = changed(config, method=own, trainer={"device": "cuda", "cuda_graph": True})
    trainers = [training.Trainer(config, images(), tmp_path) for _ in range(2)]
    trainers[1]._graphs = None
    with testing.poison_empty(False):
        for step in range(STEPS):
            records = [each.update(step, monitor=step % 2 == 0) for each in trainers]
            assert records[0] == pytest.approx(records[1], rel=1e-3)
    replayed, plain = (each.networks.tensors() | each.optimizer.tensors() for each in trainers)
    torch.testing.assert_close(replayed, plain)


def changed(config, **sections):
    from dataclasses import replace

    made = {name: replace(getattr(config, name), **values) for name, values in sections.items()}
    return replace(config, **made)


def images():
    """Noise, as large as digits."""
    from steinvae.data.binarize import build

    pixels = torch.randint(0, 256, (500, 784), dtype=torch.uint8, generator=testing.generator(0))
    parts = {"train": 300, "validation": 100, "test": 100}
    sources = {
        name: (own, torch.zeros(len(own), dtype=torch.int64))
        for name, own in zip(parts, pixels.split(list(parts.values())), strict=True)
    }
    return build("mnist", (28, 28), 255, sources, binarization="fixed", seed=0)
