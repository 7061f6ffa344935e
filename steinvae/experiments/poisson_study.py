"""A study of Poisson factor analysis: train each encoder once, score it against Gibbs, draw both.

Shapes: V topics, P words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from steinvae.data import Dataset
from steinvae.experiments.cells import announce, read
from steinvae.experiments.known_posterior import (
    Record,
    Score,
    find,
    mean_seconds,
    over_runs,
    write_scores,
)
from steinvae.experiments.poisson_cells import Known, PoissonCell, build
from steinvae.experiments.poisson_picture import save_posteriors
from steinvae.experiments.poisson_scores import (
    CHAINS,
    METRICS,
    Truth,
    chain_statistics,
    compare,
    diagnose,
    encoder_draws,
)
from steinvae.model_file import MODEL, read_model
from steinvae.report import markdown_table
from steinvae.run import prepare_with, train
from steinvae.signals import StopRequest

FLOOR = "Gibbs, second half of the chains (floor)"


@dataclass(frozen=True)
class Table:
    """What is to be run and drawn, known before any data are."""

    name: str
    """Of the experiment."""

    setting: Mapping[str, Any]
    """What all records have in their setting."""

    rows: Sequence[PoissonCell]
    """A cell for each row, the most telling first; seed 0."""

    test: int
    """Documents that are scored."""

    @property
    def floor_setting(self) -> dict[str, Any]:
        """The setting of the records of the Gibbs chains."""
        return dict(self.setting) | {"chains": CHAINS}

    def draw(self, output: Path, seeds: Sequence[int]) -> str:
        """The table in Markdown, from the records in `output` alone; empty without a run of these
        seeds: the floor alone compares with nothing."""
        records = read(output)
        lines = []
        for cell in self.rows:
            setting = cell.setting(self.setting)
            lines += _line(cell.row, [find(records, cell.method, setting, s) for s in seeds])
        if not lines:
            return ""
        floor = find(records, "gibbs", self.floor_setting, 0)
        lines += _line(FLOOR, [floor])
        header = ("method", "W1 / sd", "sd ratio", "MMD²", "seeds", "s / run")
        return markdown_table(header, lines) + _caption(floor)


class Runner:
    """Runs what a table lacks; documents and truth are made when they are first needed."""

    def __init__(
        self,
        table: Table,
        run_dir: Path,
        *,
        known: Callable[[], Known],
        sample: Callable[[Known], Truth],
        dataset: Callable[[], Dataset],
    ) -> None:
        self.table, self.run_dir = table, run_dir
        self._known, self._sample, self._dataset = known, sample, dataset

    @cached_property
    def known(self) -> Known:
        """Topics and test documents."""
        return self._known()

    @cached_property
    def truth(self) -> Truth:
        """Gibbs draws for the test documents."""
        return self._sample(self.known)

    @cached_property
    def dataset(self) -> Dataset:
        """The documents that encoders are trained on."""
        return self._dataset()

    def run(self, seeds: Sequence[int], output: Path) -> str:
        """Train and score what has no records in `output` yet, and return the table."""
        wanted = [replace(row, seed=seed) for seed in seeds for row in self.table.rows]
        written = read(output)
        missing = [
            cell
            for cell in wanted
            if not find(written, cell.method, cell.setting(self.table.setting), cell.seed)
        ]
        announce(len(wanted), output, [None for _ in missing])
        with StopRequest() as stop:
            self._run_floor(output)
            for cell in missing:
                self._run_cell(cell, output, stop)
        return self.table.draw(output, seeds)

    def picture(self, path: Path, rows: Sequence[int], document: int) -> None:
        """Posteriors of one test document: Gibbs, and the finished cells of `rows`, seed 0.

        Errors: FileNotFoundError naming a folder without a finished run.
        """
        draws = {"Gibbs": self.truth.first[document]}
        counts = self.known.test[document : document + 1]
        for cell in (self.table.rows[row] for row in rows):
            file = self._folder(cell) / MODEL
            if not file.exists():
                raise FileNotFoundError(f"{file}: run the experiment with this run_dir first")
            networks = build(cell, self.known)
            networks.load(read_model(file))
            draws[cell.row] = encoder_draws(networks, counts, len(draws["Gibbs"]), 0)[0]
        save_posteriors(path, draws)

    def _folder(self, cell: PoissonCell) -> Path:
        return self.run_dir / cell.folder(self.table.setting["shape"])

    def _run_cell(self, cell: PoissonCell, output: Path, stop: StopRequest) -> None:
        setting = cell.setting(self.table.setting)
        truth = self.truth.first
        networks = build(cell, self.known)
        config = cell.config(self._folder(cell), self.table.test)
        seconds = train(prepare_with(networks, config, self.dataset), stop)["cpu_seconds"]
        found = compare(encoder_draws(networks, self.known.test, truth.shape[1], cell.seed), truth)
        self._write(output, cell.method, setting, cell.seed, found, seconds)
        values = ", ".join(f"{each.metric} {each.value:.3f}" for each in found)
        print(f"{cell.row}, seed {cell.seed}: {values} ({seconds:.0f} s)", flush=True)

    def _run_floor(self, output: Path) -> None:
        if find(read(output), "gibbs", self.table.floor_setting, 0):
            return
        chain_statistics()  # before the chains run, say what is missing
        scores = [*compare(self.truth.second, self.truth.first), *diagnose(self.truth)]
        self._write(output, "gibbs", self.table.floor_setting, 0, scores, 0.0)

    def _write(
        self,
        output: Path,
        method: str,
        setting: dict[str, Any],
        seed: int,
        scores: list[Score],
        seconds: float,
    ) -> None:
        run = {"experiment": self.table.name, "method": method, "setting": setting, "seed": seed}
        write_scores(output, scores, **run, n=self.table.test, seconds=seconds)


def _line(name: str, by_seed: Sequence[Sequence[Record]]) -> list[list[str]]:
    found = [records for records in by_seed if records]
    if not found:
        return []
    values = [
        [record["value"] for records in found for record in records if record["metric"] == metric]
        for metric in METRICS
    ]
    return [[name, *map(over_runs, values), str(len(found)), mean_seconds(found)]]


def _caption(floor: Sequence[Record]) -> str:
    found = {record["metric"]: record["value"] for record in floor}
    if "rhat" not in found:
        return ""
    return (
        f"\n\nThe Gibbs chains, topics with mass: largest rank-normalised split R-hat "
        f"{found['rhat']:.3f}, smallest bulk effective sample size {found['ess']:.0f} "
        f"of {CHAINS} chains."
    )
