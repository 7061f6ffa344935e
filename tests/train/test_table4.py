"""Table 4: its cells, the paper's numbers, what the drawing says, a run that is not repeated."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from steinvae import reproduce
from steinvae.config import CLASSES as IN_MEMORY
from steinvae.experiments import table4, table4_cells
from steinvae.experiments.table4_draw import PAPER, draw, group, paper_error
from tests.train.image_trees import CLASSES, VAL, small_config, write_tree


def test_cells_differ_in_what_is_compared_alone():
    cells = table4_cells.cells(table4_cells.BUDGETS["gpu"], None, range(5))
    assert len(cells) == 5 * 7 * 3
    assert len({(cell.row, cell.config.seed) for cell in cells}) == len(cells)
    first = cells[0].config
    assert replace(first, method=cells[1].config.method) == cells[1].config
    assert len({cell.config.method.codes_per_image for cell in cells}) == 1
    for cell in cells:
        assert cell.config.data.split_seed == cell.config.seed
        assert f"{100 * (cell.config.data.label_fraction or 0):.0f} %" in cell.row


def test_nets_of_the_appendix_are_the_papers_setting():
    (cell,) = table4_cells.cells(
        table4_cells.BUDGETS["gpu"], None, (0,), "imagenet", (10,), ("Stein VAE",)
    )
    method, model = cell.config.method, cell.config.model
    assert (method.theta_particles, method.code_particles) == (20, 20)
    assert (model.hidden, model.codes, cell.config.data.crop) == ((64, 128, 256, 512), 25_088, 224)
    assert cell.setting()["crop"] == 224
    assert "image_folder" not in IN_MEMORY


def test_numbers_of_the_paper():
    assert paper_error("Stein VAE, imagenet, 1 %") == pytest.approx(1 - 0.3644)
    assert paper_error("Stein VIWAE, imagenet, 40 %") == pytest.approx(1 - 0.5821)
    assert paper_error("VAE, tiny_imagenet, 10 %") is None
    assert {len(row) for row in PAPER.values()} == {7}


GROUP_OF_FOUR = {"code_particles": 1, "importance_samples": 4}


def record(method: str, split: int, error: float, share: float = 0.1, crop: int = 64) -> list:
    setting = {"label_fraction": share, "steps": 4500, "budget": "cpu", "minutes": 8, "crop": crop}
    setting |= {"classes": 40}
    setting |= {"code_particles": 4} if method != "stein_viwae" else GROUP_OF_FOUR
    base = {"method": method, "seed": split, "setting": setting, "n": 2000}
    values = dict.fromkeys(("label_nll", "label_ece", "single_nll", "temperature"), 0.1)
    values |= {"label_error": error, "single_error": error, "classes": 40}
    values |= {"calibrated_nll": 0.1, "calibrated_ece": 0.1, "parameters": 123456}
    values |= {"cpu_seconds": 480.0}
    return [base | {"metric": name, "value": value} for name, value in values.items()]


def test_table_shows_accuracy_beside_the_paper_and_chance():
    lines = record("stein_vae", 0, 0.90) + record("stein_vae", 1, 0.86) + record("vae", 0, 0.91)
    lines += record("vae", 0, 0.5, 0.2, 224)
    text = draw(lines)
    rows = [" ".join(line.split()) for line in text.splitlines() if line.startswith("|")]
    assert "| Stein VAE | 12.00 ± 2.83 |" in rows
    assert "| Stein VAE, paper, 1,000 classes | 47.83 ± 0.88 |" in rows
    assert any("Stein VAE - VAE | 1 | -1.00 | 1.000 | nothing shown" in row for row in rows)
    assert "2,000 test images of 40 classes (chance: 2.5 %)" in text
    assert text.index("Tiny ImageNet, 64 x 64") < text.index("ImageNet, 224 x 224")
    assert group(lines)["VAE", 20][0]["label_error"] == 0.5
    assert draw([]) == "Not measured yet."


@pytest.mark.parametrize(
    ("changed", "title"),
    [
        ({"minutes": 60.0}, "S = 4: 60 minutes of one core"),
        ({"code_particles": 2}, "S = 2: 8 minutes of one core"),
        ({"zeta": 2000.0}, "S = 4, ζ = 2,000: 8 minutes of one core"),
        ({"classes": 200}, "200 classes, S = 4: 8 minutes of one core"),
    ],
)
def test_cells_of_another_setting_stand_apart(changed, title):
    """An hour of one method is not compared with eight minutes of another."""
    base = record("stein_viwae", 0, 0.90)
    other = [line | {"setting": line["setting"] | changed} for line in record("vae", 0, 0.7)]
    text = draw(base + other)
    assert "S = 4: 8 minutes of one core" in text
    assert title in text
    assert "Stein VIWAE - VAE" not in text
    assert "Stein VIWAE - VAE" in draw(base + record("vae", 0, 0.7))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": "huge"}, "budget must be one of"),
        ({"nets": "resnet"}, "nets must be one of"),
        ({"percent": "3"}, "percent must be among 1,2,5,10,20,30,40"),
        ({"minutes": 0.0}, "minutes must be positive"),
        ({"splits": 0}, "splits must be at least 1"),
    ],
)
def test_wrong_options_are_named(options, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        table4.run(None, (0,), tmp_path / "x.jsonl", tmp_path, **options)


@pytest.mark.parametrize(("budget", "count"), [("cpu", 3), ("gpu", 5)])
def test_splits_are_those_of_the_budget_where_none_are_chosen(budget, count, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(table4, "run_labelled", lambda wanted, *_: asked.append(wanted))

    def splits(*options: str) -> list[int]:
        output = tmp_path / "none.jsonl"
        arguments = [f"--budget={budget}", f"--output={output}", "--slice_minutes=1", *options]
        assert reproduce.main(["table4", *arguments]) == 0
        return sorted({cell.config.seed for cell in asked.pop()})

    assert splits() == list(range(count))
    assert splits("--splits=2") == [0, 1]
    assert splits("--seeds=7,9") == [7, 9]


def test_cells_are_run_once(tmp_path, monkeypatch, capsys, tiny):
    """Records land cell by cell with the steps that the minutes gave; again trains nothing."""
    small = small_config(write_tree(tmp_path / "tree"), tiny().trainer)
    monkeypatch.setattr(table4_cells, "base", lambda budget, nets, root: small)
    monkeypatch.setattr("steinvae.experiments.pilot._TIMED", 1)
    output = tmp_path / "table4.jsonl"
    arguments = (None, (0,), output, tmp_path / "runs")
    options = {"percent": "20", "row": ["VAE"], "minutes": 1e-4}
    text = table4.run(*arguments, **options)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    found = {line["metric"]: line["value"] for line in lines}
    assert {line["experiment"] for line in lines} == {"table4"}
    assert (found["classes"], lines[0]["n"]) == (CLASSES, CLASSES * VAL)
    assert lines[0]["setting"]["classes"] == CLASSES
    assert not any("paper" in line for line in lines)
    time = "(about 0 minutes at 0.0001 minutes a cell)"
    announced = f"1 cell: 0 have records in {output}, 1 to run {time}\n"
    assert capsys.readouterr().out.startswith(announced)
    assert table4.run(*arguments, **options) == text
    shown = capsys.readouterr().out
    assert shown.startswith(f"1 cell: 1 has records in {output}, 0 to run\n")
    assert shown.count("already in") == 1
