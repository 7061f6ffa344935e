"""The evaluation of a run as a user calls it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from steinvae import evaluate, evaluation, train
from steinvae.config import Config
from steinvae.data import load
from steinvae.density import Annealing, Suite, ais, measure_all
from steinvae.density import suite as suite_module
from steinvae.density.findings import UPPER, Assumption, Finding
from steinvae.evaluated import merge
from steinvae.evaluation import paired_differences, summary
from steinvae.model_file import load_model
from steinvae.recognition.conv import ConvPlaneEncoder
from steinvae.report import RECORD_KEYS, read_records
from steinvae.run import measure, read_config
from steinvae.trainer import Trainer
from tests.train.test_verdicts import networks_of

QUICK = ["--images=6", "--samples=40", "--temperatures=6", "--chains=2", "--simulated=3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = ["--trainer.max_steps=10", "--trainer.device=cpu", "--trainer.baseline=none"]
    small = ["--model.codes=3", "--model.hidden=[9]", "--method.theta_particles=2"]
    effort = ["--evaluation.images=5", "--evaluation.samples=20"]
    assert train.main([*settings, *small, *effort, f"--run_dir={folder}"]) == 0
    return folder


@pytest.fixture
def finished(trained, tmp_path) -> Path:
    """A run that has not been evaluated."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def evaluated(run_dir: Path, *options: str) -> dict[str, Any]:
    """evaluation.json after a further evaluation."""
    assert evaluate.main([str(run_dir), *QUICK, *options]) == 0
    return json.loads((run_dir / "evaluation.json").read_text())


def test_a_configuration_file_does_not_undo_the_command_line(finished, tmp_path):
    file = tmp_path / "more.yaml"
    file.write_text("seed: 9\n")
    result = evaluated(finished, "--estimators=iw_g", "--seed=5", f"--config={file}")
    assert {each["evaluation_seed"] for each in result["findings"]} == {5}


def names(result: dict[str, Any]) -> list[str]:
    """Estimators of the mixture, in order."""
    return [each["estimator"] for each in result["findings"] if each["theta"] == "mixture"]


def encode_from_planes(monkeypatch) -> None:
    """From now on runs are loaded with a network whose noise is a plane of 64 numbers."""

    def load(*arguments):
        networks = load_model(*arguments)
        draws = torch.Generator().manual_seed(0)
        networks.encoder = ConvPlaneEncoder(64, (4, 6), 3, draws)
        return networks

    monkeypatch.setattr(evaluation, "load_model", load)


def test_everything_is_printed_and_written(finished, capsys):
    assert evaluate.main([str(finished), *QUICK]) == 0
    printed = capsys.readouterr().out
    assert printed == (finished / "evaluation.md").read_text()
    for word in ("iw_g(40)", "elbo(40)", "s_elbo(40)", "ais(6x2)", "bdmc(6x2)", "active_units"):
        assert word in printed
    assert UPPER in printed
    found = json.loads((finished / "evaluation.json").read_text())["findings"]
    by_name = {(item["estimator"], item["theta"]) for item in found}
    bounds = {
        (f"{name}", theta)
        for theta in ("mixture", "average")
        for name in ("iw_g(40)", "elbo(40)", "s_elbo(40)", "ais(6x2)")
    }
    assert by_name == bounds | {("bdmc(6x2)", "mixture"), ("units(64)", "mixture")}
    assert all(item["images"] == 6 for item in found if item["metric"] == "test_nll")


def test_records_are_tidy_and_replace_those_of_an_earlier_evaluation(finished, capsys):
    for _ in range(2):
        assert evaluate.main([str(finished), *QUICK, "--estimators=iw_g,units"]) == 0
    capsys.readouterr()
    lines = read_records(finished / "evaluation.jsonl")
    assert [line["metric"] for line in lines] == ["test_nll", "test_nll", "active_units"]
    for line in lines:
        assert set(line) >= set(RECORD_KEYS)
        assert line["experiment"] == "evaluation"
        assert line["setting"]["encoder"] == "FlowEncoder"
    found = json.loads((finished / "evaluation.json").read_text())["findings"]
    assert [item["value"] for item in found] == [line["value"] for line in lines]


