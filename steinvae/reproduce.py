"""`python -m steinvae.reproduce NAME`: run an experiment's cells, keep records, print the table.

Cells that already have a record in the output file are not run again.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = "Reproduce a table: train every cell, append its record, print the table."
EXPERIMENTS = ("mnist_small", "stein_encoder", "figure1", "poisson_small")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run what is missing, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m steinvae.reproduce", description=DESCRIPTION)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data.root", dest="root", help="directory that holds the data files")
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2), help="default 0,1,2")
    parser.add_argument("--output", type=Path, help="records (default docs/results/NAME.jsonl)")
    parser.add_argument("--run_dir", type=Path, help="run folders (default runs/reproduce/NAME)")
    parser.add_argument(
        "--document",
        type=Path,
        action="append",
        default=[],
        help="Markdown file to put the table into, between its NAME:begin and NAME:end comments",
    )
    parser.add_argument(
        "--draw", action="store_true", help="run nothing: the table of the records that are there"
    )
    parser.add_argument(
        "--picture", type=Path, help="PNG to draw the run folders into, where NAME has a picture"
    )
    arguments = parser.parse_args(argv)
    name = arguments.experiment
    output = arguments.output or Path("docs/results") / f"{name}.jsonl"
    run_dir = arguments.run_dir or Path("runs/reproduce") / name
    experiment = importlib.import_module(f"steinvae.experiments.{name}")
    document = importlib.import_module("steinvae.experiments.document")
    try:
        if arguments.draw:
            table = experiment.table(output, arguments.seeds)
        else:
            table = experiment.run(arguments.root, arguments.seeds, output, run_dir)
        if arguments.picture:
            experiment.picture(arguments.picture, run_dir)
        for path in arguments.document:
            document.insert(path, name, table)
    except (OSError, ImportError) as error:
        print(f"steinvae.reproduce: {error}", file=sys.stderr)
        return 1
    print(f"\n{table}\n\nrecords: {output}")
    return 0


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(int(part) for part in text.split(","))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"expected different numbers of 0 or more, got {text}")
    return seeds


if __name__ == "__main__":
    sys.exit(main())
