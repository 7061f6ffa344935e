"""Checkpoints without pickle that are complete or absent, whatever kills the process.

    run_dir/checkpoints/step-00001234/{tensors.safetensors, state.json, manifest.json}

A checkpoint is written to a hidden directory, every file and the directory are fsynced, and one
rename puts it into place; `manifest.json` holds size and SHA-256 of the other files, because
neither safetensors nor torch.save notices a flipped bit. Loading executes nothing from the files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from steinvae._atomic import InUseError, remove_unfinished, sync
from steinvae._hidden import hidden, leftovers
from steinvae._manifest import verify, write_manifest

TENSORS, STATE = "tensors.safetensors", "state.json"
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What was saved: `tensors` by name on the CPU, and the JSON `state`, at optimiser `step`."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def require(self, expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Check that the tensors are exactly those of `{name: (shape, dtype)}`.

        Errors: ValueError listing missing and unexpected names and wrong shapes; TypeError where
        only dtypes differ.
        """
        common = sorted(expected.keys() & self.tensors.keys())
        faults = [f"missing {name}" for name in sorted(expected.keys() - self.tensors.keys())]
        faults += [f"unexpected {name}" for name in sorted(self.tensors.keys() - expected.keys())]
        faults += [
            f"{name} expected shape {tuple(expected[name][0])}, got {shape}"
            for name in common
            if tuple(expected[name][0]) != (shape := tuple(self.tensors[name].shape))
        ]
        if faults:
            raise ValueError(f"checkpoint at step {self.step}: {'; '.join(faults)}")
        dtypes = [
            f"{name} expected {expected[name][1]}, got {self.tensors[name].dtype}"
            for name in common
            if expected[name][1] != self.tensors[name].dtype
        ]
        if dtypes:
            raise TypeError(f"checkpoint at step {self.step}: {'; '.join(dtypes)}")


