"""The command that reproduces a table: its options, and what it says with nothing to do."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("name", reproduce.EXPERIMENTS)
def test_no_records_of_these_seeds_are_said_in_a_line(name, tmp_path, monkeypatch, capsys):
    """And no page loses its table."""
    monkeypatch.chdir(ROOT)
    page = tmp_path / "page.md"
    page.write_text(text := f"<!-- {name}:begin -->\nold\n<!-- {name}:end -->\n")
    assert reproduce.main([name, "--draw", "--seeds=77", f"--document={page}"]) == 1
    shown = capsys.readouterr()
    expected = f"no records of seeds 77 in docs/results/{name}.jsonl"
    assert (shown.out, shown.err) == ("", f"steinvae.reproduce: {expected}\n")
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("name", "method"), [("figure1", "exact"), ("figure2", "gibbs"), ("poisson_small", "gibbs")]
)
def test_a_floor_alone_is_no_table(name, method, tmp_path, capsys):
    lines = (ROOT / "docs" / "results" / f"{name}.jsonl").read_text().splitlines()
    output = tmp_path / "records.jsonl"
    output.write_text("".join(f"{one}\n" for one in lines if json.loads(one)["method"] == method))
    assert reproduce.main([name, "--draw", f"--output={output}"]) == 1
    assert f"no records of seeds 0,1,2 in {output}" in capsys.readouterr().err


def test_a_summary_without_a_row_is_not_written(tmp_path, capsys):
    """Records of a GPU alone: none of them is of the table's short form."""
    lines = (ROOT / "docs" / "results" / "table1.jsonl").read_text().splitlines()
    timed = []
    for record in map(json.loads, lines):
        if "minutes" in record["setting"]:  # as if measured there
            setting = record["setting"] | {"precision": "tf32"}
            timed.append(json.dumps(record | {"device": "cuda", "setting": setting}))
    output, page = tmp_path / "records.jsonl", tmp_path / "page.md"
    output.write_text("\n".join(timed) + "\n")
    page.write_text(text := "<!-- table1:begin -->\nold\n<!-- table1:end -->\n")
    arguments = ["table1", "--draw", f"--output={output}"]
    assert reproduce.main(arguments) == 0
    assert reproduce.main([*arguments, f"--summary={page}"]) == 1
    assert "for a summary" in capsys.readouterr().err
    assert page.read_text() == text


@pytest.mark.parametrize("name", ["table3", "table4"])
def test_splits_are_drawn_by_name_or_all(name, monkeypatch, capsys):
    def drawn(*options: str) -> str:
        assert reproduce.main([name, "--draw", *options]) == 0
        return capsys.readouterr().out

    monkeypatch.chdir(ROOT)
    one, every = drawn("--seeds=0"), drawn()
    assert drawn("--seeds=0,1,2,3,4,5") == every != one
    page = {"table3": "labels", "table4": "table4"}[name]
    begin, end = (f"<!-- {name}:{part} -->" for part in ("begin", "end"))
    inside = (ROOT / "docs" / f"{page}.md").read_text().split(begin)[1].split(end)[0]
    assert every.startswith(inside)


def test_a_slice_that_ends_before_its_first_cell_writes_nothing(tmp_path, monkeypatch, capsys):
    from steinvae.experiments import table4

    monkeypatch.setattr(table4, "run", lambda *_, **__: "")
    page = tmp_path / "page.md"
    arguments = ["table4", f"--output={tmp_path / 'none.jsonl'}", f"--document={page}"]
    assert reproduce.main([*arguments, "--slice_minutes=1"]) == 0
    assert capsys.readouterr().out == f"no records in {tmp_path / 'none.jsonl'}\n"
    assert not page.exists()


def test_seeds_that_are_no_numbers_are_shown_how(capsys):
    assert "expected numbers such as 0,1,2, got a" in refused(["table1", "--seeds", "a"], capsys)


def test_a_table_whose_records_are_there_needs_no_data(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert reproduce.main(["table1", "--data.root=/no/such/folder"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "33 cells: 33 have records in docs/results/table1.jsonl, 0 to run"
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
