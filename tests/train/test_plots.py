"""Pictures, reports and records of a run."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steinvae import plots, report
from steinvae.logging import MetricsWriter
from steinvae.plots import curves, save_curves, save_samples, tile
from steinvae.report import append_records, markdown_table, read_records, tidy_record, write_report

RESULT = {
    "method": "stein_vae",
    "data_set": "digits",
    "binarization": "fixed",
    "steps": 3000,
    "seconds": 45.25,
    "parameters": 123456,
    "nll": {"estimator": "iw_g", "value": 21.345, "standard_error": 0.312, "images": 250},
    "seed": 0,
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "commit": None,
}


def record(**changes):
    fields = {
        "experiment": "mnist_small",
        "method": "vae",
        "setting": {"seed_of": "data", "batch": 32},
        "seed": 1,
        "metric": "nll",
        "value": 134.7,
        "stderr": 0.4,
        "n": 10_000,
        "estimator": "iw_g",
        "seconds": 60.5,
        "device": "cpu",
    }
    return tidy_record(**fields | changes)


def test_a_grid_shows_every_image_in_its_place():
    images = np.arange(5, dtype=np.float32)[:, None, None] / 10 * np.ones((5, 2, 2), np.float32)
    mosaic = tile(images)
    assert mosaic.shape == (2 * 3 + 1, 3 * 3 + 1)
    for index in range(5):
        top, left = index // 3 * 3 + 1, index % 3 * 3 + 1
        assert (mosaic[top : top + 2, left : left + 2] == images[index]).all()
    assert (mosaic[0] == mosaic[3]).all()
    assert len(set(mosaic[0].tolist())) == 1


def test_samples_are_drawn_black_on_white(tmp_path):
    images = torch.zeros(9, 6)
    images[4] = 1.0
    images[0] = 7.0  # clipped
    save_samples(tmp_path / "samples.png", images, (3, 2))
    pixels = np.asarray(Image.open(tmp_path / "samples.png").convert("L"))
    assert 600 <= max(pixels.shape) <= 1000
    scale = pixels.shape[0] // 13  # 3 rows of 3 pixels in 4 columns' worth, and the gaps
    assert pixels[2 * scale, 2 * scale] == 0
    assert {0, 255} < set(np.unique(pixels).tolist())
    assert os.listdir(tmp_path) == ["samples.png"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 7), r"\(n, 6\) with n >= 1, got \(4, 7\)"),
        (torch.zeros(0, 6), r"got \(0, 6\)"),
        (torch.full((4, 6), float("nan")), "finite, got NaN"),
    ],
)
def test_samples_of_the_wrong_form_are_refused(tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        save_samples(tmp_path / "samples.png", images, (3, 2))
    assert os.listdir(tmp_path) == []


def write_metrics(run_dir: Path) -> Path:
    with MetricsWriter(run_dir, None) as metrics:
        for step in range(0, 500, 25):
            metrics.write(
                step,
                {"train/learning_rate": 1e-3 / (step + 1), "train/negative_elbo": 80.0 - step / 10},
            )
            if step % 100 == 0:
                metrics.write(step, {"validation/negative_elbo": 85.0 - step / 10, "train/x": 1})
        metrics.write(500, {"train/negative_elbo": float("nan")})
    return run_dir / "metrics.jsonl"


def test_curves_group_splits_by_term():
    records = [
        {"step": 1, "train/rate": 2.0, "train/loss": 1, "note": "text"},
        {"step": 2, "train/loss": None, "validation/loss": 3.0, "plain": 4.0, "flag": True},
    ]
    assert curves(records) == {
        "loss": {"train": ([1], [1.0]), "validation": ([2], [3.0])},
        "rate": {"train": ([1], [2.0])},
        "plain": {"train": ([2], [4.0])},
    }
    assert next(iter(curves(records))) == "loss"  # terms with validation points come first


def test_panels_have_labels_units_and_a_marked_validation(tmp_path):
    figure_class, canvas_class = plots.figure_module()
    figure = figure_class()
    canvas_class(figure)
    axes = figure.add_subplot()
    steps = list(range(0, 1001, 10))
    values = [1000.0 if step < 20 else 50.0 - step / 100 for step in steps]
    plots._draw_panel(
        axes, "negative_elbo", {"train": (steps, values), "validation": ([500, 1000], [48.0, 45.0])}
    )
    assert axes.get_xlabel() == "step (minibatch updates)"
    assert axes.get_ylabel() == "nats per image"
    train, validation = axes.get_lines()
    assert (train.get_marker(), validation.get_marker()) == ("None", "o")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "validation"]
    low, high = axes.get_ylim()
    assert 35 < low < 40
    assert 50 < high < 60  # the first steps are cut off


def test_curves_are_drawn_from_the_metrics(tmp_path):
    save_curves(tmp_path / "curves.png", write_metrics(tmp_path))
    picture = Image.open(tmp_path / "curves.png").convert("RGB")
    assert picture.width > 800
    colours = picture.getcolors(maxcolors=2**20)
    assert colours is not None
    assert (214, 39, 40) in {colour for _, colour in colours}  # C3: the validation points


def test_terms_that_never_change_get_no_panel(tmp_path):
    changing, constant = (
        {"loss": {"train": ([1, 2], [1.0, 2.0])}},
        {"n": {"train": ([1, 2], [0.0, 0.0])}},
    )
    assert plots._changes(changing["loss"])
    assert not plots._changes(constant["n"])
    for name, extra in (("few", {}), ("more", {"train/skipped": 0.0})):
        with MetricsWriter(tmp_path / name, None) as metrics:
            for step in range(3):
                metrics.write(step, {"train/loss": 1.0 / (step + 1), **extra})
        save_curves(tmp_path / f"{name}.png", tmp_path / name / "metrics.jsonl")
    few, more = (Image.open(tmp_path / f"{name}.png") for name in ("few", "more"))
    assert few.size == more.size
    assert np.array_equal(np.asarray(few), np.asarray(more))


def test_curves_without_numbers_are_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="expected records with numbers, got none"):
        save_curves(tmp_path / "curves.png", tmp_path / "metrics.jsonl")


def test_a_missing_matplotlib_is_named_with_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call in (
        lambda: save_samples(tmp_path / "x.png", torch.zeros(1, 4), (2, 2)),
        lambda: save_curves(tmp_path / "x.png", write_metrics(tmp_path)),
    ):
        with pytest.raises(ImportError, match="matplotlib, which the extra `train`"):
            call()


def test_importing_the_writers_loads_nothing_heavy():
    program = (
        "import sys; import steinvae.logging, steinvae.plots, steinvae.report, steinvae.data;"
        "print([m for m in ('matplotlib', 'rich', 'sklearn', 'yaml') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_the_result_is_written_whole(tmp_path):
    path = report.write_result(tmp_path, {**RESULT, "extra": [1]})
    assert json.loads(path.read_text()) == {**RESULT, "extra": [1]}
    incomplete = {key: value for key, value in RESULT.items() if key not in ("seed", "nll")}
    with pytest.raises(ValueError, match="lacks nll, seed"):
        report.write_result(tmp_path, incomplete)
    nll = {"estimator": "iw_g", "value": 1.0, "standard_error": 0.1}
    with pytest.raises(ValueError, match=r"\['nll'\] lacks images"):
        report.write_result(tmp_path, {**RESULT, "nll": nll})
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_result(tmp_path, {**RESULT, "seconds": float("nan")})
    assert json.loads(path.read_text())["extra"] == [1]
    assert os.listdir(tmp_path) == ["result.json"]


def test_the_report_shows_the_estimator_the_baselines_and_the_pictures(tmp_path):
    (tmp_path / "samples.png").write_bytes(b"")
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    one_image = {
        "estimator": "other (3 samples)",
        "value": 9.0,
        "standard_error": None,
        "images": 1,
    }
    vae = {**RESULT, "method": "vae", "nll": one_image}
    text = write_report(tmp_path, {**RESULT, "commit": "abc123"}, [vae]).read_text()
    lines = text.splitlines()
    assert lines[0] == "# stein_vae on digits (fixed)"
    assert "| stein_vae |     21.34 ± 0.31 | iw_g              |    250 | 3,000 |" in text
    assert "| vae       |             9.00 | other (3 samples) |      1 |" in text
    assert "`iw_g`: importance sampling from a Gaussian" in text
    assert "upper bound of the NLL" in text
    assert "`other (3 samples)`: what it bounds is not recorded." in text
    assert "![samples](samples.png)" in text
    assert "curves.png" not in text
    assert "```yaml\nseed: 0\n```" in text
    assert "abc123" in text


def test_records_have_the_published_keys_in_order(tmp_path):
    plain, with_paper = record(), record(paper=82.9)
    assert tuple(plain) == report.RECORD_KEYS
    assert list(with_paper)[5:7] == ["value", "paper"]
    assert with_paper["paper"] == 82.9
    append_records(tmp_path / "r.jsonl", [plain])
    append_records(tmp_path / "r.jsonl", [with_paper, plain])
    assert read_records(tmp_path / "r.jsonl") == [plain, with_paper, plain]


def test_records_that_do_not_fit_are_refused_and_change_nothing(tmp_path):
    path = tmp_path / "r.jsonl"
    append_records(path, [record()])
    before = path.read_bytes()
    lacking = {key: value for key, value in record().items() if key != "estimator"}
    with pytest.raises(ValueError, match="record lacks estimator"):
        append_records(path, [record(), lacking])
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_records(path, [record(), record(value=float("nan"))])
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="setting must be flat, got nested model"):
        record(setting={"model": {"codes": 20}})
    os.truncate(path, len(before) - 1)
    with pytest.raises(ValueError, match="the last one is cut short"):
        append_records(path, [record()])


def append_in_turn(path: Path, who: str, count: int) -> None:
    for seed in range(count):
        append_records(path, [dict.fromkeys(report.RECORD_KEYS, 0) | {"seed": seed, "method": who}])


def test_two_commands_lose_no_record_of_one_file(tmp_path):
    """Records are added by writing the whole file anew: without a lock, the last one wins."""
    path, both = tmp_path / "r.jsonl", multiprocessing.get_context("fork")
    commands = [both.Process(target=append_in_turn, args=(path, who, 40)) for who in "ab"]
    for command in commands:
        command.start()
    for command in commands:
        command.join(60)
        assert command.exitcode == 0
    found = [(each["method"], each["seed"]) for each in read_records(path)]
    assert sorted(found) == [(who, seed) for who in "ab" for seed in range(40)]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_link_to_records_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path, link = tmp_path / "elsewhere" / "r.jsonl", tmp_path / "r.jsonl"
    link.symlink_to(path)
    append_records(link, [record()])
    append_records(link, [record()])
    assert link.is_symlink()
    assert len(read_records(path)) == 2


def test_tables_are_aligned_and_escaped():
    rows = [("a|b", 1, "1.25 ± 0.5"), ("line\nbreak", "1,000", "-")]
    assert markdown_table(("name", "n", "score"), rows).splitlines() == [
        "| name       |     n |      score |",
        "| ---------- | ----: | ---------: |",
        "| a\\|b       |     1 | 1.25 ± 0.5 |",
        "| line break | 1,000 |          - |",
    ]
    assert markdown_table(("a",), []).splitlines() == ["| a   |", "| --- |"]
    with pytest.raises(ValueError, match="expected 2 cells a row, got 1"):
        markdown_table(("a", "b"), [("x",)])


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_a_checkout_that_tracks_the_package(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    commit = report.commit.__wrapped__  # asked anew each time
    source = tmp_path / "report.py"
    source.write_text("x = 1\n")
    monkeypatch.setattr(report, "__file__", str(source))
    assert commit() is None  # no checkout
    git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("x")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-qm", "one")
    assert commit() is None  # a checkout of something else
    git(tmp_path, "add", "report.py")
    git(tmp_path, "commit", "-qm", "two")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit() == head
    source.write_text("x = 2\n")
    assert commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit() is None  # no git


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("git", 20), PermissionError(13, "no")])
def test_a_git_that_does_not_answer_costs_no_result(error, monkeypatch):
    """And is asked once."""
    asked = []

    def failing(*arguments, **options):
        asked.append(arguments)
        raise error

    report.commit.cache_clear()
    monkeypatch.setattr(subprocess, "run", failing)
    try:
        assert [report.commit(), report.commit(), len(asked)] == [None, None, 1]
    finally:
        report.commit.cache_clear()


@pytest.mark.parametrize("normalised", ["yes", "no", "not shown"])
def test_report_says_where_the_numbers_are_no_log_density(normalised, tmp_path):
    """A run on grey levels: whether it is the method's own result or that of its baseline."""
    plain, grey = {**RESULT, "normalised": "yes"}, {**RESULT, "normalised": normalised}
    for result, beside in ((grey, []), (plain, [grey])):
        text = write_report(tmp_path, result, beside).read_text()
        assert ("**No density**" in text) == (normalised == "no")
