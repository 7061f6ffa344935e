"""`python -m steinvae.sample RUN --output FILE.png`: draw images from a finished run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from steinvae.signals import run_command

DESCRIPTION = "Draw mean images of codes from the prior as a grid."
FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tiff", ".pdf", ".svg")


def main(argv: Sequence[str] | None = None) -> int:
    """Load the run's model, draw, write the picture; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m steinvae.sample", description=DESCRIPTION)
    parser.add_argument("run", nargs="?", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--run_dir", help="the same, in place of RUN")
    parser.add_argument("--output", required=True, help=f"picture to write ({', '.join(FORMATS)})")
    parser.add_argument("--count", type=int, default=64, help="images to draw (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the codes (default 0)")
    parser.add_argument("--data.root", dest="root", help="data directory, where it has moved")
    arguments = parser.parse_args(argv)
    if arguments.count < 1:
        parser.error(f"--count must be at least 1, got {arguments.count}")
    if (arguments.run is None) == (arguments.run_dir is None):
        parser.error("name the folder of a finished run once: RUN, or --run_dir RUN")
    if Path(arguments.output).suffix.lower() not in FORMATS:
        parser.error(f"--output must end in one of {', '.join(FORMATS)}, got {arguments.output}")
    run_dir = arguments.run or arguments.run_dir
    from dataclasses import replace

    from steinvae.folder import refuse_own
    from steinvae.labels.task import count_classes
    from steinvae.model_file import load_model
    from steinvae.plots import save_samples
    from steinvae.run import draw_samples, load_data, read_config

    try:
        config = read_config(run_dir)
        refuse_own(Path(run_dir))
        if arguments.root is not None:
            config = replace(config, data=replace(config.data, root=arguments.root))
        config = replace(config, trainer=replace(config.trainer, device="auto"))
        dataset = load_data(config)
        if dataset.image_shape is None:
            raise ValueError(f"run_dir={run_dir}: {dataset.name} has no images to draw")
        classes = count_classes(config, dataset) if config.data.labelled else None
        networks = load_model(run_dir, config, dataset.train.features, classes)
        images = dataset.pictures(draw_samples(networks, arguments.count, arguments.seed).cpu())
        save_samples(arguments.output, images, dataset.image_shape)
    except (ValueError, OSError, ImportError) as error:
        print(f"steinvae.sample: {error}", file=sys.stderr)
        return 1
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("steinvae.sample", main))
