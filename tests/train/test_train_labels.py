"""Runs with labels on the digits: they learn, resume bit for bit, and leave what readers need."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor

from steinvae import checkpoint, evaluate
from steinvae.data import Dataset, load
from steinvae.labels.predict import class_probabilities, scores
from steinvae.labels.results import label_quality
from steinvae.labels.softmax import SoftmaxLabels
from steinvae.labels.task import labelled_indices
from steinvae.logging import MetricsWriter, Progress, read_metrics
from steinvae.model_file import load_model
from steinvae.networks import Networks, build_networks
from steinvae.report import read_records
from steinvae.run import read_config, run
from steinvae.signals import StopRequest
from steinvae.trainer import Trainer

METHODS = {
    "stein": {"label_particles": 3},
    "viwae": {"name": "stein_viwae", "code_particles": 2, "label_particles": 3},
    "vae": {"name": "vae"},
    "m2": {"name": "m2"},
    "supervised": {"name": "supervised"},
}
LABELS = {"labels_per_class": 10}


def fit(trainer: Trainer) -> Trainer:
    with (
        MetricsWriter(trainer.run_dir, trainer.step or None) as metrics,
        Progress(trainer.config.trainer.max_steps, rank=1) as progress,
    ):
        trainer.fit(metrics, progress, StopRequest())
    return trainer


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_method_learns_classes(method, tiny, digits, tmp_path):
    """150 steps and 10 labels a class: at most half of the test digits wrong, of 90 % by chance.

    M1+M2 follows its labels with a tenth of the weight, and is slower.
    """
    config = tiny(
        data=LABELS,
        method=method,
        model={"codes": 8, "hidden": (32,)},
        trainer={"max_steps": 150, "validate_every": 75, "batch_size": 64},
        optimizer={"learning_rate": 1e-2, "decay_steps": 150},
    )
    trainer = fit(Trainer(config, digits, tmp_path))
    test = digits.test
    pixels = test.batch(torch.arange(len(test)))
    probabilities = class_probabilities(trainer.networks, pixels, seed=0, samples=5)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(test)))
    assert scores(probabilities, test.labels).error < (0.65 if config.method.name == "m2" else 0.5)
    curve = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "validation/label_error" in r]
    assert [record["step"] for record in curve] == [75, 150]
    assert curve[-1]["validation/label_nll"] < log(10)


@pytest.mark.parametrize("method", ["stein", "viwae", "m2", "regression", "guesses"])
def test_resumed_run_repeats_the_whole_one(method, tiny, digits, tmp_path):
    guesses = {"guess_above": 0.5, "align_guesses": True, "adversarial_radius": 0.5}
    settings = METHODS | {"regression": {"regression_steps": 2}, "guesses": guesses}
    config = tiny(
        data=LABELS,
        model={"input_dropout": 0.3},
        method=settings[method],
        trainer={"max_steps": 12},
    )
    whole = fit(Trainer(config, digits, tmp_path / "whole"))
    short = replace(config, trainer=replace(config.trainer, max_steps=5))
    fit(Trainer(short, digits, tmp_path / "parts"))
    again = Trainer(config, digits, tmp_path / "parts")
    assert again.resume()
    assert again.step == 5
    fit(again)
    saved = [
        checkpoint.load(path).tensors
        for folder in ("whole", "parts")
        if (path := checkpoint.latest(tmp_path / folder))
    ]
    assert saved[0].keys() == saved[1].keys()
    assert any(name.startswith("labels.") for name in saved[0])
    assert not any(name.startswith("best.") for name in saved[0])  # the last are tested
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    lines = [(tmp_path / folder / "metrics.jsonl").read_text() for folder in ("whole", "parts")]
    assert lines[0] == lines[1]
    assert torch.equal(whole.batch(11).pixels, again.batch(11).pixels)


def test_run_folder_has_what_readers_need(tiny, tmp_path):
    """The indices, quality of the probabilities, a section and pictures, for both methods."""
    config = tiny(
        run_dir=str(tmp_path),
        data={"label_fraction": 0.05, "split_seed": 4},
        method={"label_particles": 3},
    )
    run_dir, (result, beside) = run(config)
    chosen = json.loads((run_dir / "labels.json").read_text())
    assert chosen["split_seed"] == 4
    assert len(chosen["indices"]) == len(chosen["labels"]) == result["labels"]["labelled"]
    assert (run_dir / "baseline-vae/labels.json").read_text() == (
        run_dir / "labels.json"
    ).read_text()
    found = result["labels"]
    assert found["images"] == 250
    assert found["zeta"] == 64 / (10 * 0.5)
    assert 0 < found["decoder_spread"] < 2
    assert beside["labels"]["decoder_spread"] is None
    assert (found["label_decoders"], beside["labels"]["label_decoders"]) == (3, 1)
    assert 0 < found["error"] < 1
    assert found["calibrated"]["nll"] < found["nll"] + 0.1
    assert 0 < found["nearest_neighbour_error"] < 1
    report = (run_dir / "report.md").read_text()
    assert "## Labels" in report
    for picture in ("confusion", "uncertain", "code_map"):
        assert f"({picture}.png)" in report
        assert (run_dir / f"{picture}.png").stat().st_size > 5000
    networks = load_model(run_dir, read_config(run_dir), 64)
    assert networks.labels is not None
    assert result["selected_step"] == result["steps"] == 20


def test_evaluation_repeats_what_training_reported_of_labels(tiny, tmp_path, capsys):
    """Every number of `labels` in result.json, from the parameters, the data and config.yaml."""
    config = tiny(run_dir=str(tmp_path), data=LABELS, trainer={"baseline": "none"})
    run_dir, (result, *_) = run(config)
    reported = json.loads(json.dumps(result["labels"]))
    assert evaluate.main([str(run_dir), "--estimators=iw_g", "--images=4", "--samples=20"]) == 0
    assert "## Labels" in capsys.readouterr().out
    assert "](confusion.png)" not in (run_dir / "evaluation.md").read_text()  # made in training
    assert json.loads((run_dir / "evaluation.json").read_text())["labels"] == reported
    lines = read_records(run_dir / "evaluation.jsonl")
    (error,) = (line for line in lines if line["metric"] == "label_error")
    assert (error["value"], error["stderr"]) == (reported["error"], reported["error_stderr"])
    assert error["n"] == 250
    assert {"label_nll", "label_ece", "calibrated_nll"} < {line["metric"] for line in lines}
    assert evaluate.main([f"--run_dir={run_dir}"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == reported


def test_without_labels_nothing_of_them_is_left(tiny, tmp_path):
    run_dir, (result, *_) = run(tiny(run_dir=str(tmp_path), trainer={"baseline": "none"}))
    assert "labels" not in result
    assert "Labels" not in (run_dir / "report.md").read_text()
    assert not (run_dir / "labels.json").exists()
    saved = checkpoint.latest(run_dir)
    assert saved is not None
    assert not any(name.startswith("labels") for name in checkpoint.load(saved).tensors)


def test_dropout_hides_pixels_from_the_encoder_alone(tiny, digits, tmp_path):
    """Of what it sees a pixel is 0 or divided by 1 - p, and its mean is the pixel's: within four
    standard errors, sqrt(p / (1 - p) mean x^2 / n).
    """
    config = tiny(data=LABELS, model={"input_dropout": 0.4}, trainer={"batch_size": 400})
    trainer = Trainer(config, digits, tmp_path)
    batch, other = trainer.batch(0), trainer.batch(1)
    assert batch.visible is not None
    assert other.visible is not None
    whole = Trainer(
        replace(config, model=replace(config.model, input_dropout=0.0)), digits, tmp_path
    )
    assert torch.equal(batch.pixels, whole.batch(0).pixels)
    assert torch.equal(batch.noise, whole.batch(0).noise)
    assert whole.batch(0).visible is None
    again = trainer.batch(0).visible
    assert again is not None
    assert torch.equal(batch.visible, again)
    hidden, others = batch.visible == 0, other.visible == 0
    torch.testing.assert_close(batch.visible[~hidden], batch.pixels[~hidden] / 0.6)
    assert not torch.equal(hidden[batch.pixels > 0], others[batch.pixels > 0])
    gap = (batch.visible - batch.pixels).mean()
    assert abs(gap) < 4 * (0.4 / 0.6 * batch.pixels.square().mean() / batch.pixels.numel()) ** 0.5


def test_all_that_is_drawn_passes_over_what_a_rollback_left_out(tiny, digits, tmp_path):
    config = tiny(
        data=LABELS,
        model={"input_dropout": 0.4},
        method={"guess_above": 0.5, "adversarial_radius": 1.0},
    )
    trainer = Trainer(config, digits, tmp_path)
    later = trainer.batch(3)
    trainer.state["passed_over"] = 3
    for name in ("pixels", "noise", "permutation", "labels", "visible", "probe"):
        assert torch.equal(getattr(trainer.batch(0), name), getattr(later, name)), name


@pytest.mark.parametrize("method", ["stein", "viwae", "vae", "m2"])
def test_codes_are_of_what_is_shown_and_decoders_of_the_whole(method, tiny, digits, tmp_path):
    """The distortion is that of whole images by codes of other ones; without a prior, of labels."""
    trainer = Trainer(tiny(data=LABELS, method=METHODS[method]), digits, tmp_path)
    networks, batch = trainer.networks, trainer.batch(0)
    batch = batch._replace(visible=batch.pixels.flip(1))
    with torch.no_grad():
        codes = networks.encoder(batch.pixels.flip(1), batch.noise)
        expected = -networks.model.log_likelihood(
            networks.theta.leaves(), codes[None], batch.pixels
        ).mean()
    labelled = trainer.labelled
    assert labelled is not None
    found = labelled.objective(networks, batch, trainer.config.method, len(digits.train))
    torch.testing.assert_close(found.stats["distortion"], expected)
    plain = labelled.objective(
        networks, batch._replace(visible=batch.pixels), trainer.config.method, len(digits.train)
    )
    same = labelled.objective(
        networks, batch._replace(visible=None), trainer.config.method, len(digits.train)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.eta, same.eta, strict=True))


def test_split_seed_alone_decides_the_images(tiny, digits, tmp_path):
    trainers = [
        Trainer(tiny(data=LABELS | {"split_seed": split}, seed=seed), digits, tmp_path)
        for split, seed in ((1, 0), (1, 7), (2, 0))
    ]
    first, same, other = (each.labelled.indices for each in trainers if each.labelled)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_data_set_without_labels_is_refused(tiny, digits, tmp_path):
    split = replace(digits.train, labels=None)
    bare = Dataset(
        name="own",
        binarization="fixed",
        binarization_seed=None,
        image_shape=(8, 8),
        train=split,
        validation=digits.validation,
        test=digits.test,
    )
    with pytest.raises(ValueError, match="the images of this data set have no labels"):
        Trainer(tiny(data=LABELS), bare, tmp_path)


def of_certain_decoders(config) -> Networks:
    """Fresh networks for the digits whose label decoders are far from uniform."""
    networks = build_networks(config, 64, "cpu")
    label_decoders(networks).mul_(10)
    return networks


def label_decoders(networks: Networks) -> Tensor:
    """Their parameters, one decoder a row."""
    assert isinstance(networks.labels, SoftmaxLabels)
    return networks.labels.theta.flat


def told_what_is_predicted(networks: Networks, dataset: Dataset, split: str) -> Dataset:
    """The data set with a split in which every prediction is right."""
    own = getattr(dataset, split)
    predicted = class_probabilities(networks, own, seed=0, samples=20).argmax(1)
    return replace(dataset, **{split: replace(own, labels=predicted)})


def test_temperature_is_fitted_to_the_validation_split_alone(tiny, digits):
    config = tiny(data=LABELS, method={"label_particles": 3})
    networks = of_certain_decoders(config)

    def temperature(dataset: Dataset) -> float:
        return label_quality(networks, dataset, config)["calibrated"]["temperature"]

    own = temperature(digits)
    assert temperature(told_what_is_predicted(networks, digits, "test")) == own
    assert temperature(told_what_is_predicted(networks, digits, "validation")) < own


def test_nearest_neighbours_are_looked_for_among_the_labelled_images(tiny):
    """Where the test images are the labelled ones themselves, each is its own neighbour."""
    dataset, config = load("digits", binarization="fixed"), tiny(data=LABELS)
    chosen = labelled_indices(config, dataset)
    train = dataset.train
    same = replace(train, pixels=train.pixels[chosen], labels=train.labels[chosen])
    networks = of_certain_decoders(config)
    found = label_quality(networks, replace(dataset, test=same), config)
    assert found["nearest_neighbour_error"] == 0
    assert label_quality(networks, dataset, config)["nearest_neighbour_error"] > 0


def test_decoder_spread_is_the_deviation_over_the_size(tiny, digits):
    """v, v and -2 v have mean 0: all is deviation. Alike they have none."""
    config = tiny(data=LABELS, method={"label_particles": 3})
    networks = of_certain_decoders(config)
    flat = label_decoders(networks)
    for factors, spread in (((1.0, 1.0, -2.0), 1.0), ((1.0, 1.0, 1.0), 0.0)):
        flat.copy_(torch.tensor(factors)[:, None] * flat[:1].clone())
        found = label_quality(networks, digits, config)["decoder_spread"]
        assert abs(found - spread) < 1e-5
