"""`python -m steinvae.data.pack ROOT OUT`: decode a tree of images once, into shards of pixels.

A killed pack goes on where it was; run on a finished OUT, it verifies every file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from steinvae.signals import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, pack or verify, say what is there; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m steinvae.data.pack", description=__doc__)
    add = parser.add_argument
    add("root", type=Path, help="train/<class>/ and val/, in folders or in tars")
    add("out", type=Path, help="a new directory, or one that an earlier call began")
    add("--side", type=int, default=256, help="pixels of the squares (default 256)")
    add("--bad_records", choices=("raise", "skip"), default="raise", help="default raise")
    add("--ground_truth", type=Path, help="the classes of a flat val/, if not found by its name")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    arguments = parser.parse_args(argv)
    for name, least in (("side", 1), ("workers", 0)):
        value = getattr(arguments, name)
        if value < least:
            parser.error(f"--{name} must be at least {least}, got {value}")
    from steinvae._manifest import MANIFEST
    from steinvae.data.images.packing import pack
    from steinvae.folder import refuse_file
    from steinvae.signals import StopRequest

    finished = (arguments.out / MANIFEST).exists()
    with StopRequest():
        try:
            refuse_file("OUT", arguments.out)
            manifest = pack(**vars(arguments))
        except (ValueError, OSError, RuntimeError) as error:
            print(f"steinvae.data.pack: {error}", file=sys.stderr)
            return 1
    print(summary(arguments.out, manifest) + ("\nevery file verified" if finished else ""))
    return 0


def summary(out: Path, manifest: dict) -> str:
    """Counts, bytes, the mean, and what was left out."""
    splits = manifest["splits"]
    size = sum(entry["bytes"] for split in splits.values() for entry in split["files"].values())
    counts = ", ".join(f"{split['images']} {name}" for name, split in splits.items())
    mean = ", ".join(f"{level:.2f}" for level in manifest["mean"])
    lines = [
        f"{out}: {counts} images of {manifest['side']} x {manifest['side']} pixels, "
        f"{len(manifest['classes'])} classes, {size / 1e6:.0f} MB, mean {mean}"
    ]
    lines += [f"left out: {count} x {reason}" for reason, count in manifest["skipped"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command("steinvae.data.pack", main))
