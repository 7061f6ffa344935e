"""Where a run lives: a folder never overwritten, and continued only with the same settings."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from steinvae._atomic import write_text
from steinvae.checkpoint import latest, lock_run_dir
from steinvae.config import Config
from steinvae.config_tree import dotted
from steinvae.signals import Interrupted

CHANGEABLE = (
    "preset",
    "run_dir",
    "resume",
    "data.root",
    "data.workers",
    "trainer.max_steps",
    "trainer.tensorboard",
    "trainer.keep_checkpoints",
    "trainer.save_in_background",
    "trainer.on_nonfinite",
    "trainer.nonfinite_limit",
    "trainer.baseline",
    "trainer.device",
    "trainer.cuda_graph",
    "evaluation.images",
    "evaluation.samples",
)
"""Settings that may differ when a run is continued: none of them changes a step already made."""


NOT_IN_A_RESULT = tuple(
    name
    for name in CHANGEABLE
    if name not in ("trainer.max_steps", "evaluation.images", "evaluation.samples")
)
"""Settings that may differ where a finished run is taken as it is."""

LOCK = ".lock"
"""The file that `lock_run_dir` makes."""

OWN = "own_networks.json"
"""The file that says that the caller made the networks of a run, with their classes by part."""


def choose_run_dir(config: Config) -> Path:
    """The folder of this run; `ValueError` where an explicit one holds a run that would be lost.

    By default runs/<preset or data>-<method>-<seed>, with -2, -3 and so on for further runs; resume
    auto takes the newest of them that holds a run.
    """
    if config.run_dir is not None:
        if not config.run_dir.strip():
            raise ValueError("run_dir must name a folder, got an empty name")
        run_dir = Path(config.run_dir)
        refuse_file("run_dir", run_dir)
        if config.resume != "auto" and holds_run(run_dir):
            raise ValueError(
                f"run_dir={run_dir} already holds a run: continue it with --resume auto, "
                "or choose another run_dir"
            )
        return run_dir
    name = f"{config.preset or config.data.name}-{config.method.name}-{config.seed}"
    family = _family(Path("runs"), name)
    begun = [path for _, path in family if holds_run(path)]
    if begun and config.resume == "auto":
        return begun[-1]
    if not family:
        return Path("runs") / name
    return Path("runs") / f"{name}-{family[-1][0] + 1}"


def holds_run(run_dir: Path) -> bool:
    """Whether there is anything of a run in the folder."""
    return any(
        (run_dir / name).exists() for name in ("config.yaml", "metrics.jsonl", "checkpoints", OWN)
    )


def refuse_file(setting: str, folder: Path) -> None:
    """`ValueError` where the folder that a setting names is a file."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{setting}={folder} is a file; name a folder")


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """`lock_run_dir`; a folder that this made, and that nothing was written into, goes again."""
    made = not run_dir.exists()
    with lock_run_dir(run_dir):
        try:
            yield
        finally:
            if made and [path.name for path in run_dir.iterdir()] == [LOCK]:
                (run_dir / LOCK).unlink()
                run_dir.rmdir()


@contextmanager
def saying_how_to_go_on(run_dir: Path, trained: Path) -> Iterator[None]:
    """Where a signal ends the block, say what is saved in `trained`, the folder of the run in
    `run_dir` or of its baseline, and the command that continues."""
    try:
        yield
    except Interrupted as ending:
        ending.said = True
        try:
            path = latest(trained)
            step = None if path is None else int(path.name.removeprefix("step-"))
            saved = " before its first checkpoint" if step is None else f", saved at step {step}"
        except OSError as error:  # which must not hide that a signal ended the run
            saved = f", {error}"
        with suppress(OSError):  # nobody reads it
            print(f"{ending}{saved}; continue with: {going_on(run_dir)}", file=sys.stderr)
        raise


def mark_own(run_dir: Path, classes: Mapping[str, str]) -> None:
    """Say in the folder that the caller made the networks, of these classes."""
    write_text(run_dir / OWN, json.dumps(classes) + "\n")


def check_own(run_dir: Path, classes: Mapping[str, str]) -> None:
    """`ValueError` where the run is of networks of other classes, or of a command."""
    before = _own(run_dir)
    if before is None:
        raise ValueError(
            f"run_dir={run_dir} is a run of python -m steinvae.train, not of prepare_with: "
            f"continue it with {going_on(run_dir)}, or choose another run_dir"
        )
    if before != classes:
        raise ValueError(
            f"run_dir={run_dir} is a run of {', '.join(before.values())}, got "
            f"{', '.join(classes.values())}: give the same networks, or choose another run_dir"
        )


def refuse_own(run_dir: Path) -> None:
    """`ValueError` where the caller made the networks: no command can make them again."""
    found = _own(run_dir)
    if found is not None:
        raise ValueError(
            f"run_dir={run_dir} is a run of networks of its own, {', '.join(found.values())}: "
            f"continue it with {going_on(run_dir)}, and measure it by steinvae.density.measure_all"
        )


def going_on(run_dir: Path) -> str:
    """The command, or of networks of its own the call, that continues a run."""
    if (run_dir / OWN).exists():
        return "prepare_with and Config(resume='auto')"
    config, folder = (shlex.quote(str(each)) for each in (run_dir / "config.yaml", run_dir))
    return f"python -m steinvae.train --config {config} --run_dir {folder} --resume auto"


def check_same(
    saved: Config,
    wanted: Config,
    but: Sequence[str] = CHANGEABLE,
    run_dir: Path | None = None,
) -> None:
    """`ValueError` naming the settings in which a resumed run would differ from the saved one.

    With the `run_dir` that is resumed, the option that brings the saved settings is named too.
    """
    before, after = dotted(saved), dotted(wanted)
    different = [
        f"{name} is {after[name]!r}, was {before[name]!r}"
        for name in before
        if name not in but and before[name] != after[name]
    ]
    if different:
        remedy = "" if run_dir is None else f" (--config {run_dir / 'config.yaml'} brings them)"
        raise ValueError(
            f"resume must keep the settings of the run in {run_dir or saved.run_dir}: "
            f"{'; '.join(different)}{remedy}"
        )


def _own(run_dir: Path) -> dict[str, str] | None:
    path = run_dir / OWN
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected classes by part, got {found}")
    return found


def _family(folder: Path, name: str) -> list[tuple[int, Path]]:
    pattern = re.compile(re.escape(name) + r"(?:-(\d+))?")
    matches = ((pattern.fullmatch(path.name), path) for path in folder.glob(f"{name}*"))
    return sorted((int(match[1] or 1), path) for match, path in matches if match)
