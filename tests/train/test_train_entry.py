"""The commands as users run them, on the digits."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from steinvae import evaluate, reproduce, sample, train
from steinvae.data import pack
from steinvae.experiments import mnist_small
from steinvae.experiments.document import insert
from steinvae.folder import choose_run_dir
from steinvae.logging import read_metrics
from steinvae.plan import make_plan
from steinvae.presets import load_preset
from steinvae.run import baseline

ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    "--trainer.max_steps=30",
    "--trainer.validate_every=10",
    "--trainer.log_every=5",
    "--trainer.device=cpu",
    "--evaluation.samples=30",
    "--evaluation.images=10",
]
FILES = {
    "config.yaml",
    "metrics.jsonl",
    "metrics.csv",
    "checkpoints",
    "samples.png",
    "curves.png",
    "report.md",
    "result.json",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run with its baseline beside it."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert train.main([*SHORT, f"--run_dir={folder}"]) == 0
    return folder


def test_run_folder_is_complete(finished):
    assert {path.name for path in finished.iterdir()} >= FILES
    for name in ("samples.png", "curves.png"):
        with Image.open(finished / name) as picture:
            assert min(picture.size) > 100
    records = read_metrics(finished / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 5, 10, 15, 20, 25, 30]
    assert {"train/distortion", "train/stein_discrepancy", "validation/nll"} <= set(records[2])


def test_result_states_the_measurement(finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["method"] == "stein_vae"
    assert (result["data_set"], result["binarization"], result["steps"]) == ("digits", "fixed", 30)
    assert result["seconds"] > 0
    assert result["parameters"] > 1000
    nll = result["nll"]
    assert nll.keys() == {"estimator", "value", "standard_error", "images"}
    assert (nll["estimator"], nll["images"]) == ("iw_g(30)", 10)
    assert 0 < nll["standard_error"] < nll["value"] < 64 * math.log(2)
    beside = result["baselines"][0]
    assert beside["method"] == "vae"
    assert (beside["steps"], beside["nll"]["images"]) == (30, 10)


def test_configuration_of_the_folder_repeats_the_run(finished, tmp_path, capsys):
    again = tmp_path / "again"
    arguments = [f"--config={finished / 'config.yaml'}", f"--run_dir={again}"]
    assert train.main([*arguments, "--trainer.baseline=none"]) == 0
    capsys.readouterr()
    first, second = (json.loads((run / "result.json").read_text()) for run in (finished, again))
    assert first["nll"] == second["nll"]


def test_command_says_where_and_what(tmp_path, capsys):
    folder = tmp_path / "run"
    assert train.main([*SHORT, f"--run_dir={folder}", "--trainer.max_steps=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run folder: {folder}"
    assert "stein_vae: test NLL" in lines[1]
    assert "vae: test NLL" in lines[2]
    assert all("iw_g(30) on 10 images" in line for line in lines[1:3])


def test_one_test_image_has_no_standard_error(tmp_path, capsys):
    """That of data.binarization none is none of a density either, and the report says so."""
    folder = tmp_path / "run"
    one = ["--trainer.max_steps=3", "--evaluation.images=1", "--data.binarization=none"]
    assert train.main([*SHORT, *one, f"--run_dir={folder}"]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["nll"]["standard_error"] is None
    assert result["normalised"] == "no"
    assert "±" not in capsys.readouterr().out
    assert "No density" in (folder / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    "options",
    [
        ["--method.temperature=50", "--method.annealing_steps=2"],
        ["--method.normalise_direction=true"],
        ["--method.mass_rate=0.3", "--model.codes=2"],
        ["--method.name=stein_viwae", "--method.importance_samples=2", "--method.move_codes=true"],
        ["--method.name=vae_weighted_decoder", "--method.entropy_weight=0.5"],
    ],
)
def test_the_baseline_is_a_plain_vae_beside_any_method(options, tmp_path):
    folder = tmp_path / "run"
    assert train.main([*SHORT, "--trainer.max_steps=2", *options, f"--run_dir={folder}"]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert [each["method"] for each in result["baselines"]] == ["vae"]
    assert "No density" not in (folder / "report.md").read_text("utf-8")


@pytest.mark.parametrize("preset", ["digits", "mnist", "mnist_viwae", "paper"])
@pytest.mark.parametrize("particles", [1, 5])
def test_the_baseline_decodes_as_often_as_one_decoder_of_the_method(preset, particles):
    config = load_preset(preset)
    full = replace(config.method, theta_particles=particles, pairing="full")
    own = replace(config, method=full)
    beside = baseline(own)
    assert beside is not None
    assert make_plan(own).decoder_passes == particles * make_plan(beside).decoder_passes


@pytest.mark.parametrize("method", ["vae", "iwae"])
def test_baselines_run_by_themselves(method, tmp_path):
    folder = tmp_path / method
    assert train.main([*SHORT, f"--run_dir={folder}", f"--method.name={method}"]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["method"] == method
    assert len(result["baselines"]) == (method != "vae")


def test_run_is_never_overwritten(finished, capsys):
    before = (finished / "result.json").read_bytes()
    assert train.main([*SHORT, f"--run_dir={finished}"]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert (finished / "result.json").read_bytes() == before


def test_resume_with_other_settings_names_them(finished, capsys):
    arguments = [*SHORT, f"--run_dir={finished}", "--resume=auto", "--model.codes=3", "--seed=9"]
    assert train.main(arguments) == 1
    shown = capsys.readouterr().err
    assert "seed is 9, was 0" in shown
    assert "model.codes is 3, was 8" in shown
    assert f"(--config {finished / 'config.yaml'} brings them)" in shown


def test_default_folder_is_new_for_every_run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny()
    assert choose_run_dir(config) == Path("runs/digits-stein_vae-0")
    assert choose_run_dir(tiny(preset="mnist", seed=3)) == Path("runs/mnist-stein_vae-3")
    for expected in ("digits-stein_vae-0", "digits-stein_vae-0-2", "digits-stein_vae-0-3"):
        folder = choose_run_dir(config)
        assert folder == Path("runs") / expected
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
    Path("runs/digits-stein_vae-0-notes").mkdir()
    Path("runs/digits-stein_vae-00").mkdir()
    assert choose_run_dir(tiny(resume="auto")) == Path("runs/digits-stein_vae-0-3")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data.name=mnist"], "data.root"),
        (["--data.name=mnist", "--data.root=/no/such/folder"], "data.root"),
        (["--trainer.batch_size=5000"], "batch_size"),
    ],
)
def test_run_that_cannot_start_says_why_in_a_line(arguments, named, tmp_path, capsys):
    assert train.main([*arguments, f"--run_dir={tmp_path / 'run'}"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("steinvae.train: ")
    assert named in shown
    assert "Traceback" not in shown


def test_second_process_in_the_same_folder_is_refused(finished, capsys):
    from steinvae.checkpoint import lock_run_dir

    with lock_run_dir(finished):
        assert train.main([*SHORT, f"--run_dir={finished}", "--resume=auto"]) == 1
    assert "in use" in capsys.readouterr().err


def test_a_disk_that_fills_up_is_said_in_a_line(tmp_path, capsys, monkeypatch):
    from steinvae import checkpoint

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    assert train.main([*SHORT, f"--run_dir={tmp_path / 'run'}"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("steinvae.train: cannot write the checkpoint ")
    assert last.endswith("No space left on device; earlier checkpoints are intact")


def test_evaluate_repeats_the_reported_number(finished, capsys):
    assert evaluate.main([f"--run_dir={finished}"]) == 0
    reported = json.loads((finished / "result.json").read_text())["nll"]
    assert json.loads(capsys.readouterr().out)["nll"] == reported


def test_evaluate_takes_settings(finished, capsys):
    arguments = ["--evaluation.samples=60", "--evaluation.images=0"]
    assert evaluate.main([f"--run_dir={finished}", *arguments]) == 0
    nll = json.loads(capsys.readouterr().out)["nll"]
    assert (nll["estimator"], nll["images"]) == ("iw_g(60)", 250)


def test_sample_draws_a_picture(finished, tmp_path):
    output = tmp_path / "grid.png"
    assert sample.main([f"--run_dir={finished}", f"--output={output}", "--count=9"]) == 0
    with Image.open(output) as picture:
        assert picture.size[0] == picture.size[1]


@pytest.mark.parametrize("suffix", sample.FORMATS)
def test_sample_writes_every_format_it_names(finished, suffix, tmp_path):
    output = tmp_path / f"grid{suffix}"
    assert sample.main([str(finished), f"--output={output}", "--count=4"]) == 0
    assert output.stat().st_size > 100


def test_samples_of_a_run_on_a_device_that_is_not_here(finished, tmp_path):
    run, output = Path(shutil.copytree(finished, tmp_path / "run")), tmp_path / "drawn.png"
    config = run / "config.yaml"
    text = config.read_text()
    assert "device: cpu" in text
    config.write_text(text.replace("device: cpu", "device: cuda"))
    assert sample.main([str(run), f"--output={output}", "--count=4"]) == 0
    assert output.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["RUN", "--output=out.txt"], ".png, .jpg"),
        (["RUN", "--output=out"], ".png, .jpg"),
        (["--output=out.png"], "RUN"),
        (["RUN", "--run_dir=RUN", "--output=out.png"], "once"),
    ],
)
def test_sample_names_what_it_takes(arguments, named, capsys):
    with pytest.raises(SystemExit) as ended:
        sample.main(arguments)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_a_file_in_place_of_a_folder_is_named(tmp_path, capsys):
    file = tmp_path / "afile"
    file.touch()
    assert train.main([*SHORT, f"--run_dir={file}"]) == 1
    assert f"run_dir={file} is a file; name a folder" in capsys.readouterr().err
    assert pack.main([str(tmp_path), str(file)]) == 1
    assert f"OUT={file} is a file; name a folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", [evaluate, sample])
def test_unfinished_run_is_named(command, tmp_path, capsys):
    extra = ["--output=x.png"] if command is sample else []
    assert command.main([f"--run_dir={tmp_path}", *extra]) == 1
    assert f"run_dir={tmp_path} holds no config.yaml" in capsys.readouterr().err
    config = {"data": {"name": "digits"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert command.main([f"--run_dir={tmp_path}", *extra]) == 1
    assert "finish the run" in capsys.readouterr().err


def test_reproduce_runs_each_cell_once(tmp_path, monkeypatch, data_root, capsys):
    small = mnist_small.mnist_small()
    small = replace(
        small,
        model=replace(small.model, codes=2, hidden=(8,)),
        trainer=replace(small.trainer, max_steps=4, validate_every=4, device="cpu"),
        evaluation=replace(small.evaluation, images=5, samples=5, validation_images=3),
    )
    monkeypatch.setattr(mnist_small, "mnist_small", lambda: small)
    output = tmp_path / "records.jsonl"
    arguments = [
        "mnist_small",
        f"--data.root={data_root}",
        "--seeds=0,1",
        f"--output={output}",
        f"--run_dir={tmp_path / 'runs'}",
    ]
    assert reproduce.main(arguments) == 0
    first = output.read_text()
    records = [json.loads(line) for line in first.splitlines()]
    assert len(records) == 8
    assert {record["setting"].get("self_term") for record in records} == {
        None,
        "leave_one_out",
        "include",
    }
    shown = capsys.readouterr().out
    assert shown.startswith(f"8 cells: 0 have records in {output}, 8 to run\n")
    assert "nothing was run" not in shown
    assert "minus VAE" in shown
    assert "iw_g(5) on the same 5 test images" in shown
    output.write_text("\n".join(first.splitlines()[:-1]) + "\n")
    assert reproduce.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count("already in") == 7
    assert shown.startswith(f"8 cells: 7 have records in {output}, 1 to run\n")
    assert "nothing was run" not in shown
    assert json.loads(output.read_text().splitlines()[-1])["value"] == records[-1]["value"]
    assert reproduce.main(arguments) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"nothing was run: all records are in {output}; ")
    assert last.endswith("--output mine.jsonl")


def test_reproduce_without_data_says_so(tmp_path, capsys):
    assert reproduce.main(["mnist_small", f"--output={tmp_path / 'r'}"]) == 1
    assert "data.root" in capsys.readouterr().err


DOCUMENT = "# Title\n\n<!-- toy:begin -->\nold\n<!-- toy:end -->\n\nrest\n"


def test_table_goes_between_its_markers(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(DOCUMENT)
    for _ in range(2):
        insert(path, "toy", "| a |")
        assert path.read_text() == DOCUMENT.replace("old", "| a |")


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        DOCUMENT + DOCUMENT,
        "<!-- toy:end --> <!-- toy:begin -->",
        DOCUMENT.replace("toy:end", "end"),
    ],
)
def test_document_without_one_pair_of_markers_is_refused(text, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="toy:begin"):
        insert(path, "toy", "| a |")
    assert path.read_text() == text


def test_documented_table_is_the_one_the_records_give():
    records = ROOT / "docs" / "results" / "mnist_small.jsonl"
    table = mnist_small.table(records, (0, 1, 2))
    assert table in (ROOT / "docs" / "method.md").read_text()
    by_row = {line.split("|")[1].strip(): line for line in table.splitlines() if "±" in line}
    kept, printed = by_row["Stein VAE, leave one out"], by_row[list(mnist_small.ROWS)[-1]]
    assert float(kept.split("|")[-3].split("±")[0]) <= 0  # at or above the VAE
    assert float(printed.split("|")[-3].split("±")[0]) >= 10


def test_the_seed_decides_what_is_sampled(finished, tmp_path):
    pictures = []
    for number, seed in enumerate((0, 0, 1)):
        output = tmp_path / f"{number}.png"
        arguments = [str(finished), f"--output={output}", "--count=4", f"--seed={seed}"]
        assert sample.main(arguments) == 0
        pictures.append(output.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