def save(run_dir: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write `run_dir`/checkpoints/step-<step>, durable when this returns; returns its path.

    A checkpoint of the same step is replaced. `state` must survive JSON unchanged: string keys,
    lists (no tuples), finite floats (written so that they come back bit for bit).

    Errors: ValueError for a negative step, TypeError for a state that JSON would change, OSError
    naming the checkpoint where it cannot be written; earlier checkpoints are intact then.
    """
    if step < 0:
        raise ValueError(f"checkpoint.save: step must be at least 0, got {step}")
    text = _to_json(state)
    folder = Path(run_dir) / "checkpoints"
    final = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean(run_dir)
        with hidden(folder, "tmp", step) as temporary:
            temporary.mkdir()
            save_file(_separate(tensors), temporary / TENSORS)
            (temporary / STATE).write_text(text, encoding="utf-8")
            # safetensors makes files for their owner alone; the umask should decide, as elsewhere
            (temporary / TENSORS).chmod((temporary / STATE).stat().st_mode)
            write_manifest(temporary, step, (TENSORS, STATE))
            for written in (*temporary.iterdir(), temporary):
                sync(written)
            _move_into_place(temporary, final, step)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"cannot write the checkpoint {final}: {error}; earlier checkpoints are intact"
        ) from error
    return final


def load(path: Path) -> Checkpoint:
    """Read one checkpoint directory after checking it against its manifest.

    Errors: FileNotFoundError where there is nothing; ValueError naming the file and the fault for
    anything else: a file in place of a directory (a pickle is refused unread), missing, truncated
    or altered files, and a format newer than this version's.
    """
    path = Path(path)
    step = _verify(path)
    try:
        tensors = load_file(path / TENSORS)
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected safetensors and JSON, got: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path / STATE}: expected a JSON object, got {type(state).__name__}")
    return Checkpoint(step, tensors, state)


def latest(run_dir: Path) -> Path | None:
    """The newest checkpoint that passes its manifest, or None; warns of every one that does not.

    Errors: OSError naming a checkpoint that cannot be read. It may be whole: to pass it over would
    lose what was trained since the one before.
    """
    for path in _steps(run_dir):
        try:
            _verify(path)
        except (FileNotFoundError, ValueError) as error:
            warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=2)
            continue
        except OSError as error:
            raise OSError(f"cannot read the checkpoint {path}: {error}") from error
        return path
    return None


def refuse_damaged(run_dir: Path) -> None:
    """ValueError where there are checkpoints, which `latest` found damaged: a run that started over
    beside them would overwrite their metrics, and the user may still have a copy."""
    if damaged := [path.name for path in _steps(run_dir)]:
        folder = Path(run_dir) / "checkpoints"
        raise ValueError(
            f"no checkpoint in {folder} can be used, {', '.join(damaged)}: "
            f"put back a whole one, or move {folder} away to start anew"
        )


def prune(run_dir: Path, keep: int, written: int | None = None) -> None:
    """Remove all but the `keep` newest checkpoints, and never that of step `written`.

    Nothing is removed unless one that stays passes its manifest in full, and checkpoints whose
    files are missing or of the wrong size neither count nor go: they are left to be looked at.
    So are those of later steps than `written` that do not pass in full. The run has passed them
    over, and they would outrank all that it writes; in other runs there are none to be read.
    """
    if keep < 1:
        raise ValueError(f"checkpoint.prune: keep must be at least 1, got {keep}")
    complete = [
        path
        for path in _steps(run_dir)
        if _passes(path, contents=written is not None and _step_of(path) > written)
    ]
    if any(_passes(path, contents=True) for path in complete[:keep]):
        for path in complete[keep:]:
            if _step_of(path) == written:
                continue
            with hidden(path.parent, "trash", _step_of(path)) as trash:
                os.rename(path, trash)  # a kill while files go must not leave a torn step-N


def clean(run_dir: Path) -> None:
    """Remove what killed processes of this host left behind; other processes' work stays.

    A checkpoint that was moved aside to be replaced goes back if the kill came before its successor
    was in place.
    """
    for path, kind, step in leftovers(Path(run_dir) / "checkpoints"):
        final = path.with_name(f"step-{step:08d}")
        if kind == "old" and not final.exists():
            os.rename(path, final)
        else:
            shutil.rmtree(path)


@contextmanager
def lock_run_dir(run_dir: Path, setting: str = "run_dir") -> Iterator[None]:
    """Hold `run_dir` for one process at a time (flock on `run_dir`/.lock), and clean it first.

    The kernel drops the lock when the process ends, however it ends.

    Errors: InUseError naming `setting`, and the process and host that hold the directory.
    """
    import fcntl  # POSIX only; the rest of this module is not

    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise InUseError(
                f"{setting}={run_dir} is in use by {holder}; "
                f"wait for it or choose another {setting}"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        clean(run_dir)
        for folder in (run_dir, *run_dir.glob("baseline-*")):
            remove_unfinished(folder)
        yield


def _to_json(state: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(state, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise TypeError(f"checkpoint.save: state must be JSON: {error}") from error
    if json.loads(text) != state:
        raise TypeError("checkpoint.save: state must use string keys and lists, JSON alters it")
    return text


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors that own their storage: safetensors refuses views of a shared buffer."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        separate[name] = tensor
    return separate


def _move_into_place(temporary: Path, final: Path, step: int) -> None:
    if not final.exists():
        os.rename(temporary, final)
        sync(final.parent)
        return
    with hidden(final.parent, "old", step) as old:
        os.rename(final, old)
        try:
            os.rename(temporary, final)
        except OSError:
            os.rename(old, final)
            raise
        sync(final.parent)


def _verify(path: Path, *, contents: bool = True) -> int:
    step = verify(path, (TENSORS, STATE), contents=contents)
    if _STEP.fullmatch(path.name) and step != _step_of(path):
        raise ValueError(f"{path}: expected step {_step_of(path)}, the manifest says {step}")
    return step


def _passes(path: Path, *, contents: bool) -> bool:
    try:
        _verify(path, contents=contents)
    except (OSError, ValueError):
        return False
    return True


def _steps(run_dir: Path) -> list[Path]:
    """Checkpoint directories by falling step. Errors: OSError where they cannot be listed."""
    folder = Path(run_dir) / "checkpoints"
    try:
        paths = [path for path in folder.iterdir() if _STEP.fullmatch(path.name)]
    except FileNotFoundError:  # glob would take a folder that cannot be read for an empty one too
        return []
    return sorted(paths, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
