"""Table 3: its cells, the paired test, what the drawing says, and a run that is not repeated."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from steinvae import reproduce
from steinvae.experiments import table3, table3_cells
from steinvae.experiments.paired_test import sign_flip_p
from steinvae.experiments.table3_draw import draw, group, paper_error
from steinvae.presets import mnist_labels


@pytest.mark.parametrize("values", [[-1.0, -2.0, 0.5], [0.3, 0.1, 0.2, 0.4, -0.1, 0.2, 0.3]])
def test_permutation_test_is_scipys(values):
    expected = stats.permutation_test(
        (np.array(values),), np.sum, permutation_type="samples", n_resamples=10_000
    )
    assert sign_flip_p(values) == pytest.approx(expected.pvalue, rel=1e-12)


def test_permutation_test_at_its_ends():
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([0.1] * 6) == 2 / 2**6
    with pytest.raises(ValueError, match="1 to 20 differences, got 21"):
        sign_flip_p([1.0] * 21)


def test_cells_of_a_split_differ_in_what_is_compared_alone():
    cells = table3_cells.cells(table3_cells.BUDGETS["gpu"], None, range(20))
    assert len(cells) == 20 * 2 * 4 * 7
    assert len({(cell.row, cell.config.seed) for cell in cells}) == len(cells)
    first = cells[0].config
    same = replace(first, method=cells[1].config.method)
    assert same == cells[1].config
    codes = {cell.config.method.codes_per_image for cell in cells}
    assert len(codes) == 1
    for cell in cells:
        assert cell.config.data.split_seed == cell.config.seed
        assert f"{cell.config.data.labels_per_class} a class" in cell.row


def test_cells_of_some_methods():
    budget = table3_cells.BUDGETS["cpu"]
    chosen = table3_cells.cells(budget, None, (0, 1), ["CNN"], [10], ["vae", "m2"])
    assert [cell.row for cell in chosen] == [f"{m}, CNN, 10 a class" for m in ("VAE", "M1+M2")] * 2


def test_numbers_of_the_paper():
    assert paper_error("Stein VAE, FNN, 10 a class") == pytest.approx(0.0278)
    assert paper_error("Stein VIWAE, CNN, 300 a class") == pytest.approx(0.0086)
    assert paper_error("M1+M2, FNN, 10 a class") is None


def record(method: str, split: int, error: float, **setting) -> list[dict]:
    shared = {"labels_per_class": 10, "steps": 1500, "budget": "small", **setting}
    base = {"method": method, "seed": split, "setting": shared, "device": "cpu, 1 thread"}
    values = dict.fromkeys(("label_nll", "label_ece", "single_nll", "temperature"), 0.1)
    values |= {"label_error": error, "single_error": error, "nearest_neighbour_error": 0.4}
    values |= {"cpu_seconds": 60.0, "calibrated_nll": 0.1, "calibrated_ece": 0.1}
    return [base | {"metric": name, "value": value} for name, value in values.items()]


def test_verdict_needs_six_splits():
    """The same gap on every split: shown by six of them, not by five."""
    for splits, verdict in ((5, "nothing shown"), (6, "lower")):
        lines = [
            line
            for split in range(splits)
            for method, error in (("stein_vae", 0.05), ("vae", 0.06))
            for line in record(method, split, error + 0.001 * split)
        ]
        text = draw(lines)
        (row,) = (line for line in text.splitlines() if "Stein VAE - VAE" in line)
        assert f"-1.00 ± 0.00 | {2 / 2**splits:.3f} | {verdict}" in " ".join(row.split())


def test_table_shows_mean_and_spread_beside_the_paper():
    lines = record("stein_vae", 0, 0.04) + record("stein_vae", 1, 0.06) + record("m2", 0, 0.1)
    text = draw(lines)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "5.00 ± 1.41 (2)" in rows["Stein VAE"]
    assert "10.00 (1)" in rows["M1+M2"]
    assert "2.78 ± 0.24" in rows["Stein VAE, paper"]
    assert "40.00" in rows["nearest neighbour, codes of M1"]
    assert "1.06 ± 0.37" in rows["ladder network, FNN"]
    assert group(lines)["FNN", "Stein VAE", 10][1]["label_error"] == 0.06
    assert draw([]) == "Not measured yet."


def test_guesses_are_rows_of_their_own():
    lines = record("stein_vae", 0, 0.2) + record("stein_vae", 0, 0.1, guess_above=0.8)
    text = draw(lines)
    assert "| Stein VAE + guesses | 10.00 (1)" in " ".join(text.split())
    assert "-10.00 | 1.000 | nothing shown" in " ".join(text.split())
    assert "Guesses, beyond the paper" in text
    alone = draw(record("stein_vae", 0, 0.2))
    assert "Guesses" not in alone
    assert "\n\n\n" not in alone  # no place for a test of nothing


def test_networks_and_budgets_are_apart():
    lines = record("vae", 0, 0.05) + record("vae", 0, 0.02, network="conv")
    lines += record("vae", 0, 0.01, budget="cpu", steps=9000, minutes=40.0)
    lines += record("vae", 0, 0.04, budget="cpu", steps=900, minutes=1.5)
    text = draw(lines)
    assert text.index("cpu: 1.5 minutes") < text.index("4.00") < text.index("cpu: 40 minutes")
    assert "FNN: error %" in text
    assert "CNN: error %" in text
    assert text.index("Budget small") < text.index("Budget cpu")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": "huge"}, "budget must be one of"),
        ({"minutes": 3.0}, "minutes act for cpu and gpu"),
        ({"budget": "cpu", "minutes": 0.0}, "minutes must be positive"),
        ({"splits": 0}, "splits must be at least 1"),
        ({"networks": "RNN"}, "networks must be among FNN,CNN"),
        ({"per_class": "11"}, "per_class must be among 10,60,100,300"),
        ({"methods": "vae,iwae"}, "methods must be among stein_vae,vae,"),
    ],
)
def test_wrong_options_are_named(options, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        table3.run(None, (0,), tmp_path / "x.jsonl", tmp_path, **options)


@pytest.mark.parametrize(("budget", "count"), [("small", 3), ("cpu", 3), ("gpu", 20)])
def test_splits_are_those_of_the_budget_where_none_are_chosen(budget, count, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(table3, "run_labelled", lambda wanted, *_: asked.append(wanted))

    def splits(*options: str) -> list[int]:
        output = tmp_path / "none.jsonl"
        arguments = [f"--budget={budget}", f"--output={output}", "--slice_minutes=1", *options]
        assert reproduce.main(["table3", *arguments]) == 0
        return sorted({cell.config.seed for cell in asked.pop()})

    assert splits() == list(range(count))
    assert splits("--splits=2") == [0, 1]
    assert splits("--seeds=7,9") == [7, 9]


def test_cells_are_run_once(tmp_path, monkeypatch, capsys, tiny):
    """On the digits: records land cell by cell, a second call trains nothing."""
    start = mnist_labels()
    small = tiny(trainer={"max_steps": 4, "baseline": "none"})
    quick = replace(small, data=replace(start.data, name="digits"), method=start.method)
    monkeypatch.setattr(table3_cells, "base", lambda budget, network, root: quick)
    output = tmp_path / "table3.jsonl"
    arguments = (None, (0,), output, tmp_path / "runs")
    some = "stein_vae,stein_viwae,m2,vae_guesses"
    text = table3.run(*arguments, per_class="10", methods=some)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 4 * 13 + 2  # two methods have several label decoders
    assert {line["experiment"] for line in lines} == {"table3"}
    assert [line["paper"] for line in lines if "paper" in line] == [0.0278, 0.0267]
    assert "FNN: error %" in text
    capsys.readouterr()
    assert table3.run(*arguments, per_class="10", methods=some) == text
    assert capsys.readouterr().out.count("already in") == 4
    assert len(output.read_text().splitlines()) == len(lines)
