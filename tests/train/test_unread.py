"""Settings that a method never reads: named if and only if the bits of an update stay."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from steinvae import train
from steinvae.config import Config, DataConfig, MethodConfig
from steinvae.config.unread import NEEDS, OF_MODEL, READ_BY, SWITCHES, unread, unread_lines
from steinvae.data.count_files import Bags
from steinvae.data.documents import CountDataset, split
from steinvae.networks import build_networks
from steinvae.nonfinite import NonFiniteError
from steinvae.presets import PRESETS, load_preset
from steinvae.run import load_data, measure
from steinvae.trainer import Trainer

OTHER = {
    "self_term": "include",
    "importance_samples": 3,
    "weights": "none",
    "log_q": "kde",
    "theta_particles": 4,
    "pairing": "strat",
    "label_particles": 3,
    "bandwidth": 0.7,
    "bandwidth_factor": 2.0,
    "kernel_block": 2,
    "kernel": "sum",
    "theta_bandwidth": 50.0,
    "regression_steps": 2,
    "code_step": 0.3,
    "iwae_gradient": "dreg",
    "mass_codes": 9,
}
ALWAYS = {
    *("name", "code_particles", "entropy_weight", "zeta", "guess_above", "align_guesses"),
    *("adversarial_radius", "move_codes", "temperature", "annealing_steps"),
    *("normalise_direction", "mass_rate", "fixed_theta", "shared_noise"),
}
"""Read by every method that takes them."""

VIWAE = {"name": "stein_viwae", "importance_samples": 2}
CASES = [
    {"name": "stein_vae"},
    {"name": "stein_vae", "kernel": "linear"},
    {"name": "stein_vae", "mass_rate": 0.3},
    {"name": "stein_vae", "regression_steps": 3},
    {"name": "stein_vae", "theta_particles": 1},
    {"name": "stein_vae", "fixed_theta": True},
    VIWAE,
    VIWAE | {"importance_samples": 1},
    VIWAE | {"weights": "none", "theta_particles": 2},
    VIWAE | {"weights": "paper", "theta_particles": 1},  # a decoder for each of the k codes
    VIWAE | {"weights": "paper", "theta_particles": 1, "importance_samples": 1},
    VIWAE | {"move_codes": True},
    VIWAE | {"kernel": "linear"},
    VIWAE | {"kernel": "linear", "log_q": "kde"},
    {"name": "vae"},
    {"name": "iwae"},
    {"name": "planar_flow"},
    {"name": "vae_weighted_decoder"},
    {"name": "vae_weighted_decoder", "importance_samples": 1},
    {"name": "flow_elbo"},
]
LABELLED = [{"name": name} for name in ("stein_vae", "vae", "m2", "supervised")]
LABELLED += [{"name": "stein_vae", "theta_particles": 1}]


@pytest.fixture
def updated(tiny, digits, tmp_path):
    """All that an update leaves, and the settings it was made by."""

    def make(method: dict, labels: bool) -> tuple[Config, dict[str, Tensor]]:
        config = tiny(
            data={"labels_per_class": 3} if labels else {},
            model={"codes": 3, "hidden": (4,)},
            method={"code_particles": 4, "theta_particles": 2, **method},
            trainer={"batch_size": 6},
        )
        trainer = Trainer(config, digits, tmp_path)
        trainer.update(0, monitor=False)
        return config, trainer.tensors()

    return make


@pytest.mark.parametrize(
    ("method", "labels"),
    [*((case, False) for case in CASES), *((case, True) for case in LABELLED)],
    ids=str,
)
def test_what_is_named_has_no_effect_and_what_is_not_has_one(method, labels, updated):
    """Adam's moments are compared too: its first step hides the length of a gradient."""
    plain, before = updated(method, labels)
    compared = 0
    for name, value in OTHER.items():
        if value == getattr(plain.method, name):
            continue
        try:
            changed, after = updated(method | {name: value}, labels)
        except ValueError:  # refused
            continue
        same = all_equal(before, after)
        assert unread(changed, plain) == ([f"method.{name}"] if same else []), name
        compared += 1
    assert compared > 8


def test_a_root_that_the_digits_do_not_read_is_named():
    """Who forgets --data.name trains on digits, not on the files there."""
    elsewhere = DataConfig(root="/images")
    assert unread(Config(data=elsewhere), Config()) == ["data.root"]
    mnist = replace(elsewhere, name="mnist")
    assert unread(Config(data=mnist), Config(data=replace(mnist, root=None))) == []


