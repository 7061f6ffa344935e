"""`python -m steinvae.evaluate RUN`: every estimate of the test log-likelihood of a finished run.

Prints what each estimator bounds, what that rests on and whether it holds for this run, and writes
evaluation.md, evaluation.json and evaluation.jsonl into the run folder. A run with labels has the
quality of its class probabilities beside, on the whole test split. The older form, `--run_dir DIR`
with settings such as `--evaluation.samples 5000`, repeats the reported numbers alone as one JSON
object, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from steinvae.cli import build_config, make_parser

DESCRIPTION = "Estimate the test negative log-likelihood of a finished run, and say what it bounds."


def main(argv: Sequence[str] | None = None) -> int:
    """Load the run's model, estimate, print; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    positional = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    known, rest = _parser().parse_known_args(arguments)
    named = positional or known.run_dir
    if named is None:
        _parser().error("name the folder of a finished run: RUN, before all options")
    run_dir = Path(named)
    from steinvae.evaluation import evaluate_all, evaluate_reported
    from steinvae.run import read_config

    try:
        parser = make_parser("evaluate", DESCRIPTION, read_config(run_dir))
        config = build_config(parser, parser.parse_args(rest).as_dict())
        if positional is None:
            text = json.dumps(evaluate_reported(run_dir, config), indent=2, allow_nan=False)
        else:
            text = evaluate_all(run_dir, config, known)
    except (ValueError, OSError, ImportError) as error:
        print(f"steinvae.evaluate: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m steinvae.evaluate",
        usage="python -m steinvae.evaluate RUN [options] [--section.field VALUE ...]",
        description=DESCRIPTION,
        epilog="Any setting of the evaluation too, as for python -m steinvae.train.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--run_dir", help="instead of RUN: the reported numbers alone, as JSON")
    add("--estimators", default="iw_g,elbo,ais,bdmc,units", help="which (default %(default)s)")
    add("--images", type=int, default=100, help="test images, evenly spaced; 0: all (default 100)")
    add("--samples", type=int, default=5000, help="importance samples an image (default 5000)")
    add("--temperatures", type=int, default=500, help="of annealed sampling (default 500)")
    add("--chains", type=int, default=16, help="annealed chains an image (default 16)")
    add("--simulated", type=int, default=50, help="images of the sandwich (default 50)")
    add("--json", action="store_true", help="print JSON in place of text")
    return parser


if __name__ == "__main__":
    sys.exit(main())
