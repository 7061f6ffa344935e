"""`python -m steinvae.evaluate RUN`: every estimate of the test log-likelihood of a finished run.

Prints what each estimator bounds, what that rests on and whether it holds for this run, and writes
evaluation.md, evaluation.json and evaluation.jsonl into the run folder after each estimator, beside
what was measured before. A run with labels has the quality of its class probabilities beside, on
the whole test split. The older form, `--run_dir DIR` with settings such as
`--evaluation.samples 5000`, repeats the reported numbers alone as one JSON object, and writes
nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from steinvae.cli import build_config, files_first, make_parser
from steinvae.config import Config
from steinvae.config.unread import NEEDS
from steinvae.config_tree import dotted
from steinvae.signals import run_command

DESCRIPTION = "Estimate the test negative log-likelihood of a finished run, and say what it bounds."
DEFAULTS: dict[str, Any] = {
    "estimators": None,
    "images": 100,
    "samples": 5000,
    "temperatures": 500,
    "chains": 16,
    "simulated": 50,
    "json": False,
}
ACT = (
    *("data.root", "data.binarization", "data.bad_records", "data.workers", "seed"),
    *("evaluation.fit_samples", "evaluation.inflation", "evaluation.proposal"),
    *("trainer.device", "trainer.threads"),
)
"""Settings that act on an evaluation and leave the trained networks as they are."""

ACT_ON_RESIDUAL = ("trainer.precision", "trainer.compile")
"""The same for model.network residual alone."""

IN_PLACE = {"evaluation.images": "--images", "evaluation.samples": "--samples"}
"""Settings of the form --run_dir DIR: the option that takes their place after RUN."""


def main(argv: Sequence[str] | None = None) -> int:
    """Load the run's model, estimate, print; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    positional = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    known, rest = _parser().parse_known_args(arguments)
    given = vars(known)
    folder = given.pop("run_dir", None)
    named = folder if positional is None else positional
    if named is None:
        _parser().error("name the folder of a finished run: RUN, before all options")
    if positional is not None and folder is not None:
        _parser().error("name the run once: --run_dir is for the form without RUN")
    run_dir = Path(named)
    from steinvae.evaluation import evaluate_all, evaluate_reported
    from steinvae.nonfinite import NonFiniteError
    from steinvae.run import read_config

    try:
        if positional is None:
            _refuse_options(given)
        saved = read_config(run_dir)
        parser = make_parser("evaluate", DESCRIPTION, saved)
        config = build_config(parser, parser.parse_args(files_first(rest)).as_dict())
        check_settings(saved, config, _named(rest), reported=positional is None)
        if positional is None:
            text = json.dumps(evaluate_reported(run_dir, config), indent=2, allow_nan=False)
        else:
            text = evaluate_all(run_dir, config, argparse.Namespace(**DEFAULTS | given))
    except (NonFiniteError, ValueError, OSError, ImportError) as error:
        print(f"steinvae.evaluate: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


def check_settings(
    saved: Config, wanted: Config, named: Collection[str], *, reported: bool
) -> None:
    """Refuse settings that would not act, or would change what was trained.

    `named` are those of the command line, which count even where they repeat the run's; `reported`:
    in the form --run_dir DIR. Errors: ValueError naming the first such setting.
    """
    before, after = dotted(saved), dotted(wanted)
    for name, value in after.items():
        if name == "run_dir":
            continue  # where the run lies
        reason = _refusal(name, wanted, reported)
        if reason is not None and (name in named or value != before[name]):
            raise ValueError(f"--{name} {value}: {reason}")


def _refusal(name: str, wanted: Config, reported: bool) -> str | None:
    """Why a setting cannot be given; None where it can."""
    network, proposal = wanted.model.network, wanted.evaluation.proposal
    if name in IN_PLACE:
        return None if reported else f"for the form --run_dir DIR; after RUN give {IN_PLACE[name]}"
    if name == "evaluation.proposal" and proposal == "encoder" and not reported:
        return "for the form --run_dir DIR; after RUN give --estimators elbo"
    needs = NEEDS.get(name) if name.startswith("evaluation.") else None  # the proposal has a say
    if needs and proposal not in needs.readers and (reported or proposal != "encoder"):
        return f"does not act with evaluation.proposal {proposal}"
    if name in ACT:
        return None
    if name in ACT_ON_RESIDUAL:
        tf32 = name == "trainer.precision" and wanted.trainer.precision == "tf32"
        acts = network == "residual" and not tf32
        return None if acts else f"does not act on the evaluation of model.network {network}"
    if name.startswith(("model.", "method.", "data.")):
        return "of what was trained, which an evaluation cannot change"
    taken = (*ACT, *IN_PLACE) if reported else ACT
    return f"does not act on an evaluation; those that do are {', '.join(taken)}"


def _refuse_options(given: Mapping[str, Any]) -> None:
    """Errors: ValueError for an option of the form RUN, --json apart."""
    settings = {option: name for name, option in IN_PLACE.items()}
    for option in (f"--{name}" for name in given if name != "json"):
        instead = f"; with --run_dir DIR give --{settings[option]}" if option in settings else ""
        raise ValueError(f"{option} is for the form RUN{instead}")


def _named(arguments: Sequence[str]) -> set[str]:
    return {each.split("=")[0].removeprefix("--") for each in arguments if each.startswith("--")}


def _parser() -> argparse.ArgumentParser:
    """Options that were not given are not in the namespace; `DEFAULTS` has them."""
    parser = argparse.ArgumentParser(
        prog="python -m steinvae.evaluate",
        usage="python -m steinvae.evaluate RUN [options] [--section.field VALUE ...]",
        description=DESCRIPTION,
        epilog=f"Settings that act too, as for python -m steinvae.train: {', '.join(ACT)}.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--run_dir", help="instead of RUN: the reported numbers alone, as JSON")
    add("--estimators", help="of iw_g,elbo,ais,bdmc,units (default: all that can be computed)")
    add("--images", type=int, help="test images, evenly spaced; 0: all (default 100)")
    add("--samples", type=int, help="importance samples an image (default 5000)")
    add("--temperatures", type=int, help="of annealed sampling (default 500)")
    add("--chains", type=int, help="annealed chains an image (default 16)")
    add("--simulated", type=int, help="images of the sandwich (default 50)")
    add("--json", action="store_true", help="print JSON in place of text")
    return parser


if __name__ == "__main__":
    sys.exit(run_command("steinvae.evaluate", main))
