"""The training loop: a pure update per step, everything random derived from (seed, step).

A checkpoint holds the networks, Adam's moments, the best parameters so far and a few counters, so a
resumed run repeats the uninterrupted one bit for bit, its metrics included.
"""

from __future__ import annotations

import time
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steinvae import checkpoint
from steinvae.config import Config
from steinvae.data import BatchSampler, Dataset, step_generator
from steinvae.density import Estimate, evenly_spaced, negative_log_likelihood
from steinvae.density.likelihood import noise_dimension
from steinvae.gradients import Batch, temperature
from steinvae.labels.training import Labelled
from steinvae.logging import MetricsWriter, Progress
from steinvae.networks import Networks, build_networks
from steinvae.objectives import OBJECTIVES, regression_gradients
from steinvae.optimizer import Optimizer, learning_rate
from steinvae.signals import StopRequest


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a NaN or infinite gradient."""


class Trainer:
    """Networks in training on one data set, with their run folder.

    `networks` replaces those that the configuration describes: a user's own likelihood and nets.
    `step` counts updates done. The best parameters are those with the lowest validation NLL; the
    test split is never looked at here.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        run_dir: Path,
        networks: Networks | None = None,
    ) -> None:
        self.config, self.dataset, self.run_dir = config, dataset, Path(run_dir)
        self.device = choose_device(config.trainer.device)
        pixels = dataset.train.features
        self.networks = networks or build_networks(config, pixels, self.device)
        self.optimizer = Optimizer(self.networks, config.optimizer)
        batch_size = config.trainer.batch_size
        self.labelled = Labelled(config, dataset) if config.data.labelled else None
        if self.labelled is None:
            self._sampler = BatchSampler(len(dataset.train), batch_size, config.seed)
            self._objective = OBJECTIVES[config.method.name]
        else:
            self._sampler, self._objective = self.labelled.sampler, self.labelled.objective
        self._best: dict[str, Tensor] = {}
        self.state: dict[str, Any] = {
            "best_value": None,
            "best_step": None,
            "since_best": 0,
            "skipped": 0,
            "skipped_in_a_row": 0,
            "seconds": 0.0,
            "cpu_seconds": 0.0,
        }
        self.step = 0

    @property
    def finished(self) -> bool:
        """Whether all updates are done, or patience has run out."""
        patience = self.config.trainer.patience
        out_of_patience = 0 < patience <= self.state["since_best"]
        return self.step >= self.config.trainer.max_steps or out_of_patience

    def fit(self, metrics: MetricsWriter, progress: Progress, stop: StopRequest) -> None:
        """Train until `finished`; on a signal, checkpoint at the step boundary and stop."""
        if self.finished:
            return
        settings = self.config.trainer
        started = time.monotonic() - self.state["seconds"]
        cpu_started = time.process_time() - self.state["cpu_seconds"]
        with stop.deferred():
            while not self.finished:
                record = self._advance()
                self.state["seconds"] = time.monotonic() - started
                self.state["cpu_seconds"] = time.process_time() - cpu_started
                if record:
                    metrics.write(self.step, record)
                    progress.update(self.step, _shown(record))
                leaving = stop.requested is not None or self.finished
                if leaving or self.step % settings.checkpoint_every == 0:
                    metrics.sync()
                    self.save()
                stop.check()

    def _advance(self) -> dict[str, float]:
        """One update, and a validation where one is due; returns what to log."""
        settings = self.config.trainer
        self.step += 1
        log = self.step == 1 or self.step % settings.log_every == 0 or self._compares(self.step - 1)
        stats = self.update(self.step - 1, monitor=log)
        record = {f"train/{name}": value for name, value in stats.items()} if log else {}
        if self.step % settings.validate_every == 0:
            estimate = self.validate()
            self._remember(estimate)
            record["validation/nll"] = estimate.value
            if self.labelled:
                record |= self.labelled.validate(self.networks)
        return record

    def update(self, step: int, *, monitor: bool) -> dict[str, float]:
        """Update `step` = 0, 1, ...: draw, compute gradients, apply them where they are finite.

        Returns the statistics as numbers where `monitor`, else nothing (no synchronisation).
        """
        batch = self.batch(step, monitor=monitor)
        batch = batch._replace(compare=monitor and self._compares(step))
        method = self.config.method
        gradients = self._objective(self.networks, batch, method, len(self.dataset.train))
        theta = None if method.fixed_theta else gradients.theta
        norm = self.optimizer.apply(step, theta, gradients.eta, gradients.labels)
        if self._count(norm, step) and gradients.targets is not None:
            for _ in range(method.regression_steps - 1):
                further = regression_gradients(
                    self.networks, batch, gradients.targets, method.code_step
                )
                self.optimizer.apply(step, None, further)
        if not monitor:
            return {}
        stats = {name: value.item() for name, value in gradients.stats.items()}
        rate = learning_rate(self.config.optimizer, step)
        skipped = self.state["skipped"]
        if method.temperature > 1:
            stats["temperature"] = batch.temperature
        return stats | {"gradient_norm": norm, "learning_rate": rate, "skipped": skipped}

    def batch(self, step: int, *, monitor: bool = False) -> Batch:
        """The images and noise of update `step`, from (seed, step) alone."""
        method, seed = self.config.method, self.config.seed
        indices = self._sampler.indices(step)
        pixels = self.dataset.train.batch(indices, step_generator(seed, step, "binarization"))
        generator = step_generator(seed, step, "noise")
        rows = 1 if method.shared_noise else len(indices)
        shape = (rows, method.codes_per_image, noise_dimension(self.networks.encoder))
        noise = torch.randn(shape, generator=generator)
        order = torch.randperm(method.code_particles, generator=generator)
        pixels, noise, order = (item.to(self.device) for item in (pixels, noise, order))
        labels = self.labelled.labels(indices).to(self.device) if self.labelled else None
        heat = temperature(method, step)
        batch = Batch(pixels, noise, order, monitor, labels=labels, temperature=heat)
        if method.mass_rate == 0:
            return batch
        shape = (rows, method.mass_codes, noise.shape[-1])
        return batch._replace(reference=torch.randn(shape, generator=generator).to(self.device))

    def _compares(self, step: int) -> bool:
        """Whether update `step` compares its direction with the exact field."""
        every = self.config.trainer.monitor_every
        return self.config.method.is_stein and every > 0 and (step + 1) % every == 0

    def validate(self) -> Estimate:
        """The NLL on the validation images, always with the same noise."""
        settings = self.config.evaluation
        split = self.dataset.validation
        indices = evenly_spaced(len(split), settings.validation_images)
        return negative_log_likelihood(
            self.networks,
            split.batch(indices).to(self.device),
            samples=settings.validation_samples,
            seed=self.config.seed,
            fit_samples=settings.fit_samples,
            inflation=settings.inflation,
            proposal=settings.proposal,
        )

    def select(self) -> int:
        """Put the best parameters into the networks and return their step.

        Without a validation at the last step, one is made here. It is kept out of the checkpoint:
        a longer run, which would not validate at this step, continues from the same state.

        Where labels are in use the last parameters stay: the best image model is not the best
        classifier, and the validation images' labels choose nothing.
        """
        if self.state["best_step"] is None or self.labelled:
            return self.step
        validated = self.step % self.config.trainer.validate_every == 0
        if not validated and self.validate().value < self.state["best_value"]:
            return self.step
        self.networks.load(self._best)
        return self.state["best_step"]

    def save(self) -> None:
        """Write a checkpoint and drop old ones."""
        self.write(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by name."""
        best = {f"best.{name}": tensor for name, tensor in self._best.items()}
        return self.networks.tensors() | self.optimizer.tensors() | best

    def write(self, tensors: dict[str, Tensor]) -> None:
        """Write these as the checkpoint of this step and drop old ones."""
        checkpoint.save(self.run_dir, self.step, tensors, self.state)
        checkpoint.prune(self.run_dir, self.config.trainer.keep_checkpoints)

    def resume(self) -> bool:
        """Continue from the newest intact checkpoint; False where there is none."""
        path = checkpoint.latest(self.run_dir)
        if path is None:
            return False
        saved = checkpoint.load(path)
        own = self.networks.tensors()
        extra = {n: t for n, t in saved.tensors.items() if n.startswith(("adam.", "best."))}
        saved.require({n: (tuple(t.shape), t.dtype) for n, t in (own | extra).items()})
        self.networks.load(saved.tensors)
        self.optimizer.load(saved.tensors)
        self._best = {
            name.removeprefix("best."): tensor.to(self.device)
            for name, tensor in saved.tensors.items()
            if name.startswith("best.")
        }
        self.step, self.state = saved.step, self.state | saved.state
        return True

    def _remember(self, estimate: Estimate) -> None:
        best = self.state["best_value"]
        if not estimate.value < (float("inf") if best is None else best):  # NaN is never better
            self.state["since_best"] += 1
            return
        self.state |= {"best_value": estimate.value, "best_step": self.step, "since_best": 0}
        self._best = {name: item.clone() for name, item in self.networks.tensors().items()}

    def _count(self, norm: float, step: int) -> bool:
        """Book-keeping of skipped updates; True where the update was applied."""
        if isfinite(norm):
            self.state["skipped_in_a_row"] = 0
            return True
        self.state["skipped"] += 1
        self.state["skipped_in_a_row"] += 1
        in_a_row, limit = self.state["skipped_in_a_row"], self.config.trainer.nonfinite_limit
        if in_a_row >= limit:
            raise NonFiniteError(
                f"gradients were not finite for {in_a_row} updates in a row, the last at step "
                f"{step} (trainer.nonfinite_limit is {limit}); parameters are those before them, "
                f"and the checkpoints in {self.run_dir} are untouched. "
                "Try a smaller optimizer.learning_rate"
            )
        return False


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto takes a GPU when torch sees one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("trainer.device is cuda, but torch sees no GPU")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def use_threads(config: Config) -> None:
    """Set the number of CPU threads of this process as trainer.threads says; 0 leaves torch's."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)


def _shown(record: dict[str, float]) -> dict[str, float]:
    names = ("train/distortion", "validation/nll")
    return {name.split("/")[1]: record[name] for name in names if name in record}