def test_json_is_printed_on_demand_and_repeats(finished, capsys):
    results = []
    for _ in range(2):
        assert evaluate.main([str(finished), *QUICK, "--json", "--estimators=ais,bdmc"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    values = [[item["value"] for item in result["findings"]] for result in results]
    assert values[0] == values[1]
    assert len(values[0]) == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--estimators=iwg", "estimators must be among iw_g, elbo, ais, bdmc, units, got iwg"),
        ("--images=-1", "--images must be 0"),
        ("--samples=0", "samples must be at least 1"),
        ("--temperatures=0", "temperatures must be at least 1"),
        ("--evaluation.samples=20", "after RUN give --samples"),
        ("--evaluation.images=3", "after RUN give --images"),
        ("--evaluation.proposal=encoder", "after RUN give --estimators elbo"),
        ("--model.encoder=gaussian", "--model.encoder gaussian: of what was trained"),
        ("--model.flow_blocks=2", "--model.flow_blocks 2: of what was trained"),
        ("--method.theta_particles=5", "--method.theta_particles 5: of what was trained"),
        ("--data.name=mnist", "--data.name mnist: of what was trained"),
        ("--trainer.max_steps=99", "--trainer.max_steps 99: does not act on an evaluation"),
        ("--evaluation.validation_images=3", "does not act on an evaluation"),
        ("--trainer.precision=tf32", "does not act on the evaluation of model.network mlp"),
    ],
)
def test_wrong_option_is_one_line(finished, capsys, option, message):
    assert evaluate.main([str(finished), option]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--samples=77", "is for the form RUN; with --run_dir DIR give --evaluation.samples"),
        ("--images=3", "is for the form RUN; with --run_dir DIR give --evaluation.images"),
        ("--estimators=ais", "--estimators is for the form RUN\n"),
        ("--method.theta_particles=5", "of what was trained"),
    ],
)
def test_the_older_form_refuses_what_it_would_not_look_at(finished, capsys, option, message):
    assert evaluate.main([f"--run_dir={finished}", option]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_settings_that_act_are_taken_by_both_forms(finished, capsys):
    found = evaluated(finished, "--estimators=iw_g", "--evaluation.inflation=2", "--data.root=any")
    assert found["findings"][0]["settings"] == {"inflation": 2.0, "fit_samples": 8}
    capsys.readouterr()
    again = ["--evaluation.samples=7", "--evaluation.images=3", "--trainer.threads=1"]
    assert evaluate.main([f"--run_dir={finished}", *again]) == 0
    nll = json.loads(capsys.readouterr().out)["nll"]
    assert (nll["estimator"], nll["images"]) == ("iw_g(7)", 3)


def test_a_setting_that_the_proposal_leaves_unread_is_refused(finished, capsys):
    options = ["--evaluation.proposal=diagonal", "--evaluation.fit_samples=9"]
    assert evaluate.main([str(finished), *options]) == 1
    assert "does not act with evaluation.proposal diagonal" in capsys.readouterr().err


def test_run_is_named_once(finished, capsys):
    with pytest.raises(SystemExit):
        evaluate.main([str(finished), f"--run_dir={finished}"])
    assert "name the run once" in capsys.readouterr().err


def test_what_was_not_measured_again_stays(finished, capsys):
    first = evaluated(finished, "--estimators=iw_g,ais")
    found = evaluated(finished, "--estimators=units")
    assert names(found) == ["iw_g(40)", "ais(6x2)", "units(64)"]
    assert found["differences"] == first["differences"]
    assert len(first["differences"]) == 2
    assert len(read_records(finished / "evaluation.jsonl")) == len(found["findings"])
    assert capsys.readouterr().out.endswith((finished / "evaluation.md").read_text())
    assert len(evaluated(finished, "--estimators=ais", "--chains=3")["findings"]) == 7
    assert evaluated(finished, "--estimators=ais")["differences"] == first["differences"]


def test_more_images_than_there_are_is_said(finished, capsys):
    there = len(load("digits").test)
    found = evaluated(finished, "--estimators=units", "--images=9999")
    assert found["findings"][0]["images"] == there
    said = f"--images 9999: the test split has {there}, all are taken"
    assert said in capsys.readouterr().err


def test_one_simulated_image_proves_no_order(finished):
    options = ["--estimators=bdmc", "--simulated=1", "--temperatures=2", "--chains=1", "--seed=3"]
    (found,) = evaluated(finished, *options)["findings"]
    verdicts = {each["text"]: each["holds"] for each in found["assumptions"]}
    assert verdicts["the bounds are in order"] == "not shown"


def test_another_seed_stands_beside_and_is_told_from_that_of_the_run(finished):
    evaluated(finished, "--estimators=units,iw_g")
    found = evaluated(finished, "--estimators=units", "--seed=7")
    assert names(found) == ["iw_g(40)", "units(64)", "units(64)"]
    assert found["seed"] == 0
    assert [each["evaluation_seed"] for each in found["findings"]] == [0, 0, 0, 7]
    record = read_records(finished / "evaluation.jsonl")[-1]
    assert (record["seed"], record["setting"]["evaluation_seed"]) == (0, 7)
    text = (finished / "evaluation.md").read_text()
    assert ", seed 0\n" in text
    assert "| seed 7 " in text


def test_findings_of_other_parameters_do_not_stay(finished, capsys):
    evaluated(finished, "--estimators=iw_g")
    parameters = load_file(finished / "model.safetensors")
    save_file({**parameters, "theta": parameters["theta"] + 1}, finished / "model.safetensors")
    capsys.readouterr()
    assert names(evaluated(finished, "--estimators=units")) == ["units(64)"]
    assert "is of other parameters" in capsys.readouterr().err


def test_findings_of_another_test_split_are_neither_lost_nor_mixed_in(finished, capsys):
    before = evaluated(finished, "--estimators=units")
    options = ["--estimators=units", "--data.binarization=none"]
    assert evaluate.main([str(finished), *QUICK, *options]) == 1
    assert "is of another test split, digits (fixed)" in capsys.readouterr().err
    assert json.loads((finished / "evaluation.json").read_text()) == before


def test_a_kill_leaves_what_was_done(finished, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite_module, "ais", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main([str(finished), *QUICK])
    found = json.loads((finished / "evaluation.json").read_text())
    assert names(found) == ["iw_g(40)", "elbo(40)", "s_elbo(40)"]
    assert len(read_records(finished / "evaluation.jsonl")) == 6
    assert "s_elbo(40)" in (finished / "evaluation.md").read_text()
    monkeypatch.undo()
    rest = evaluated(finished, "--estimators=ais,bdmc")
    assert names(rest) == ["iw_g(40)", "elbo(40)", "s_elbo(40)", "ais(6x2)", "bdmc(6x2)"]


def test_what_cannot_be_computed_is_left_out_unless_it_is_named(finished, capsys, monkeypatch):
    encode_from_planes(monkeypatch)
    found = evaluated(finished)
    assert names(found) == ["iw_g(40)", "ais(6x2)", "bdmc(6x2)", "units(64)"]
    reason = "ConvPlaneEncoder maps 64 noise dimensions to 3 codes"
    assert reason in found["left_out"]["elbo"]
    assert f"Left out: elbo, since {reason}" in (finished / "evaluation.md").read_text()
    assert capsys.readouterr().err.count("elbo is left out") == 1
    monkeypatch.setattr(suite_module, "importance_weights", lambda *_, **__: pytest.fail("begun"))
    assert evaluate.main([str(finished), *QUICK, "--estimators=iw_g,elbo"]) == 1
    assert f"elbo cannot be computed: {reason}" in capsys.readouterr().err


def test_run_folder_must_be_named(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--json"])
    assert "name the folder of a finished run" in capsys.readouterr().err


def finding(estimator: str, nll: list[float], theta: str = "mixture") -> Finding:
    values = torch.tensor(nll, dtype=torch.float64)
    return Finding(
        estimator=estimator,
        metric="test_nll",
        value=values.mean().item(),
        standard_error=None,
        images=len(nll),
        bounds=UPPER,
        assumptions=(Assumption("a", "yes", "b"), Assumption("c", "not shown", "d")),
        theta=theta,
        per_image=values,
    )


def test_differences_are_paired_by_image_and_treatment():
    findings = [finding("ais(5x2)", [1.0, 5.0]), finding("iw_g(9)", [2.0, 6.2])]
    findings += [finding("iw_g(9)", [3.0, 3.0], "average")]
    (difference,) = paired_differences(findings)
    assert difference["value"] == pytest.approx(1.1)
    assert difference["standard_error"] == pytest.approx(0.1)
    assert (difference["estimator"], difference["minus"]) == ("iw_g(9)", "ais(5x2)")


def test_parameters_of_another_shape_or_name_are_refused_whole():
    """Of one decoder, which would broadcast to two; of a flow, which has all that is Gaussian."""
    one, two = networks_of("flow"), networks_of("flow", decoders=2)
    kept = two.theta.flat.clone()
    with pytest.raises(ValueError, match=r"theta expected shape \(2, \d+\), got \(1, \d+\)"):
        two.load(one.tensors())
    assert torch.equal(two.theta.flat, kept)
    with pytest.raises(ValueError, match="unexpected encoder"):
        networks_of("gaussian").load(one.tensors())
    with pytest.raises(ValueError, match="missing encoder"):
        one.load(networks_of("gaussian").tensors())


def test_a_model_file_of_other_networks_is_named(finished):
    config = read_config(finished)
    other = replace(config, method=replace(config.method, theta_particles=5))
    with pytest.raises(ValueError, match=r"model\.safetensors is not of the networks"):
        load_model(finished, other, 64)


def test_worst_verdict_counts():
    assert finding("ais(5x2)", [1.0]).holds == "not shown"
    found = {"findings": [finding("ais(5x2)", [1.0]).as_dict()], "differences": []}
    found |= {"left_out": {}, "seed": 0, "model": "ab", "test_split": "cd"}
    text = summary(Config(), load("digits"), found)
    assert "- c: **not shown** (d)" in text


@pytest.mark.parametrize(
    "changed",
    [{"inflation": 2.0}, {"fit_samples": 30}, {"proposal": "diagonal"}, {"proposal": "encoder"}],
    ids=str,
)
def test_settings_of_the_estimate_act_where_a_run_measures(changed, tiny, digits, tmp_path):
    """On the reported NLL, and on that of validation, which chooses the parameters."""
    found = []
    for settings in ({}, changed):
        config = tiny(evaluation=settings)
        trainer = Trainer(config, digits, tmp_path)
        reported = measure(config, digits, trainer.networks)
        found.append((reported.value, trainer.validate().value))
    plain, other = found
    assert plain[0] != other[0]
    assert plain[1] != other[1]


@pytest.mark.parametrize(
    "changed", [{"inflation": 2.0}, {"fit_samples": 100}, {"seed": 5}, {"proposal": "diagonal"}]
)
def test_what_a_finding_was_measured_with_acts_on_its_value(changed):
    networks, pixels = networks_of("flow"), (torch.rand(4, 6) < 0.5).float()
    suites = (Suite(estimators=("iw_g",), samples=40, **each) for each in ({}, changed))
    (plain,), (other,) = (measure_all(networks, pixels, suite) for suite in suites)
    assert plain.value != other.value


def test_a_difference_goes_with_the_value_it_was_made_of():
    """A number measured again in the same way that came out otherwise, by other code say."""
    same = {"theta": "mixture", "images": 6, "evaluation_seed": 0, "settings": {}}
    old = {"estimator": "iw_g(40)", "value": 1.0, **same}
    ais = {"estimator": "ais(6x2)", "value": 2.0, **same}
    difference = {
        **{"estimator": "iw_g(40)", "minus": "ais(6x2)", "value": -1.0, "minus_settings": {}},
        **same,
    }
    earlier = {"findings": [old, ais], "differences": [difference]}
    for value, kept in ((1.0, [difference]), (1.5, [])):
        again = {"findings": [old | {"value": value}], "differences": [], "left_out": {}}
        assert merge(earlier, again)["differences"] == kept


def test_annealing_is_of_the_treatment_that_its_finding_names():
    networks, pixels = networks_of("flow", decoders=2), (torch.rand(4, 6) < 0.5).float()
    annealing = Annealing(temperatures=6, chains=2)
    found = list(measure_all(networks, pixels, Suite(estimators=("ais",), annealing=annealing)))
    assert [each.theta for each in found] == ["mixture", "average"]
    for each in found:
        direct = ais(networks, pixels, replace(annealing, theta=each.theta), seed=0)
        torch.testing.assert_close(each.per_image, -direct.lower, rtol=0, atol=0)


def test_the_steps_are_those_of_the_model_while_the_run_is_extended(finished):
    path = finished / "config.yaml"
    path.write_text(path.read_text().replace("max_steps: 10\n", "max_steps: 99\n"))
    assert read_config(finished).trainer.max_steps == 99
    evaluated(finished, "--estimators=elbo")
    lines = read_records(finished / "evaluation.jsonl")
    assert {each["setting"]["steps"] for each in lines} == {10}
    (finished / "result.json").write_text("{")
    assert evaluate.main([str(finished), *QUICK]) == 1