def test_every_setting_has_a_place():
    names = {field.name for field in fields(MethodConfig)}
    assert set(OTHER) == set(READ_BY) >= set(SWITCHES)
    assert set(READ_BY) | ALWAYS == names
    assert not set(READ_BY) & ALWAYS
    compared = {f"model.{name}" for name in MODEL} | {f"data.{name}" for name in DATA}
    compared |= {"evaluation.fit_samples", "evaluation.inflation"}
    compared |= {"trainer.precision", "trainer.nonfinite_limit", "data.root"}
    assert compared == {*NEEDS, *(f"model.{name}" for name in OF_MODEL)}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_what_a_preset_sets_is_not_named(name):
    preset = load_preset(name)
    assert unread(preset, preset) == []
    method = replace(preset.method, name="vae", move_codes=False)
    beside = replace(preset, method=method)
    assert unread(beside, preset) == []


def all_equal(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(
        torch.equal(before[key], after[key]) for key in before
    )


MODEL = {
    "encoder": "residual",
    "planar_layers": 3,
    "noise_hidden": 3,
    "flow_blocks": 2,
    "output_scale": 2.0,
    "gamma_shapes": (0.5,),
    "start": "prior",
}


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        *((name, "flow") for name in ("vae", "planar_flow", "stein_vae", "flow_elbo")),
        *(("stein_vae", encoder) for encoder in ("concat", "gaussian", "triangular", "layered")),
        *(("stein_vae", "residual"), ("flow_elbo", "gaussian"), ("flow_elbo", "layered")),
    ],
)
def test_what_of_the_model_is_named(name, encoder, tiny, digits, documents, tmp_path):
    """Of images, and of documents where the encoder is that of layers of gammas."""
    layers = {"decoder": "deep_poisson", "layers": (2, 1)} if encoder == "layered" else {}
    if layers and name == "stein_vae":
        encoder = "gaussian"  # layered is refused
    dataset = documents if layers else digits
    base = tiny(
        model={"codes": 3, "hidden": (4,), "encoder": encoder, **layers},
        data={"name": dataset.name},
        method={"name": name},
    )

    def after(config: Config) -> dict[str, Tensor]:
        trainer = Trainer(config, dataset, tmp_path)
        trainer.update(0, monitor=False)
        return trainer.tensors()

    before, compared = after(base), 0
    for setting, value in MODEL.items():
        if value == getattr(base.model, setting):
            continue
        try:
            changed = replace(base, model=replace(base.model, **{setting: value}))
        except ValueError:  # refused
            continue
        same = all_equal(before, after(changed))
        assert unread(changed, base) == ([f"model.{setting}"] if same else []), setting
        compared += 1
    assert compared >= 5


@pytest.fixture
def documents() -> CountDataset:
    """Of four words among twelve, each once or twice."""
    draws, count = np.random.default_rng(0), 60
    words = np.sort(draws.permuted(np.tile(np.arange(12), (count, 1)), axis=1)[:, :4])
    start = 4 * np.arange(count + 1, dtype=np.int64)
    bags = Bags(start, words.ravel().astype(np.int32), draws.integers(1, 3, 4 * count, np.int32))
    return split("bag_of_words", bags, bags, tuple(f"word{number}" for number in range(12)), {})


DATA = {"workers": 2, "side": 300, "crop": 8, "bad_records": "skip", "binarization": "dynamic"}


@pytest.mark.parametrize("setting", DATA)
@pytest.mark.parametrize("name", ["digits", "bag_of_words"])
def test_what_of_the_data_is_named(name, setting, tiny, tmp_path):
    for part in ("train", "test"):
        lines = [f"1 {number % 5 + 1}:2 {number % 5 + 2}:1" for number in range(30)]
        (tmp_path / f"{part}.feat").write_text("\n".join(lines) + "\n")
    (tmp_path / "vocab.txt").write_text("".join(f"word{number}\n" for number in range(6)))
    if (name, setting) == ("bag_of_words", "bad_records"):
        with (tmp_path / "train.feat").open("a") as file:
            file.write("1 31:2\n")
    base = tiny(data={"name": name, "root": str(tmp_path)})
    changed = replace(base, data=replace(base.data, **{setting: DATA[setting]}))

    def loaded(config: Config) -> list | None:
        try:
            train = load_data(config).train
        except ValueError:  # a bad line
            return None
        draw = torch.Generator().manual_seed(0)
        return train.batch(torch.arange(20), draw).to_dense().tolist()

    same = loaded(base) == loaded(changed)
    assert unread(changed, base) == ([f"data.{setting}"] if same else [])


