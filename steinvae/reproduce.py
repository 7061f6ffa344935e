"""`python -m steinvae.reproduce NAME`: run an experiment's cells, keep records, print the table.

Cells that already have a record in the output file are not run again. An experiment is a module of
`steinvae.experiments` with `run` and `table`; one with settings of its own has `add_options`, one
with a figure `picture`, one with a short form of its table `summary`. A `table` without a row that
was measured on the chosen seeds is empty, and no file is written then.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from steinvae._atomic import InUseError
from steinvae.signals import Interrupted, run_command

DESCRIPTION = "Reproduce a table or a figure: train every cell, keep its records, print the table."
EXPERIMENTS = (
    "figure1",
    "figure2",
    "mnist_small",
    "poisson_small",
    "stein_direction",
    "stein_encoder",
    "table1",
    "table2",
    "table3",
    "table4",
)
SEEDS = (0, 1, 2)
"""Those that are run and drawn where the experiment has no SEEDS of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run what is missing, print the table; returns the exit code."""
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("experiment", nargs="?")
    named = early.parse_known_args(argv)[0].experiment
    if named not in EXPERIMENTS:
        _parser().parse_args(argv)  # ends with the help that was asked for, or says what is wrong
    experiment = importlib.import_module(f"steinvae.experiments.{named}")
    arguments, options = _parse(experiment, argv)
    name = arguments.experiment
    output = arguments.output or Path("docs/results") / f"{name}.jsonl"
    run_dir = arguments.run_dir or Path("runs/reproduce") / name
    document = importlib.import_module("steinvae.experiments.document")
    before = _size(output)
    seeds = arguments.seeds or getattr(experiment, "SEEDS", SEEDS)
    try:
        if not arguments.draw:
            experiment.run(arguments.root, seeds, output, run_dir, **options)
        elif not before:
            raise ValueError(f"no records in {output}")
        table = experiment.table(output, seeds)
        summary = experiment.summary(output, seeds) if arguments.summary else table
        if not (table.strip() and summary.strip()):
            of = f" of seeds {','.join(map(str, seeds))}" if seeds else ""
            nothing = f"no records{of} in {output}" + (" for a summary" if table.strip() else "")
            if "slice_minutes" not in options:
                raise ValueError(nothing)
            print(nothing)  # a slice may end before its first cell does
            return 0
        if arguments.picture:
            experiment.picture(arguments.picture, run_dir)
        for path in arguments.document:
            document.insert(path, name, table)
        for path in arguments.summary:
            document.insert(path, name, summary)
    except (OSError, ImportError, ValueError, InUseError) as error:
        print(f"steinvae.reproduce: {error}", file=sys.stderr)
        return 1
    except Interrupted as ending:
        ending.said = True
        print(f"steinvae.reproduce: {ending}; run the same command to continue", file=sys.stderr)
        raise
    print(f"\n{table}\n\nrecords: {output}")
    if not (arguments.draw or "slice_minutes" in options) and _size(output) == before:
        print(
            f"nothing was run: all records are in {output}; "
            "measure your own with --output mine.jsonl"
        )
    return 0


def _size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _parse(
    experiment: ModuleType, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, dict[str, object]]:
    """The options that all experiments share, and those of this one which were given."""
    parser = _parser()
    shared = {action.dest for action in parser._actions}
    if hasattr(experiment, "add_options"):
        experiment.add_options(parser)
    arguments = parser.parse_args(argv)
    for option, function in (("picture", "picture"), ("summary", "summary")):
        if getattr(arguments, option) and not hasattr(experiment, function):
            parser.error(f"--{option}: {arguments.experiment} has no {function}")
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    own = {name: value for name, value in given.items() if name not in shared}
    if arguments.draw and own:
        parser.error(f"--{next(iter(own))}: of what is run, and --draw runs nothing")
    return arguments, own


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m steinvae.reproduce", description=DESCRIPTION)
    add = parser.add_argument
    add("experiment", choices=EXPERIMENTS)
    add("--data.root", dest="root", help="directory that holds the data files")
    add("--seeds", type=_seeds, help="default 0,1,2; tables 3, 4: as the budget, all are drawn")
    add("--output", type=Path, help="records (default docs/results/NAME.jsonl)")
    add("--run_dir", type=Path, help="run folders (default runs/reproduce/NAME)")
    add("--draw", action="store_true", help="run nothing: the table of the records that are there")
    add("--picture", type=Path, help="PNG to draw the run folders into, where NAME has a picture")
    into = "Markdown file to put {} into, between its NAME:begin and NAME:end comments"
    add("--document", type=Path, action="append", default=[], help=into.format("the table"))
    add(
        "--summary",
        type=Path,
        action="append",
        default=[],
        help=into.format("a short form of the table, where NAME has one,"),
    )
    return parser


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        expected = f"expected numbers such as 0,1,2, got {text}"
        raise argparse.ArgumentTypeError(expected) from error
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"expected different numbers of 0 or more, got {text}")
    return seeds


if __name__ == "__main__":
    sys.exit(run_command("steinvae.reproduce", main))
