"""Where a run lives: a folder never overwritten, and continued only with the same settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from steinvae.config import Config
from steinvae.config_tree import to_dict

CHANGEABLE = (
    "preset",
    "run_dir",
    "resume",
    "data.root",
    "trainer.max_steps",
    "trainer.tensorboard",
    "trainer.keep_checkpoints",
    "trainer.save_in_background",
    "trainer.on_nonfinite",
    "trainer.nonfinite_limit",
    "trainer.baseline",
    "trainer.device",
    "evaluation.images",
    "evaluation.samples",
)
"""Settings that may differ when a run is continued: none of them changes a step already made."""


def choose_run_dir(config: Config) -> Path:
    """The folder of this run; `ValueError` where an explicit one holds a run that would be lost.

    By default runs/<preset or data>-<method>-<seed>, with -2, -3 and so on for further runs; resume
    auto takes the newest of them.
    """
    if config.run_dir is not None:
        run_dir = Path(config.run_dir)
        if config.resume == "never" and holds_run(run_dir):
            raise ValueError(
                f"run_dir={run_dir} already holds a run: continue it with --resume auto, "
                "or choose another run_dir"
            )
        return run_dir
    name = f"{config.preset or config.data.name}-{config.method.name}-{config.seed}"
    family = _family(Path("runs"), name)
    if family and config.resume == "auto":
        return family[-1][1]
    if not family:
        return Path("runs") / name
    return Path("runs") / f"{name}-{family[-1][0] + 1}"


def holds_run(run_dir: Path) -> bool:
    """Whether there is anything of a run in the folder."""
    return any(
        (run_dir / name).exists() for name in ("config.yaml", "metrics.jsonl", "checkpoints")
    )


def check_same(saved: Config, wanted: Config) -> None:
    """`ValueError` naming the settings in which a resumed run would differ from the saved one."""
    before, after = _flat(to_dict(saved)), _flat(to_dict(wanted))
    different = [
        f"{name} is {after[name]!r}, was {before[name]!r}"
        for name in before
        if name not in CHANGEABLE and before[name] != after[name]
    ]
    if different:
        raise ValueError(f"resume must keep the settings of the run: {'; '.join(different)}")


def _family(folder: Path, name: str) -> list[tuple[int, Path]]:
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    matches = ((pattern.fullmatch(path.name), path) for path in folder.glob(f"{name}*"))
    return sorted((int(match[1] or 1), path) for match, path in matches if match)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
