"""Table 1: fair cells, nothing done twice, slices that make a whole, and a table from records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from steinvae import checkpoint
from steinvae._atomic import InUseError
from steinvae.checkpoint import lock_run_dir
from steinvae.density import Annealing, Suite
from steinvae.experiments import measured, pilot, table1
from steinvae.experiments.cells import Cell, train_cell
from steinvae.experiments.table1_cells import METHODS, ROWS, cells, dynamic, method
from steinvae.experiments.table1_draw import CONTROL, IWAE, VAE, VIWAE, Drawing, draw, short
from steinvae.plan import make_plan
from steinvae.presets import load_preset
from steinvae.report import append_records, tidy_record
from steinvae.signals import OUT_OF_TIME, Interrupted, StopRequest
from steinvae.trainer import Trainer

SUITE = Suite(
    estimators=("iw_g", "elbo", "units"),
    samples=20,
    annealing=Annealing(temperatures=4, chains=2),
)
IMAGES = 6


@pytest.mark.parametrize("budget", table1.BUDGETS)
def test_cells_are_distinct_and_equal_in_decoder_passes(budget):
    made = cells(table1.base(budget, None), (0, 1))
    keys = {(c.config.method.name, c.config.seed, str(c.setting())) for c in made}
    assert len(keys) == len(made) == 2 * len(ROWS)
    assert len({make_plan(cell.config).decoder_passes for cell in made}) == 1


def test_preset_is_the_row_of_moved_codes():
    (cell,) = cells(table1.base("cpu", None), (0,), ["moved_codes"])
    preset = load_preset("mnist_viwae")
    assert (preset.model, preset.method) == (cell.config.model, cell.config.method)


def test_cells_of_some_methods():
    made = cells(table1.base("cpu", None), (0, 2), ["control", "moved_codes"])
    assert [(cell.row, cell.config.seed) for cell in made] == [
        (CONTROL, 0),
        (CONTROL, 2),
        ("Stein VIWAE, moved codes", 0),
        ("Stein VIWAE, moved codes", 2),
    ]
    assert set(METHODS.values()) == set(ROWS)


def test_weighted_methods_share_k_with_iwae():
    base = table1.base("small", None)
    assert method(base, IWAE).code_particles == 10
    for row in (VIWAE, CONTROL):
        assert (method(base, row).code_particles, method(base, row).importance_samples) == (1, 10)


def test_a_second_call_repeats_nothing(tiny, digits, tmp_path, monkeypatch):
    cell = Cell(VIWAE, tiny(method=vars(_weighted(tiny))))
    output = tmp_path / "records.jsonl"
    with StopRequest() as stop:
        arguments = ("t", [cell], SUITE, IMAGES, output, tmp_path, stop, digits)
        measured.measure_cells(*arguments)
        before = output.read_bytes()
        # An evaluation that stopped before its last estimator repeats that one alone.
        kept = [line for line in before.splitlines(True) if b'"units(64)"' not in line]
        output.write_bytes(b"".join(kept))
        asked: list[tuple[str, ...]] = []
        real = measured.measure_all

        def watched(networks, pixels, suite):
            asked.append(tuple(suite.estimators))
            return real(networks, pixels, suite)

        monkeypatch.setattr(measured, "measure_all", watched)
        monkeypatch.setattr(Trainer, "update", lambda *_, **__: pytest.fail("trained again"))
        measured.measure_cells(*arguments)
        measured.measure_cells(*arguments)
    assert asked == [("units",)]
    again = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert {r["estimator"] for r in again} == {
        "training",
        "iw_g(20)",
        "elbo(20)",
        "s_elbo(20)",
        "units(64)",
    }
    assert len(again) == len(before.splitlines())


def test_slices_make_the_whole_run(tiny, digits, tmp_path, monkeypatch):
    """A slice that ends after 7 updates and one that goes to the end: the same bits as one run."""
    cell = Cell(VIWAE, tiny(method=vars(_weighted(tiny))))
    with StopRequest() as stop:
        train_cell(cell, digits, tmp_path / "whole", stop)
    real = Trainer.update

    def ends_at_seven(self, step, *, monitor):
        if step == 6:
            _end_of_time(stop)
        return real(self, step, monitor=monitor)

    with monkeypatch.context() as patch, StopRequest(1000.0) as stop:
        patch.setattr(Trainer, "update", ends_at_seven)
        with pytest.raises(Interrupted) as ending:
            train_cell(cell, digits, tmp_path / "sliced", stop)
    assert ending.value.number == OUT_OF_TIME
    sliced, whole = (cell.folder(tmp_path / name) for name in ("sliced", "whole"))
    assert _newest(sliced).step == 7
    with StopRequest() as stop:
        train_cell(cell, digits, tmp_path / "sliced", stop)
    one, other = _newest(whole), _newest(sliced)
    assert one.step == other.step == 20
    assert all(tensor.equal(other.tensors[name]) for name, tensor in one.tensors.items())
    assert (sliced / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_cell_is_trained_by_one_process_at_a_time(tiny, digits, tmp_path):
    cell = Cell(VAE, tiny(method={"name": "vae"}))
    folder = cell.folder(tmp_path)
    with lock_run_dir(folder), StopRequest() as stop, pytest.raises(InUseError, match="in use by"):
        train_cell(cell, digits, tmp_path, stop)
    assert sorted(path.name for path in folder.iterdir()) == [".lock"]


def test_a_slice_ends_by_the_clock(tiny, digits, tmp_path):
    """The alarm of a very short slice stops a run of a million updates at a step boundary."""
    cell = Cell(VAE, tiny(method={"name": "vae"}, trainer={"max_steps": 10**6}))
    with pytest.raises(Interrupted) as ending, StopRequest(0.5) as stop:
        train_cell(cell, digits, tmp_path, stop)
    assert ending.value.number == OUT_OF_TIME
    assert 0 < _newest(cell.folder(tmp_path)).step < 10**6


def test_the_pilot_runs_once(tiny, digits, tmp_path, monkeypatch):
    cell = Cell(VAE, tiny(method={"name": "vae"}), minutes=0.01)
    timed = pilot.with_steps(cell, digits, tmp_path)
    steps = timed.config.trainer.max_steps
    found = json.loads((cell.folder(tmp_path) / pilot.PILOT).read_text("utf-8"))
    assert steps == timed.config.optimizer.decay_steps == found["steps"]
    assert steps == max(1, round(0.6 / found["seconds_per_step"]))
    monkeypatch.setattr(pilot, "pilot", lambda *_: pytest.fail("measured again"))
    assert pilot.with_steps(cell, digits, tmp_path) == timed
    with pytest.raises(ValueError, match=r"minutes 0\.01, got 2"):
        pilot.with_steps(replace(cell, minutes=2), digits, tmp_path)
    untimed = replace(cell, minutes=None)
    assert pilot.with_steps(untimed, digits, tmp_path) is untimed


def test_a_pilot_is_run_by_one_process_at_a_time(tiny, digits, tmp_path, monkeypatch):
    """A second one would write other steps than those that the first then trains for."""
    cell = Cell(VAE, tiny(method={"name": "vae"}), minutes=0.01)
    folder, measured_once = cell.folder(tmp_path), pilot.pilot
    with lock_run_dir(folder), pytest.raises(InUseError, match="in use by"):
        pilot.with_steps(cell, digits, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [".lock"]

    def beside(*arguments):
        with pytest.raises(InUseError, match="in use by"):
            pilot.with_steps(cell, digits, tmp_path)
        return measured_once(*arguments)

    monkeypatch.setattr(pilot, "pilot", beside)
    steps = pilot.with_steps(cell, digits, tmp_path).config.trainer.max_steps
    with lock_run_dir(folder):  # its steps are known, and are read while it is trained
        assert pilot.with_steps(cell, digits, tmp_path).config.trainer.max_steps == steps


def test_records_of_another_machine_count_whatever_its_steps(tiny, digits, tmp_path):
    """Without run folders: all records of one run are enough, those of two runs are not."""
    cell = Cell(VAE, tiny(method={"name": "vae"}), minutes=0.01)
    output, suites = tmp_path / "records.jsonl", [(SUITE, IMAGES)]
    with StopRequest() as stop:
        arguments = (SUITE, IMAGES, output, tmp_path, stop, digits)
        measured.measure_cells("t", [cell.of_steps(7)], *arguments)
    assert measured.has_all(cell, suites, output)
    assert not measured.has_all(replace(cell, minutes=0.02), suites, output)
    lines = output.read_text("utf-8").splitlines(True)
    units = [line for line in lines if '"units(64)"' in line]
    assert units
    output.write_text("".join(line for line in lines if line not in units), "utf-8")
    assert not measured.has_all(cell, suites, output)
    with output.open("a", encoding="utf-8") as file:
        file.writelines(line.replace('"steps": 7', '"steps": 8') for line in units)
    assert not measured.has_all(cell, suites, output)


def test_what_the_documents_show_is_not_run_again():
    """Cells of an hour are found in a clone that has no run folders."""
    output = Path(__file__).resolve().parents[2] / "docs" / "results" / "table1.jsonl"
    made = cells(table1.base("cpu", None), (0,), ["vae", "iwae", "control"], table1.MINUTES)
    suites = [(table1.SUITE, table1.IMAGES)]
    assert all(measured.has_all(cell, suites, output) for cell in made)


def test_every_time_has_a_table_of_its_own(tmp_path):
    base = table1.base("cpu", None)
    for minutes, nll in ((60.0, 90.0), (5.0, 100.0)):
        append_records(tmp_path / "r.jsonl", _synthetic(base, VAE, 0, nll, minutes=minutes))
    text = table1.table(tmp_path / "r.jsonl", (0,))
    five, hour = text.index(" 5 minutes of one core"), text.index(" 60 minutes of one core")
    assert five < text.index("100.5") < hour < text.index("90.5")
    assert text.count("100.5") == text.count("90.5") == 1


def test_numbers_of_a_row_are_of_one_run():
    """A newer run of other steps counts when all of it is measured, and then alone."""
    base = table1.base("cpu", None)
    old = _synthetic(base, VAE, 0, 90.0, minutes=60.0)
    new = [
        record | {"setting": record["setting"] | {"steps": 77}}
        for record in _synthetic(base, VAE, 0, 80.0, minutes=60.0)
    ]
    half = [record for record in new if not record["estimator"].startswith("ais")]
    before, half_way, after = (
        draw("T", base, (0,), [*old, *more], 60.0) for more in ((), half, new)
    )
    assert half_way == before
    row = next(line for line in after.splitlines() if line.startswith("| VAE "))
    numbers = [cell.strip() for cell in row.strip("|").split("|")][3:8]
    assert numbers == ["82.0", "81.0", "80.5", "80.0", "77"]


def test_options_out_of_range_are_named(tmp_path):
    arguments = (None, (0,), tmp_path / "r.jsonl", tmp_path)
    with pytest.raises(ValueError, match="budget must be one of"):
        table1.run(*arguments, budget="tiny")
    with pytest.raises(ValueError, match="minutes must be positive"):
        table1.run(*arguments, minutes=0.0)
    with pytest.raises(ValueError, match="minutes act for budgets cpu and gpu"):
        table1.run(*arguments, minutes=5.0)


def test_the_table_is_drawn_from_records():
    base = table1.base("small", None)
    records = [
        record
        for row, nll in ((VAE, 110.0), (IWAE, 106.0), (CONTROL, 102.0), (VIWAE, 102.5))
        for seed in (0, 1)
        for record in _synthetic(base, row, seed, nll + seed)
    ]
    text = draw("Title", base, (0, 1), records)
    line = next(line for line in text.splitlines() if line.startswith("| Stein VIWAE  "))
    cells_ = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells_[1] == "83.01, 82.88"
    assert cells_[5:8] == ["103.5 ± 0.5", "103.0 ± 0.5", "6,000"]  # iw_g, AIS, steps
    assert "103.5 ± 0.5 (no bound)" not in line
    verdicts = {
        (cells[0].strip(), cells[1].strip()): cells[3].strip()
        for row in text.splitlines()
        if row.count("|") == 5
        for cells in [row.strip("|").split("|")]
    }
    assert verdicts["Stein VIWAE below VAE by 3 nats", "ais"] == "yes"
    control = "Stein VIWAE below the control by 1 nat: a gain of the Stein encoder"
    assert verdicts[control, "ais"] == "**no**"
    assert "| Stein VIWAE" in short({"title": Drawing(base, (0, 1), records)})
    assert "-7.50 ± 0.00" in text  # paired: the seeds' common shift is not in the error


def test_s_elbo_is_held_against_ais_by_each_of_its_efforts():
    """The column is that of the effort all rows have, 1 above AIS; with more samples it is 0.4."""
    base = table1.base("small", None)
    rows = [r for row in (VAE, VIWAE) for r in _synthetic(base, row, 0, 100.0)]
    (coarse,) = (r for r in rows if r["method"] == "stein_viwae" and r["estimator"] == "s_elbo(9)")
    fine = {**coarse, "estimator": "s_elbo(90)", "value": 100.4}
    text = draw("Title", base, (0,), [*rows, fine])
    held = [line for line in text.splitlines() if line.startswith("| S-ELBO within")]
    assert [line.split("|")[2].strip() for line in held] == ["s_elbo(9)", "s_elbo(90)"]
    assert [line.split("|")[3].strip() for line in held] == ["1.00", "0.40"]
    line = next(line for line in text.splitlines() if line.startswith("| Stein VIWAE"))
    assert [cell.strip() for cell in line.strip("|").split("|")][4] == "101.0"


def test_only_the_rows_held_against_ais_have_the_finer_s_elbo():
    fine = (table1.FINE, table1.IMAGES)
    small = cells(table1.base("small", None), (0,))
    assert {cell.row for cell in small if fine in table1.suites(cell)} == {
        "Stein VIWAE",
        "Stein VIWAE, linear kernel",
        "Stein VIWAE, moved codes",
    }
    timed = cells(table1.base("cpu", None), (0,), minutes=60.0)
    assert not any(fine in table1.suites(cell) for cell in timed)


def test_an_encoder_without_a_density_is_flagged():
    base = table1.base("small", None)
    records = _synthetic(base, VIWAE, 0, 100.0, holds="no")
    assert "101.0 (no bound)" in draw("Title", base, (0,), records)


def test_a_budget_without_records_says_so():
    assert draw("T", table1.base("cpu", None), (0,), []) == "### T\n\nNot measured yet."


def _weighted(tiny):
    base = tiny()
    return replace(base.method, name="stein_viwae", code_particles=1, importance_samples=4)


def _newest(folder: Path) -> checkpoint.Checkpoint:
    path = checkpoint.latest(folder)
    assert path is not None
    return checkpoint.load(path)


def _end_of_time(stop: StopRequest) -> None:
    stop._handle(OUT_OF_TIME, None)


def _synthetic(base, row, seed, nll, holds="yes", minutes=None):
    cell = Cell(row, replace(base, seed=seed, method=method(base, row)), minutes)
    notes = {"theta": "mixture", "bounds": "above", "holds": holds}
    values = (
        ("ais(9x9)", "test_nll", nll),
        ("iw_g(9)", "test_nll", nll + 0.5),
        ("elbo(9)", "test_nll", nll + 2),
        ("s_elbo(9)", "test_nll", nll + 1),
        ("training", "parameters", 100),
        ("training", "cpu_seconds", 7.0),
    )
    return [
        tidy_record(
            experiment="table1",
            method=cell.config.method.name,
            setting=cell.setting() | ({} if name == "training" else notes),
            seed=seed,
            metric=metric,
            value=value,
            stderr=1.5,
            n=200,
            estimator=name,
            seconds=1.0,
            device="cpu, 1 thread",
        )
        for name, metric, value in values
    ]


def test_the_kernel_of_a_row_is_not_its_presets():
    """Printed rows have a kernel of distances, whatever the preset is best with."""
    for budget in ("small", "cpu"):
        made = {cell.row: cell.config.method for cell in cells(table1.base(budget, None), (0,))}
        kernels = {row: method.kernel for row, method in made.items() if method.is_stein}
        assert kernels == {
            "Stein VIWAE": "joint",
            "Stein VAE": "joint",
            "Stein VIWAE, moved codes": "joint",
            "Stein VIWAE, linear kernel": "linear",
            "Stein VAE, linear kernel": "linear",
        }


def test_a_gpu_multiplies_in_tf32_and_its_records_say_so():
    on_gpu, on_cpu = (cells(dynamic(None, at), (0,), ["vae"], 60.0)[0] for at in ("cuda", "cpu"))
    assert on_gpu.setting()["precision"] == "tf32"
    assert "precision" not in on_cpu.setting()
