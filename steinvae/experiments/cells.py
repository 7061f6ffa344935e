"""A table as cells: each is one training run that leaves one tidy record, and is not run twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from steinvae.checkpoint import lock_run_dir
from steinvae.config import GROUPED, IN_FILES, Config, MethodConfig, ModelConfig
from steinvae.data import Dataset
from steinvae.device import prepare_process
from steinvae.folder import NOT_IN_A_RESULT, check_same
from steinvae.report import append_records, read_records, tidy_record
from steinvae.run import RESULT, load_data, prepare, read_config, train
from steinvae.signals import StopRequest

METRIC = "test_nll"

Record = dict[str, Any]

_MODEL, _METHOD = vars(ModelConfig()), vars(MethodConfig())
_STEIN = ("kernel", "kernel_block", "bandwidth_factor", "normalise_direction", "mass_rate")
"""Settings of Stein directions that are named only where they are not the default."""


@dataclass(frozen=True)
class Cell:
    """One run of a table."""

    row: str
    """The row of the table it belongs to, for example "Stein VAE, leave one out"."""

    config: Config

    minutes: float | None = None
    """Of a core's or a device's time for the updates, from which a pilot finds the steps; None
    where the steps are those of `config`."""

    def of_steps(self, steps: int) -> Cell:
        """The cell with so many steps, and a cosine of the learning rate that ends with them."""
        config = self.config
        trainer = replace(config.trainer, max_steps=steps)
        optimizer = replace(config.optimizer, decay_steps=steps)
        return replace(self, config=replace(config, trainer=trainer, optimizer=optimizer))

    def folder(self, run_dir: Path) -> Path:
        """The run folder of the cell, under that of its experiment."""
        return run_dir / f"{slug(self.row)}-{self.config.seed}"

    def setting(self) -> dict[str, Any]:
        """What decides the number, flat: a record with another setting is another cell."""
        config, method = self.config, self.config.method
        setting = {
            "data": config.data.name,
            "binarization": config.data.binarization,
            "codes": config.model.codes,
            "hidden": "-".join(map(str, config.model.hidden)),
            "code_particles": method.code_particles,
            "batch_size": config.trainer.batch_size,
            "steps": config.trainer.max_steps,
            "learning_rate": config.optimizer.learning_rate,
        }
        if self.minutes is not None:
            setting["minutes"] = self.minutes
        if method.is_stein:
            setting |= {
                "self_term": method.self_term,
                "encoder": config.model.encoder,
                "pairing": method.pairing,
                "theta_particles": method.theta_particles,
                "bandwidth": method.bandwidth,
            }
        return setting | self._further()

    def _further(self) -> dict[str, Any]:
        """What came after the first records, named only where it is not as it was then."""
        model, method = self.config.model, self.config.method
        further: dict[str, Any] = {}
        if method.name in GROUPED:
            further |= {"importance_samples": method.importance_samples, "weights": method.weights}
        if self.config.trainer.precision != "float32":
            further["precision"] = self.config.trainer.precision
        if self.config.optimizer.encoder_factor != 1:
            further["encoder_factor"] = self.config.optimizer.encoder_factor
        if model.decoder is not None:
            further["decoder"] = model.decoder
        if model.layers:
            shapes = model.gamma_shapes
            further["layers"] = "-".join(map(str, model.layers))
            further["shape"] = shapes[0] if len(shapes) == 1 else "-".join(map(str, shapes))
            further |= {} if model.start == "prior" else {"start": model.start}
        if method.is_stein:
            further |= {n: own for n in _STEIN if (own := getattr(method, n)) != _METHOD[n]}
        if method.move_codes:
            further |= {"move_codes": True, "code_step": method.code_step}
        if method.entropy_weight != 1:
            further["entropy_weight"] = method.entropy_weight
        if method.name == "stein_viwae":
            further["log_q"] = method.log_q
        if method.name == "flow_elbo" and model.encoder != "flow":
            further["encoder"] = model.encoder
        if method.encoder_kind(model) == "flow" and model.flow_blocks > 1:
            further["flow_blocks"] = model.flow_blocks
        if method.name == "planar_flow":
            further["planar_layers"] = model.planar_layers
        if method.name == "iwae" and method.iwae_gradient != "standard":
            further["iwae_gradient"] = method.iwae_gradient
        return further | self._networks() | self._labels()

    def _networks(self) -> dict[str, Any]:
        model = self.config.model
        names = ("network", "activation", "noise_hidden", "stack", "label_kernels")
        crop = {"crop": self.config.data.crop} if self.config.data.name == IN_FILES else {}
        return crop | {name: own for name in names if (own := getattr(model, name)) != _MODEL[name]}

    def _labels(self) -> dict[str, Any]:
        data, method = self.config.data, self.config.method
        if not data.labelled:
            return {}
        names = ("labels_per_class", "label_fraction", "split_seed")
        labels = {name: own for name in names if (own := getattr(data, name)) is not None}
        if method.is_stein:
            labels["label_decoders"] = method.label_decoders
        if self.config.model.input_dropout:
            labels["input_dropout"] = self.config.model.input_dropout
        names = ("zeta", "guess_above", "align_guesses", "adversarial_radius")
        return labels | {n: own for n in names if (own := getattr(method, n)) != _METHOD[n]}

    def matches(self, record: Record) -> bool:
        """Whether the record is this cell's."""
        evaluation = self.config.evaluation
        same_test = (f"iw_g({evaluation.samples})", evaluation.images)
        return (
            record["method"] == self.config.method.name
            and record["setting"] == self.setting()
            and record["seed"] == self.config.seed
            and record["metric"] == METRIC
            and (record["estimator"], record["n"]) == same_test
        )