@pytest.mark.parametrize("name", ["nyt", "rcv1"])
def test_lines_can_be_bad_where_there_are_lines(name):
    base = Config(data=DataConfig(name=name))
    changed = Config(data=DataConfig(name=name, bad_records="skip", binarization="none"))
    bad = ["data.bad_records"] if name == "rcv1" else []
    assert unread(changed, base) == ["data.binarization", *bad]


def test_all_of_the_data_is_read_from_images_in_files():
    base = load_preset("tiny_imagenet")
    data = replace(base.data, workers=1, side=80, crop=48, bad_records="skip")
    assert unread(replace(base, data=data), base) == []


@pytest.mark.parametrize("proposal", ["fitted", "diagonal", "encoder"])
@pytest.mark.parametrize(("setting", "value"), [("fit_samples", 40), ("inflation", 1.5)])
def test_what_of_the_estimate_is_named(proposal, setting, value, tiny, digits):
    base = tiny(evaluation={"proposal": proposal})
    changed = replace(base, evaluation=replace(base.evaluation, **{setting: value}))
    networks = build_networks(base, 64, "cpu")
    before, after = (measure(each, digits, networks).value for each in (base, changed))
    assert unread(changed, base) == ([f"evaluation.{setting}"] if before == after else [])


@pytest.mark.parametrize("policy", ["skip", "raise", "rollback"])
def test_a_limit_of_failures_is_named_where_the_first_ends_the_run(policy, tiny, digits, tmp_path):
    base = tiny(trainer={"on_nonfinite": policy})
    changed = replace(base, trainer=replace(base.trainer, nonfinite_limit=1))

    def sound(config: Config) -> bool | None:
        """Whether a run goes on after an update that was left out; None where it ends."""
        trainer = Trainer(config, digits, tmp_path)
        trainer._rollbacks = 1
        trainer._nonfinite.note(torch.tensor(True), 3)
        try:
            return trainer._sound({})
        except NonFiniteError:
            return None

    same = sound(base) == sound(changed)
    assert unread(changed, base) == (["trainer.nonfinite_limit"] if same else [])


def test_tf32_is_named_where_there_is_no_gpu(tiny, digits, tmp_path, monkeypatch):
    def after(config: Config) -> dict[str, Tensor]:
        trainer = Trainer(config, digits, tmp_path)
        trainer.update(0, monitor=False)
        return trainer.tensors()

    base = tiny()
    changed = replace(base, trainer=replace(base.trainer, precision="tf32"))
    assert all_equal(after(base), after(changed))
    assert unread(changed, base) == ["trainer.precision"]
    for device, has_gpu, named in (
        ("auto", False, True),
        ("auto", True, False),
        ("cuda", 0, False),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=has_gpu: bool(found))
        wanted = replace(changed, trainer=replace(changed.trainer, device=device))
        assert unread(wanted, base) == (["trainer.precision"] if named else [])


def test_reasons_are_given():
    def lines(**method) -> list[str]:
        return unread_lines(Config(method=MethodConfig(**method)), Config())

    assert lines(importance_samples=50) == [
        "method.importance_samples = 50 has no effect on method.name stein_vae "
        "(read by stein_viwae, vae_weighted_decoder, flow_elbo)"
    ]
    assert lines(kernel="linear", bandwidth=2.0) == [
        "method.bandwidth = 2.0 has no effect with method.kernel linear"
    ]
    assert lines(theta_particles=1, theta_bandwidth=2.0) == [
        "method.theta_bandwidth = 2.0 has no effect with one decoder"
    ]
    assert lines(name="stein_viwae", importance_samples=50) == []


def test_command_says_it_once_and_of_the_method_alone(tmp_path: Path, capsys):
    short = ["--trainer.max_steps=1", "--trainer.device=cpu", "--evaluation.images=2"]
    quiet = [*short, "--evaluation.samples=5", f"--run_dir={tmp_path / 'quiet'}"]
    assert train.main([*quiet, "--method.bandwidth=2", "--method.theta_particles=2"]) == 0
    assert "no effect" not in capsys.readouterr().err
    loud = [*short, "--evaluation.samples=5", f"--run_dir={tmp_path / 'loud'}"]
    assert train.main([*loud, "--method.importance_samples=50", "--method.weights=both"]) == 0
    shown = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    assert [line.split(" has ")[0] for line in shown] == [
        "steinvae.train: method.importance_samples = 50",
        "steinvae.train: method.weights = both",
    ]
