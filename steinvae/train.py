"""`python -m steinvae.train`: train a Stein VAE, and an ordinary VAE beside it.

Without arguments: the 8x8 digits of scikit-learn, offline, in about a minute. With `--plan`: what a
step costs, and no training. On many devices: `torchrun --nproc-per-node N -m steinvae.train ...`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from steinvae.signals import run_command

if TYPE_CHECKING:
    from steinvae.config import Config
    from steinvae.distributed import World

DESCRIPTION = (
    "Train a Stein variational autoencoder, or a baseline on the same networks. "
    "--plan prints memory and decoder passes of one step, and trains nothing."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and say where the run folder is and what came out; returns the exit code.

    `--plan` is no setting of a run, so it is taken out before settings are parsed. Imports wait
    until here, so that a signal while they are made ends as at any other time.
    """
    from steinvae.cli import parse_config

    arguments = list(sys.argv[1:] if argv is None else argv)
    planned = "--plan" in arguments
    settings = [item for item in arguments if item != "--plan"]
    try:
        config = parse_config("train", DESCRIPTION, settings)
    except ImportError as error:
        print(f"steinvae.train: {error}", file=sys.stderr)
        return 1
    if planned:
        say_unread(config)
        return plan(config)
    from steinvae.feed import DataError  # torch: not needed for --help and usage errors
    from steinvae.nonfinite import NonFiniteError
    from steinvae.run import SetupError, run

    try:
        with processes(config) as world:
            if world is None or world.leads:
                say_unread(config)
            run_dir, results = run(config, world)
    except (SetupError, DataError, NonFiniteError, OSError) as error:  # OSError: a full disk
        print(f"steinvae.train: {error}", file=sys.stderr)
        return 1
    if world is None or world.leads:
        print(f"run folder: {run_dir.resolve()}")
    for result in results:
        print(summary(result))
    return 0


def say_unread(config: Config) -> None:
    """Name the settings, other than the preset's, that the method never reads."""
    from steinvae.config import Config
    from steinvae.config.unread import unread_lines
    from steinvae.presets import PRESETS

    for line in unread_lines(config, PRESETS.get(config.preset or "", Config)()):
        print(f"steinvae.train: {line}", file=sys.stderr)


def plan(config: Config) -> int:
    """Print what an update costs; 1 where a run is refused since this device cannot hold it, or
    where nothing can be planned."""
    from steinvae.image_plan import advice, warning
    from steinvae.plan import make_plan

    try:
        made = make_plan(config)
        print(made.report())
        against, warned = advice(config), warning(config, made)
    except ValueError as error:  # networks that cannot be made, or data of unknown size
        print(f"steinvae.train: {error}", file=sys.stderr)
        return 1
    if against or warned:
        print(f"steinvae.train: {against or warned}", file=sys.stderr)
    return 1 if against else 0


def processes(config: Config) -> AbstractContextManager[World | None]:
    """Those that torchrun started; None where this one is alone."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return nullcontext()
    from steinvae.distributed import joined

    return joined(config.trainer.device)


def summary(result: dict) -> str:
    """One line: the method, its test NLL with the estimator's name, and its test error."""
    from steinvae.report import with_error

    nll = result["nll"]
    decoders = f", {result['decoders']} decoders as one mixture" if result["decoders"] > 1 else ""
    labels = result.get("labels")
    wrong = f", error {100 * labels['error']:.1f} % of the test labels" if labels else ""
    return (
        f"{result['method']:>10}: test NLL {with_error(nll['value'], nll['standard_error'], 2)} "
        f"nats by {nll['estimator']} on {nll['images']} images{decoders}{wrong} "
        f"({result['steps']} steps, {result['seconds']:.0f} s)"
    )


if __name__ == "__main__":
    sys.exit(run_command("steinvae.train", main))