def run_cells(experiment: str, cells: Sequence[Cell], output: Path, run_dir: Path) -> list[Record]:
    """Run the cells that have no record in `output` yet; returns the records of all of them.

    A cell that was interrupted continues from its checkpoint in `run_dir`.
    """
    dataset: Dataset | None = None
    written = read(output)
    announce(len(cells), output, [None for cell in cells if not find(cell, written)])
    with StopRequest() as stop:
        for cell in cells:
            name = f"{cell.row}, seed {cell.config.seed}"
            if find(cell, read(output)):
                print(f"{name}: already in {output}")
                continue
            dataset = dataset or load_data(cell.config)
            record = _run_cell(experiment, cell, dataset, run_dir, stop)
            append_records(output, [record])
            print(f"{name}: {record['value']:.2f} nats ({record['seconds']:.0f} s)", flush=True)
    records = read(output)
    return [record for cell in cells if (record := find(cell, records))]


def announce(cells: int, output: Path, missing: Sequence[float | None]) -> None:
    """Say before the cells how many have records; `missing` are the others' minutes, if known."""
    known = [minutes for minutes in missing if minutes is not None]
    time = ""
    if known:
        total = sum(known)
        length = f"{total:.0f} minutes" if total < 120 else f"{total / 60:.0f} h"
        each = f" at {known[0]:g} minutes a cell" if len(set(known)) == 1 else ""
        time = f" (about {length}{each})"
    there, s = cells - len(missing), "" if cells == 1 else "s"
    have = f"{there} {'has' if there == 1 else 'have'} records in {output}"
    print(f"{cells} cell{s}: {have}, {len(missing)} to run{time}", flush=True)


def find(cell: Cell, records: Iterable[Record]) -> Record | None:
    """The cell's newest record."""
    return next((each for each in reversed(list(records)) if cell.matches(each)), None)


def train_cell(cell: Cell, dataset: Dataset, run_dir: Path, stop: StopRequest) -> Record:
    """Train a cell in its folder, from its checkpoint if there is one; the content of result.json.

    A cell that has finished is not trained again. Errors: InUseError where another process trains
    it; ValueError where the folder holds a cell of other settings.
    """
    folder = cell.folder(run_dir)
    with lock_run_dir(folder):
        config = replace(cell.config, run_dir=str(folder), resume="auto")
        if (folder / RESULT).exists():
            check_same(read_config(folder), config, but=NOT_IN_A_RESULT)
            return json.loads((folder / RESULT).read_text("utf-8"))
        prepare_process(config)
        return train(prepare(config, dataset, folder), stop)


def with_threads(device: str) -> str:
    """The device, and the CPU threads beside it, as records have them."""
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' if threads > 1 else ''}"


def _run_cell(
    experiment: str, cell: Cell, dataset: Dataset, run_dir: Path, stop: StopRequest
) -> Record:
    config = cell.config
    result = train_cell(cell, dataset, run_dir, stop)
    return tidy_record(
        experiment=experiment,
        method=config.method.name,
        setting=cell.setting(),
        seed=config.seed,
        metric=METRIC,
        value=result["nll"]["value"],
        stderr=result["nll"]["standard_error"],
        n=result["nll"]["images"],
        estimator=result["nll"]["estimator"],
        seconds=result["seconds"],
        device=with_threads(result["device"]),
    )


def read(path: Path) -> list[Record]:
    """The records of a file that may not be there yet."""
    return read_records(path) if path.exists() else []


def slug(text: str) -> str:
    """A row's name as part of a folder's."""
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")
