"""How many steps fit into a budget of minutes: measured once a run, and kept beside it.

The cosine of the learning rate ends with the budget, so a resumed run must keep its steps.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from steinvae._atomic import write_text
from steinvae.checkpoint import lock_run_dir
from steinvae.data import Dataset
from steinvae.device import prepare_process
from steinvae.experiments.cells import Cell
from steinvae.trainer import Trainer

PILOT = "pilot.json"
_WARM, _TIMED = 5, 40
"""Updates before the clock starts, and under it."""


def with_steps(cell: Cell, dataset: Dataset, run_dir: Path) -> Cell:
    """The cell with the steps that its minutes of updates give; itself where it has none.

    The pilot's result stays in the run folder, which is held meanwhile: steps that another process
    trains for already are never replaced. Errors: ValueError where it was for other minutes;
    InUseError where another process has the folder and there is no result yet.
    """
    if cell.minutes is None:
        return cell
    path = cell.folder(run_dir) / PILOT
    if not path.exists():
        with lock_run_dir(path.parent):
            if not path.exists():  # another process may have been here before the lock
                found = pilot(cell, dataset, cell.minutes)
                write_text(path, json.dumps(found, indent=2) + "\n")
    found = json.loads(path.read_text("utf-8"))
    if found["minutes"] != cell.minutes:
        raise ValueError(
            f"{path.parent} was begun with minutes {found['minutes']}, got {cell.minutes}: "
            "choose another run_dir"
        )
    return cell.of_steps(found["steps"])


def pilot(cell: Cell, dataset: Dataset, minutes: float) -> dict[str, Any]:
    """Seconds of an update by the process clock (by the wall clock on a GPU), and steps in all.

    Networks of its own take the updates; validation, checkpoints and the monitor are not counted.
    """
    prepare_process(cell.config)
    trainer = Trainer(cell.config, dataset, Path())  # the folder is for checkpoints, there are none
    on_gpu = trainer.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    started = 0.0
    try:
        for step in range(_WARM + _TIMED):
            if step == _WARM:
                _wait(on_gpu)
                started = clock()
            trainer.update(step, monitor=False)
        _wait(on_gpu)
        seconds = (clock() - started) / _TIMED
    finally:
        trainer.close()
    steps = max(1, round(60 * minutes / seconds))
    return {"minutes": minutes, "seconds_per_step": seconds, "steps": steps}


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()
