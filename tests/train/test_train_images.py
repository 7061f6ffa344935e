"""Training on images in files: from folders or packed, resumed to the bit, with labels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from steinvae import checkpoint, evaluate, train
from steinvae.config import Config
from steinvae.config_tree import to_dict
from steinvae.data.images.faults import Faults
from steinvae.data.images.listing import read_bytes, walk
from steinvae.data.images.packing import pack
from steinvae.labels.pooled import PooledLabels
from steinvae.model_file import MODEL, load_model
from steinvae.networks import build_networks
from steinvae.presets import load_preset
from steinvae.run import load_data, read_config, run
from steinvae.sample import main as sample
from steinvae.trainer import Trainer
from tests.train.image_trees import CLASSES, SIDE, VAL, small_config, write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_tree(tmp_path_factory.mktemp("images"))


@pytest.fixture
def images(tiny, tree) -> Callable[..., Config]:
    """`small_config`; keywords are sections with the fields to change, as dictionaries."""
    base = small_config(tree, tiny().trainer)

    def make(**changes) -> Config:
        sections = {
            name: replace(getattr(base, name), **value) if isinstance(value, dict) else value
            for name, value in changes.items()
        }
        return replace(base, **sections)

    return make


def trained(config: Config, run_dir: Path, steps: int, *, resumed: bool = False) -> Trainer:
    """A trainer after so many updates in all."""
    trainer = Trainer(config, load_data(config), run_dir)
    if resumed:
        assert trainer.resume()
    for step in range(trainer.step, steps):
        trainer.update(step, monitor=False)
        trainer.step = step + 1
    return trainer


def test_run_leaves_what_readers_need(images, tmp_path, capsys):
    """Label errors, pictures in colour, and a model that gives the same again."""
    run_dir, (result,) = run(images(run_dir=str(tmp_path / "run")))
    assert result["data_set"] == "image_folder"
    assert result["skipped"] == result["lost_classes"] == {}
    assert "left out" not in (run_dir / "report.md").read_text()
    assert "data:" not in capsys.readouterr().err
    assert result["nll"]["estimator"] == "iw_d(5)"
    assert np.isfinite(result["nll"]["value"])
    assert result["labels"]["per_class"] == [12, 12, 12]
    assert result["labels"]["images"] == CLASSES * VAL
    assert 0 <= result["labels"]["error"] <= 1
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/label_error" in line for line in lines)
    for picture in ("samples", "confusion", "uncertain", "code_map"):
        assert (run_dir / f"{picture}.png").stat().st_size > 500
    config = read_config(run_dir)
    networks = load_model(run_dir, config, 3 * 16**2, CLASSES)
    assert isinstance(networks.labels, PooledLabels)
    assert not networks.encoder.training
    assert any(name.endswith("variance") for name in networks.tensors())
    assert (networks.tensors()["statistics"] != 0).any()
    assert (
        sample(["--run_dir", str(run_dir), "--output", str(tmp_path / "x.png"), "--count", "4"])
        == 0
    )
    capsys.readouterr()


def test_a_run_says_which_images_and_classes_it_left_out(images, tmp_path, capsys):
    """Every test image of a class is damaged: its error is of no image."""
    root = write_tree(tmp_path / "images")
    for path in (root / "val" / "n1").iterdir():
        path.write_bytes(b"")
    data = {"root": str(root), "bad_records": "skip"}
    run_dir, (result,) = run(images(run_dir=str(tmp_path / "run"), data=data))
    left_out, lost = f"{VAL} x an empty file", "the test split has no image of n1 (1 of 3 classes)"
    shown = capsys.readouterr().err
    assert left_out in shown
    assert lost in shown
    assert result["skipped"] == {"an empty file": VAL}
    assert result["lost_classes"] == {"test": ["n1"]}
    report = (run_dir / "report.md").read_text()
    assert left_out in report
    assert re.search(r"classes without test images +\| n1 ", report)
    assert evaluate.main(["--run_dir", str(run_dir)]) == 0
    assert lost in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_ends_the_command_with_one_line(workers, images, tmp_path, capsys):
    root = write_tree(tmp_path / "images")
    for path in (root / "train" / "n1").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    data = {"root": str(root), "workers": workers}
    config = images(data=data, trainer={"on_nonfinite": "skip"}, run_dir=str(tmp_path / "run"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    assert train.main(["--config", str(tmp_path / "config.yaml")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("steinvae.train: minibatch ")
    assert f"{root}/train/n1/" in last


def test_others_may_read_the_model(images, tmp_path):
    run(images(trainer={"max_steps": 1}, run_dir=str(tmp_path / "run")))
    modes = {(tmp_path / "run" / name).stat().st_mode for name in ("config.yaml", MODEL)}
    assert len(modes) == 1


def test_colours_are_learned(images, tmp_path):
    """Forty updates of 16 images: nearly all test images are right, where a third is chance."""
    config = images(trainer={"max_steps": 40}, optimizer={"learning_rate": 1e-2, "decay_steps": 40})
    trainer = trained(config, tmp_path, 40)
    assert trainer.labelled is not None
    assert trainer.labelled.validate(trainer.networks)["validation/label_error"] < 0.4


@pytest.mark.parametrize("labelled", [True, False])
def test_resumed_run_is_the_uninterrupted_one(labelled, images, tree, tmp_path):
    """Bit for bit: decoders, statistics, encoder, label decoders, Adam; from packed images and
    labels, with a process that reads ahead, or from files without any of that."""
    config = images(data={} if labelled else {"label_fraction": None})
    if labelled:
        pack(tree, tmp_path / "packed", side=SIDE)
        config = replace(config, data=replace(config.data, root=str(tmp_path / "packed")))
    whole = trained(config, tmp_path / "whole", 6)
    parts = trained(config, tmp_path / "parts", 3)
    parts.save(parts.tensors())
    parts.settle()
    ahead = replace(config, data=replace(config.data, workers=int(labelled)))
    again = trained(ahead, tmp_path / "parts", 6, resumed=True)
    again.close()
    for (name, one), other in zip(whole.tensors().items(), again.tensors().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("method", ["stein_viwae", "vae", "iwae", "supervised"])
def test_other_methods_take_updates(method, images, tmp_path):
    labels = {"label_fraction": None} if method == "iwae" else {}
    config = images(method={"name": method, "pairing": "full"}, data=labels)
    trainer = trained(config, tmp_path, 1)
    stats = trainer.update(1, monitor=True)
    assert np.isfinite(list(stats.values())).all()
    assert ("effective_samples" in stats) == (method in ("stein_viwae", "iwae"))


def test_what_is_not_finite_moves_no_average(images, tmp_path):
    trainer = trained(images(), tmp_path, 2)
    before = {name: own.clone() for name, own in trainer.networks.tensors().items()}
    trainer._feed = lambda step: torch.full((16, 3 * 16**2), torch.nan)  # type: ignore[assignment]
    trainer.update(2, monitor=False)
    for name, own in trainer.networks.tensors().items():
        assert torch.equal(own, before[name]), name


def test_checkpoint_has_the_statistics(images, tmp_path):
    trainer = trained(images(), tmp_path, 2)
    trainer.save(trainer.tensors())
    trainer.settle()
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    tensors = checkpoint.load(saved).tensors
    assert tensors["statistics"].shape[0] == 2
    assert {"encoder.down.first.norm.mean", "labels.theta"} <= set(tensors)


def test_kernels_are_cut_within_places(images, tmp_path):
    """12 codes are 4 places of 3 planes: whole, by place, or by groups of planes at a place."""
    trainer = trained(images(), tmp_path, 0)
    cut = {
        block: trainer.networks.kernel_blocks(replace(trainer.config.method, kernel_block=block))
        for block in (0, 2, 3, 8)
    }
    assert cut == {0: (12,), 2: (2, 1) * 4, 3: (3,) * 4, 8: (3,) * 4}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"network": "mlp", "stack": None, "label_kernels": None}}, "--preset imagenet"),
        ({"data": {"name": "digits"}}, "model.network"),
        ({"method": {"name": "planar_flow"}}, "method.name"),
        ({"evaluation": {"proposal": "fitted"}}, "evaluation.proposal must be diagonal"),
        ({"model": {"encoder": "flow"}}, "model.encoder"),
        ({"data": {"crop": 20}}, "data.crop"),
    ],
)
def test_what_does_not_go_together_is_named(changes, named, images):
    with pytest.raises(ValueError, match=named):
        images(**changes)


def test_sizes_are_named(images, tree, tmp_path):
    config = images(data={"crop": 12})
    with pytest.raises(ValueError, match=r"data\.crop must be a multiple of 8"):
        Trainer(config, load_data(config), tmp_path)
    pack(tree, tmp_path / "packed", side=SIDE)
    other = images(data={"root": str(tmp_path / "packed"), "side": 17})
    with pytest.raises(ValueError, match=r"data\.side must be 18"):
        load_data(other)
    with pytest.raises(ValueError, match=r"data\.root must be given"):
        load_data(images(data={"root": None}))


def test_nets_of_the_appendix_take_a_step_on_photographs(data_root, tmp_path):
    """Everything at its printed size but M = 2 and four images: 224 x 224, 25,088 codes, 1,000
    classes. About 3 seconds and 2 GB."""
    sample = data_root / "imagenet_sample/imagenet_sample_short256_q92.tar"
    if not sample.exists():
        pytest.skip("imagenet_sample is not in the directory of the real data")
    files = [(folder, own) for folder in walk(sample, Faults()) for own in folder.members][:12]
    for number, (folder, own) in enumerate(files):
        split = "val" if number >= 10 else "train"
        place = tmp_path / "root" / split / f"n{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / own.name).write_bytes(read_bytes(folder.container, own))
    base = load_preset("imagenet")
    method = replace(base.method, code_particles=2, theta_particles=2, label_particles=1)
    data = replace(base.data, root=str(tmp_path / "root"), workers=0, label_fraction=0.5)
    settings = replace(base.trainer, batch_size=4, device="cpu")
    config = replace(base, data=data, method=method, trainer=settings)
    networks = build_networks(config, 3 * 224**2, "cpu", 1000)
    count = networks.parameter_count()
    assert count["labels"] == 512 * 2048 + 2048 + 2048 * 1000 + 1000
    assert len(networks.kernel_blocks(method)) == 7 * 7 * 8
    trainer = Trainer(config, load_data(config), tmp_path / "run", networks)
    stats = trainer.update(0, monitor=True)
    assert np.isfinite(list(stats.values())).all()
    assert trainer.networks.theta.flat.isfinite().all()
    assert trainer.batch(0).pixels.shape == (4, 3 * 224**2)
