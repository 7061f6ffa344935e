"""`python -m steinvae.evaluate --run_dir DIR`: the test NLL of a finished run, as one JSON object.

Settings of the evaluation may be overridden: `--evaluation.samples 5000 --evaluation.images 0`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from steinvae.cli import build_config, make_parser

DESCRIPTION = "Estimate the test negative log-likelihood of a finished run."


def main(argv: Sequence[str] | None = None) -> int:
    """Load the run's model, estimate, print; returns the exit code."""
    early = argparse.ArgumentParser(prog="python -m steinvae.evaluate", description=DESCRIPTION)
    early.add_argument("--run_dir", required=True, help="folder of a finished run")
    early.epilog = "Any setting of the evaluation, as for python -m steinvae.train."
    known, _ = early.parse_known_args(argv)
    from steinvae.run import load_data, load_model, measure, nll, read_config

    try:
        parser = make_parser("evaluate", DESCRIPTION, read_config(known.run_dir))
        config = build_config(parser, parser.parse_args(argv).as_dict())
        dataset = load_data(config)
        networks = load_model(known.run_dir, config, dataset.train.pixels.shape[1])
    except (ValueError, OSError, ImportError) as error:
        print(f"steinvae.evaluate: {error}", file=sys.stderr)
        return 1
    estimate = measure(config, dataset, networks)
    result = {
        "method": config.method.name,
        "data_set": dataset.name,
        "binarization": dataset.binarization,
        "nll": nll(estimate),
        "nll_single_decoder": estimate.single,
    }
    print(json.dumps(result, indent=2, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
