"""The command that reproduces a table: its options, and what it says with nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from steinvae import reproduce
from steinvae.experiments import cells

ROOT = Path(__file__).resolve().parents[2]
OWN = ("--budget", "--methods", "--minutes", "--slice_minutes")


def refused(argv: list[str], capsys) -> str:
    """The last line of a usage error."""
    with pytest.raises(SystemExit) as ended:
        reproduce.main(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("argv", [["table1", "--help"], ["--help", "table1"]])
def test_help_of_an_experiment_has_its_own_options(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(argv)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"{option} " in shown for option in (*OWN, "--seeds", "--draw"))


def test_help_without_an_experiment_has_what_all_share(capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--seeds " in shown
    assert not any(option in shown for option in OWN)


@pytest.mark.parametrize("option", [["--methods", "nope"], ["--minutes", "5"]])
def test_options_of_what_is_run_are_refused_where_nothing_is(option, capsys):
    last = refused(["table1", "--draw", *option], capsys)
    assert last.endswith(f"error: {option[0]}: of what is run, and --draw runs nothing")


@pytest.mark.parametrize("content", [None, ""])
def test_no_records_are_said_in_a_line(content, tmp_path, capsys):
    output = tmp_path / "none.jsonl"
    if content is not None:
        output.write_text(content)
    assert reproduce.main(["stein_encoder", "--draw", f"--output={output}"]) == 1
    shown = capsys.readouterr()
    assert shown.err == f"steinvae.reproduce: no records in {output}\n"
    assert not shown.out


@pytest.mark.parametrize("name", ["mnist_small", "stein_encoder"])
def test_no_records_of_these_seeds_are_said_in_a_line(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert reproduce.main([name, "--draw", "--seeds=77"]) == 1
    assert "no records of seeds 77 in docs" in capsys.readouterr().err


def test_seeds_that_are_no_numbers_are_shown_how(capsys):
    assert "expected numbers such as 0,1,2, got a" in refused(["table1", "--seeds", "a"], capsys)


def test_a_table_whose_records_are_there_needs_no_data(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert reproduce.main(["table1", "--data.root=/no/such/folder"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "30 cells: 30 have records in docs/results/table1.jsonl, 0 to run"
    assert shown[-1].startswith("nothing was run: all records are in docs/results/table1.jsonl; ")


@pytest.mark.parametrize(
    ("missing", "time"),
    [
        ([], ""),
        ([None, None], ""),
        ([60.0] * 3, " (about 3 h at 60 minutes a cell)"),
        ([1.5, 2.0], " (about 4 minutes)"),
    ],
)
def test_the_work_is_announced(missing, time, capsys):
    cells.announce(63, Path("x.jsonl"), missing)
    there, rest = 63 - len(missing), len(missing)
    expected = f"63 cells: {there} have records in x.jsonl, {rest} to run{time}\n"
    assert capsys.readouterr().out == expected
