"""The evaluation of a run as a user calls it, and the verdicts on what each estimate rests on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from steinvae import evaluate, train
from steinvae.config import Config, MethodConfig, ModelConfig
from steinvae.data import load
from steinvae.density import Annealing, Suite, measure_all, negative_log_likelihood
from steinvae.density import suite as suite_module
from steinvae.density.findings import NOTHING, UPPER, Assumption, Finding
from steinvae.evaluation import paired_differences, summary
from steinvae.networks import Networks, build_networks
from steinvae.recognition import make_encoder
from steinvae.report import RECORD_KEYS, read_records

QUICK = ["--images=6", "--samples=40", "--temperatures=6", "--chains=2", "--simulated=3"]
SUITE = Suite(samples=40, annealing=Annealing(temperatures=6, chains=2), simulated=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = ["--trainer.max_steps=10", "--trainer.device=cpu", "--trainer.baseline=none"]
    small = ["--model.codes=3", "--model.hidden=[9]", "--method.theta_particles=2"]
    effort = ["--evaluation.images=5", "--evaluation.samples=20"]
    assert train.main([*settings, *small, *effort, f"--run_dir={folder}"]) == 0
    return folder


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
    ],
)
def test_wrong_option_is_one_line(finished, capsys, option, message):
    assert evaluate.main([str(finished), option]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_run_folder_must_be_named(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--json"])
    assert "name the folder of a finished run" in capsys.readouterr().err


def networks_of(encoder: str, decoders: int = 1) -> Networks:
    config = Config(
        model=ModelConfig(codes=2, hidden=(5,)), method=MethodConfig(theta_particles=decoders)
    )
    networks = build_networks(config, 6, "cpu")
    draws = torch.Generator().manual_seed(0)
    networks.encoder = make_encoder(encoder, 6, (5,), 2, draws)
    return networks


def verdicts(networks: Networks, pixels: torch.Tensor) -> dict[str, str]:
    return {found.estimator: found.holds for found in measure_all(networks, pixels, SUITE)}


def test_injective_encoder_on_bits_holds_throughout():
    found = verdicts(networks_of("flow"), (torch.rand(4, 6) < 0.5).float())
    assert {found[name] for name in ("iw_g(40)", "elbo(40)", "s_elbo(40)", "ais(6x2)")} == {"yes"}
    assert found["bdmc(6x2)"] == "not shown"


def test_folding_encoder_loses_its_elbo_and_keeps_the_rest():
    networks = networks_of("concat")
    with torch.no_grad():
        for parameter in networks.encoder.parameters():
            parameter.mul_(4)
    pixels = (torch.rand(4, 6) < 0.5).float()
    found = {f.estimator: f for f in measure_all(networks, pixels, SUITE)}
    assert found["s_elbo(40)"].diagnostics["minority_of_signs"] > 0.01
    assert found["elbo(40)"].claim == found["s_elbo(40)"].claim == NOTHING
    assert found["iw_g(40)"].claim == found["ais(6x2)"].claim == UPPER


def test_grey_levels_are_no_density():
    found = verdicts(networks_of("flow"), torch.rand(4, 6))
    assert {found[name] for name in ("iw_g(40)", "elbo(40)", "s_elbo(40)", "ais(6x2)")} == {"no"}


def test_bound_by_few_effective_samples_is_called_loose():
    """An encoder far from the posterior: the bound holds, and its evidence says how loose it is."""
    networks, pixels = networks_of("gaussian"), (torch.rand(4, 6) < 0.5).float()
    suite = Suite(estimators=("iw_g",), samples=500)
    networks.theta.flat *= 20  # a narrow posterior
    (loose,) = measure_all(networks, pixels, suite)
    networks.theta.flat *= 0  # the posterior is the prior
    with torch.no_grad():
        for parameter in networks.encoder.parameters():
            parameter.zero_()
    (tight,) = measure_all(networks, pixels, suite)
    assert "the bound is loose" in loose.assumptions[1].evidence
    assert "the bound is loose" not in tight.assumptions[1].evidence
    assert loose.holds == tight.holds == "yes"


def test_a_diagonal_proposal_is_the_one_that_training_reports_by():
    networks, pixels = networks_of("flow"), (torch.rand(4, 6) < 0.5).float()
    suite = Suite(estimators=("iw_g",), samples=40, proposal="diagonal")
    (found,) = measure_all(networks, pixels, suite)
    reported = negative_log_likelihood(networks, pixels, samples=40, seed=0, proposal="diagonal")
    assert (found.estimator, found.value) == ("iw_d(40)", reported.value)


@pytest.mark.parametrize(
    ("estimators", "proposal", "says"),
    [
        (("iw_g",), "fitted", "set evaluation.proposal to diagonal"),
        (("elbo", "units"), "diagonal", "leave it out of --estimators"),
        (("iw_g", "units"), "diagonal", None),
    ],
)
def test_matrices_of_many_codes_are_refused_before_anything_is_made(
    estimators, proposal, says, monkeypatch
):
    monkeypatch.setattr(suite_module, "MOST_CODES", 1)
    suite = Suite(estimators=estimators, samples=10, proposal=proposal)
    found = measure_all(networks_of("flow"), torch.ones(4, 6), suite)
    if says is None:
        assert len(list(found)) == 2
    else:
        with pytest.raises(ValueError, match=says):
            list(found)


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


def test_worst_verdict_counts():
    assert finding("ais(5x2)", [1.0]).holds == "not shown"
    text = summary(Config(), load("digits"), SUITE, [finding("ais(5x2)", [1.0])])
    assert "- c: **not shown** (d)" in text
