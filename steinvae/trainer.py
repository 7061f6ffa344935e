"""The training loop: a pure update per step, everything random derived from (seed, step).

A checkpoint holds the networks, Adam's moments, a few counters and, without labels, the best
parameters so far, so a resumed run repeats the uninterrupted one bit for bit, metrics included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steinvae import checkpoint
from steinvae.captured import Graphs, Moved, recorder
from steinvae.config import Config
from steinvae.data import BatchSampler, Dataset
from steinvae.data.identity import differences, identity
from steinvae.density import Estimate, evenly_spaced, negative_log_likelihood
from steinvae.density.likelihood import noise_dimension
from steinvae.device import choose_device, multiplying, send
from steinvae.draws import ALL, Draws, pick
from steinvae.feed import Feed
from steinvae.gradients import Batch, temperature
from steinvae.labels.adversary import perturbed
from steinvae.labels.task import count_classes
from steinvae.labels.training import Labelled
from steinvae.logging import MetricsWriter, Progress, shown
from steinvae.networks import Networks, build_networks, start_at_data
from steinvae.nonfinite import NonFinite, NonFiniteError, all_finite
from steinvae.objectives import OBJECTIVES, regression_gradients
from steinvae.optimizer import Optimizer, is_left_out, learning_rate
from steinvae.saving import Saver
from steinvae.signals import StopRequest
from steinvae.throughput import Throughput, Work, work_of


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
        self.alone = False  # whether no command holds the run folder and writes its report
        self.device = choose_device(config.trainer.device)
        pixels = dataset.train.features
        classes = count_classes(config, dataset) if config.data.labelled else None
        self.networks = networks or build_networks(config, pixels, self.device, classes)
        if networks is None:
            start_at_data(self.networks, config, dataset)
        captured = config.trainer.cuda_graph
        self.optimizer = Optimizer(self.networks, config.optimizer, captured=captured)
        self._graphs = Graphs(self._move, recorder(self.device)) if captured else None
        batch_size = config.trainer.batch_size
        self.labelled = Labelled(config, dataset, self.device) if config.data.labelled else None
        if self.labelled is None:
            self._sampler = BatchSampler(len(dataset.train), batch_size, config.seed)
            self._objective = OBJECTIVES[config.method.name]
        else:
            self._sampler, self._objective = self.labelled.sampler, self.labelled.objective
        self._feed = Feed(config, dataset, self._sampler, self.device)
        self._rows: Sequence[slice] = ALL
        self._best: dict[str, Tensor] = {}
        self.state: dict[str, Any] = {
            "best_value": None,
            "best_step": None,
            "since_best": 0,
            "skipped": 0,
            "skipped_in_a_row": 0,
            "rollbacks": 0,
            "passed_over": 0,
            "seconds": 0.0,
            "cpu_seconds": 0.0,
            "data": identity(dataset.train, dataset),
        }
        self.step = 0
        own = Work(batch_size, None, None)  # networks that the configuration does not describe
        self.work = work_of(config) if networks is None else own
        self._nonfinite = NonFinite(self.device)
        self._rollbacks = 0  # since the last save
        settings = config.trainer
        self._saver = Saver(
            self.run_dir, settings.keep_checkpoints, in_background=settings.save_in_background
        )

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
        speed = Throughput(self.work, metrics, self.step, settings.max_steps)
        with stop.deferred(), self._saver, speed:
            if settings.on_nonfinite == "rollback" and self.step == 0:
                self.save(self.tensors(), metrics)  # something to go back to
            while not self.finished:
                record, sound = self._advance()
                self.state["seconds"] = time.monotonic() - started
                self.state["cpu_seconds"] = time.process_time() - cpu_started
                leaving = stop.requested is not None or self.finished
                saving = leaving or self.step % settings.checkpoint_every == 0
                tensors = self.tensors() if saving else {}
                if not sound or ((record or saving) and not self._sound(tensors)):
                    self._roll_back(metrics, speed, progress)
                    stop.check()
                    continue
                if record:
                    metrics.write(self.step, record)
                    progress.update(self.step, shown(record | speed.write(self.step)))
                if saving:
                    self.save(tensors, metrics)
                if leaving:  # a signal that came since is one of the next step, which saves
                    self.settle()
                    stop.check()
        if stop.requested is not None:  # one that came since then, while nothing heard it
            stop.check()

    def _advance(self) -> tuple[dict[str, float], bool]:
        """One update, and a validation where one is due; returns what to log, and False where it
        would have been of networks that are not finite."""
        settings = self.config.trainer
        self.step += 1
        log = self.step == 1 or self.step % settings.log_every == 0 or self._compares(self.step - 1)
        stats = self.update(self.step - 1, monitor=log)
        record = {f"train/{name}": value for name, value in stats.items()} if log else {}
        if self.step % settings.validate_every == 0:
            if not self._sound(self.networks.tensors()):
                return record, False
            estimate = self.validate()
            self._remember(estimate)
            record["validation/nll"] = estimate.value
            if self.labelled:
                record |= self.labelled.validate(self.networks)
        return record, True

    def update(self, step: int, *, monitor: bool) -> dict[str, float]:
        """Update `step` = 0, 1, ...: draw, compute gradients, apply them where they are finite.

        Returns the statistics as numbers where `monitor`, else nothing (no synchronisation).
        """
        batch = self.batch(step, monitor=monitor)
        batch = batch._replace(compare=monitor and self._compares(step))
        self.optimizer.schedule(step)
        number = torch.full((), step, device=self.device)
        with multiplying(self.config.trainer.precision):
            norm, found = (self._graphs or self._move)(batch, number)
        if not monitor:
            return {}
        stats = {name: value.item() for name, value in found.items()}
        rate = learning_rate(self.config.optimizer, step)
        if self.config.method.temperature > 1:
            stats["temperature"] = batch.temperature
        stats |= {"gradient_norm": norm.item(), "learning_rate": rate}
        stats["skipped"] = self._nonfinite.read().total
        if self.config.trainer.on_nonfinite == "rollback":
            stats["rollbacks"] = self.state["rollbacks"]
        return stats

    def _move(self, batch: Batch, number: Tensor) -> Moved:
        """The update `number` (): everything that changes, changes in place and on the device."""
        method = self.config.method
        averages = [(own, own.clone()) for own in self.networks.averages()]
        with self.networks.training():
            if method.adversarial_radius:
                batch = perturbed(self.networks, batch, method.adversarial_radius)
            gradients = self._objective(self.networks, batch, method, len(self.dataset.train))
        theta = None if method.fixed_theta else gradients.theta
        norm = self.optimizer.apply(
            theta, gradients.eta, gradients.labels, loss=gradients.stats.get("distortion")
        )
        left_out = is_left_out(norm)
        if gradients.targets is not None:
            for _ in range(method.regression_steps - 1):
                further = regression_gradients(
                    self.networks, batch, gradients.targets, method.code_step
                )
                again = self.optimizer.apply(None, further, unless=left_out)
                left_out = is_left_out(again, left_out)
        for own, before in averages:
            own.copy_(torch.where(left_out, before, own))
        self._nonfinite.note(left_out, number)
        return Moved(norm, gradients.stats)

    def batch(self, step: int, *, monitor: bool = False) -> Batch:
        """The images and noise of update `step`, from (seed, step) alone; of own rows where
        processes share them out.

        Minibatches that a rollback has passed over are left out of the order.
        """
        method = self.config.method
        draw = step + self.state["passed_over"]
        images = self.config.trainer.batch_size
        pixels = self._feed(draw)
        draws = Draws(self.config.seed, draw, self._rows)
        rows = 1 if method.shared_noise else images
        dimension = noise_dimension(self.networks.encoder)
        batch = Batch(
            pixels,
            self._send(draws.normal("noise", (rows, method.codes_per_image, dimension))),
            self._send(draws.order("order", method.code_particles)),
            monitor,
            temperature=temperature(method, step),
        )
        if self.labelled:
            own = pick(self._sampler.indices(draw), self._rows)
            batch = batch._replace(labels=self._send(self.labelled.labels(own)))
        share = self.config.model.input_dropout
        if share:
            kept = draws.uniform("input dropout", (images, pixels.shape[1])) >= share
            batch = batch._replace(visible=pixels * self._send(kept) / (1 - share))
        if method.adversarial_radius:
            probe = draws.normal("adversarial start", (images, pixels.shape[1]))
            batch = batch._replace(probe=self._send(probe))
        if method.mass_rate:
            reference = draws.normal("reference", (rows, method.mass_codes, dimension))
            batch = batch._replace(reference=self._send(reference))
        return batch

    def _send(self, values: Tensor) -> Tensor:
        return send(values, self.device)

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
        if not validated and -math.inf < self.validate().value < self.state["best_value"]:
            return self.step
        self.networks.load(self._best)
        return self.state["best_step"]

    def close(self) -> None:
        """End the processes that read ahead, and let captured updates go."""
        self._feed.close()
        self._graphs = None  # which holds the trainer: only the collector would end it

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by name."""
        best = {f"best.{name}": tensor for name, tensor in self._best.items()}
        return self.networks.tensors() | self.optimizer.tensors() | best

    def save(self, tensors: dict[str, Tensor], metrics: MetricsWriter | None = None) -> None:
        """Write these as the checkpoint of this step, metrics first, and drop old ones.

        They may change when this returns; `settle` waits for the disk.
        """
        self._saver.save(self.step, tensors, self.state, metrics and metrics.sync)
        self._rollbacks = 0

    def settle(self) -> None:
        """Wait until what was saved is on the disk."""
        self._saver.wait()

    def resume(self) -> bool:
        """Continue from the newest intact checkpoint; False where there is none.

        Errors: ValueError for a checkpoint of other networks or of other training data, or where
        all are damaged; OSError where one cannot be read.
        """
        path = checkpoint.latest(self.run_dir)
        if path is None:
            checkpoint.refuse_damaged(self.run_dir)
            return False
        saved = checkpoint.load(path)
        data = self.state["data"]
        changed = differences(saved.state.get("data", data), data)
        if changed:
            raise ValueError(
                f"resume must keep the training data of the run in {self.run_dir}: {changed}"
            )
        own = self.networks.tensors()
        extra = {n: t for n, t in saved.tensors.items() if n.startswith(("adam.", "best."))}
        saved.require({n: (tuple(t.shape), t.dtype) for n, t in (own | extra).items()})
        self.networks.load({name: saved.tensors[name] for name in own})
        self.optimizer.load(saved.tensors)
        self._best = {
            name.removeprefix("best."): tensor.to(self.device)
            for name, tensor in saved.tensors.items()
            if name.startswith("best.") and not self.labelled
        }
        self.step, self.state = saved.step, self.state | saved.state | {"data": data}
        self._nonfinite.restart(self.state["skipped"], self.state["skipped_in_a_row"])
        if self._graphs:
            self._graphs.forget()
        return True

    def _remember(self, estimate: Estimate) -> None:
        best = self.state["best_value"]
        worse = best is not None and not estimate.value < best
        if worse or not math.isfinite(estimate.value):  # a model that has diverged is never better
            self.state["since_best"] += 1
            return
        self.state |= {"best_value": estimate.value, "best_step": self.step, "since_best": 0}
        if self.labelled:  # the last parameters are tested
            return
        self._best = {name: item.clone() for name, item in self.networks.tensors().items()}

    def _sound(self, tensors: dict[str, Tensor]) -> bool:
        """Whether to go on from here: updates and `tensors`, which are to be saved, were finite.

        Where not, False asks for a rollback; errors: NonFiniteError where the settings end the run.
        """
        found, settings = self._nonfinite.read(), self.config.trainer
        self._nonfinite.forget()
        before, policy = self.state["skipped"], settings.on_nonfinite
        self.state |= {"skipped": found.total, "skipped_in_a_row": found.in_a_row}
        limit = settings.nonfinite_limit
        if not all_finite(tensors.values()):
            fault = f"parameters were not finite after step {self.step}"
        elif found.longest >= limit and policy == "skip":
            fault = (
                f"losses or gradients were not finite for {found.longest} updates in a row, the "
                f"last at step {found.last} (trainer.nonfinite_limit is {limit})"
            )
        elif found.total > before and policy != "skip":
            fault = f"loss or gradients were not finite at step {found.last}"
        else:
            return True
        if policy == "rollback" and self._rollbacks < limit:
            return False
        if policy == "rollback":
            fault += f" and after {limit} rollbacks (trainer.nonfinite_limit) in a row"
        raise NonFiniteError(
            f"{fault}; the checkpoints in {self.run_dir} are from before. "
            "Try a smaller optimizer.learning_rate, or trainer.on_nonfinite"
        )

    def _roll_back(self, metrics: MetricsWriter, speed: Throughput, progress: Progress) -> None:
        """Go back to the last checkpoint, and on with minibatches that have not been drawn yet.

        The same ones would fail the same way: all that is random comes from (seed, step).
        """
        failed, drawn = self.step, self.step + self.state["passed_over"]
        count = self.state["rollbacks"] + 1
        self.settle()
        try:
            fault = None if self.resume() else f"{self.run_dir} has no checkpoint"
        except ValueError as error:  # all are damaged
            fault = str(error)
        if fault:
            raise NonFiniteError(f"not finite by step {failed}, nothing to go back to: {fault}")
        self.state |= {"rollbacks": count, "passed_over": drawn - self.step}
        self._rollbacks += 1
        metrics.rewind(self.step)
        speed.rewind(self.step)
        progress.print(f"not finite by step {failed}: back to the checkpoint of step {self.step}")
