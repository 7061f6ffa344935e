"""What the tests of training run on every rank: a run of all ranks beside a run of one process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from steinvae.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    MethodConfig,
    ModelConfig,
    TrainerConfig,
)
from steinvae.data import Dataset, Split
from steinvae.data.images.split import ImageSplit
from steinvae.data.synthetic import Vectors
from steinvae.distributed import ShardedTrainer, World
from steinvae.gradients import Gradients
from steinvae.logging import MetricsWriter, Progress
from steinvae.models.batch_norm import BatchNorm, over_ranks
from steinvae.presets import load_preset
from steinvae.run import follow, load_data
from steinvae.signals import Interrupted, StopRequest
from steinvae.trainer import Trainer
from tests.distributed.on_ranks import Traffic
from tests.train.image_trees import small_config

PIXELS = 9  # decoders of 3 codes, 5 units, 9 pixels have 74 parameters: 19, 19, 19, 17 on 4 ranks
DECODERS, DECODER = 3, 74


class Wide(Vectors):
    """In float64."""

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return super().batch(indices, generator).double()


class Labelled(Split):
    """In float64, with labels."""

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return super().batch(indices, generator).double()


def labelled_data() -> Dataset:
    draw = torch.Generator().manual_seed(3)
    splits = {
        name: Labelled(
            pixels=torch.randint(17, (size, PIXELS), generator=draw, dtype=torch.uint8),
            levels=16,
            labels=torch.arange(size) % 10,
        )
        for name, size in {"train": 40, "validation": 10, "test": 10}.items()
    }
    return Dataset(
        name="pixels", binarization="none", binarization_seed=None, image_shape=None, **splits
    )


def data(labelled: bool = False) -> Dataset:
    if labelled:
        return labelled_data()
    draw = torch.Generator().manual_seed(3)
    splits = {
        name: Wide(torch.rand(size, PIXELS, generator=draw, dtype=torch.float32))
        for name, size in {"train": 32, "validation": 8, "test": 8}.items()
    }
    return Dataset(
        name="pixels", binarization="none", binarization_seed=None, image_shape=None, **splits
    )


def config(steps: int, *, labelled: bool = False, **method: Any) -> Config:
    settings = MethodConfig(theta_particles=DECODERS, code_particles=6, **method)
    evaluation = EvaluationConfig(images=4, samples=4, validation_images=4, validation_samples=4)
    trainer = TrainerConfig(
        max_steps=steps,
        batch_size=8,
        log_every=1,
        validate_every=2,
        checkpoint_every=2,
        baseline="none",
        device="cpu",
    )
    model = ModelConfig(codes=3, hidden=(5,))
    read = DataConfig(labels_per_class=2) if labelled else DataConfig()
    return replace(
        Config(),
        data=read,
        model=model,
        method=settings,
        trainer=trainer,
        evaluation=evaluation,
    )


@contextmanager
def in_float64() -> Iterator[None]:
    """To compare sums in another order."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def fit(trainer: Trainer) -> dict[str, Tensor]:
    """All that a checkpoint of the end would hold."""
    if isinstance(trainer, ShardedTrainer):
        follow(trainer, StopRequest())
        return trainer.tensors()
    with (
        MetricsWriter(trainer.run_dir, trainer.step or None) as metrics,
        Progress(trainer.config.trainer.max_steps, rank=1) as progress,
    ):
        trainer.fit(metrics, progress, StopRequest())
    return trainer.tensors()


def alone(folder: Path, steps: int, *, labelled: bool = False, **method: Any) -> dict[str, Tensor]:
    """A run of one process, continued where the folder has one."""
    with in_float64():
        settings = config(steps, labelled=labelled, **method)
        trainer = Trainer(settings, data(labelled), folder)
        trainer.resume()
        return fit(trainer)


def together(folder: Path, steps: int, method: dict[str, Any]) -> dict[str, Tensor]:
    """A run of all ranks, continued where the folder has one; what this rank holds in the end."""
    with in_float64():
        settings = config(steps, **method)
        trainer = ShardedTrainer(settings, data(method.get("labelled", False)), folder, World())
        trainer.resume()
        return {name: value.clone() for name, value in fit(trainer).items()}


def statistics_alone(folder: Path, method: dict[str, Any]) -> dict[str, float]:
    """What one process logs of the first update."""
    with in_float64():
        settings = config(1, **method)
        trainer = Trainer(settings, data(method.get("labelled", False)), folder)
        return trainer.update(0, monitor=True)


def statistics_together(folder: Path, method: dict[str, Any]) -> dict[str, float]:
    """What all ranks log of it."""
    with in_float64():
        settings = config(1, **method)
        trainer = ShardedTrainer(settings, data(method.get("labelled", False)), folder, World())
        return trainer.update(0, monitor=True)


def spoiled(folder: Path, on_rank: int) -> tuple[dict[str, Tensor], int]:
    """Four updates, the second with a NaN in the encoder's gradient of one rank; what this rank
    holds in the end, and how many updates it left out."""
    with in_float64():
        trainer = ShardedTrainer(config(4), data(), folder, World())
        objective = trainer._objective

        def spoil(*arguments: Any) -> Gradients:
            gradients = objective(*arguments)
            if trainer.step == 2 and dist.get_rank() == on_rank:
                gradients.eta[0][0] = float("nan")
            return gradients

        trainer._objective = spoil
        tensors = {name: value.clone() for name, value in fit(trainer).items()}
        return tensors, trainer.state["skipped"]


def rolled_back(folder: Path) -> int:
    """Two rollbacks of which one in a row is allowed, with a save between; the step this rank
    reaches."""
    with in_float64():
        start = config(10)
        settings = replace(start.trainer, on_nonfinite="rollback", nonfinite_limit=1)
        trainer = ShardedTrainer(replace(start, trainer=settings), data(), folder, World())
        objective, draws = trainer._objective, {3, 7}

        def spoil(*arguments: Any) -> Gradients:
            gradients = objective(*arguments)
            if trainer.step - 1 + trainer.state["passed_over"] in draws:
                gradients.eta[0][0] = float("nan")
            return gradients

        trainer._objective = spoil
        fit(trainer)
        return trainer.step


def stopped(folder: Path, number: int) -> tuple[Any, int, bool]:
    """A run of which the last rank alone gets a signal, and whose leader's disk is slow: the exit
    code, the step, and whether its checkpoint was there when this rank ended."""
    with in_float64(), StopRequest() as stop:
        trainer = ShardedTrainer(config(1000), data(), folder, World())
        write, update = trainer._saver._write, trainer.update

        def slowly(step: int, *arguments: Any) -> None:
            time.sleep(0.3)
            write(step, *arguments)

        def signalled(step: int, *, monitor: bool) -> dict[str, float]:
            if step == 4 and dist.get_rank() == dist.get_world_size() - 1:
                os.kill(os.getpid(), number)
            return update(step, monitor=monitor)

        trainer._saver._write = slowly  # type: ignore[method-assign]
        trainer.update = signalled  # type: ignore[method-assign]
        try:
            follow(trainer, stop)
        except Interrupted as ended:
            there = (folder / "checkpoints" / f"step-{trainer.step:08d}").exists()
            return ended.code, trainer.step, there
    raise RuntimeError("the run was not stopped")


def traffic_of_an_update(folder: Path) -> tuple[list[tuple[str, int]], int, list[tuple[int, ...]]]:
    """The collectives of one update in float32, the encoder's parameters, and the shapes of Adam's
    moments here."""
    trainer = ShardedTrainer(config(1), _narrow(data()), folder, World())
    with Traffic() as traffic:
        trainer.update(0, monitor=False)
    moments = trainer.optimizer._own._adam.state  # type: ignore[attr-defined]
    shapes = [tuple(state["exp_avg"].shape) for state in moments.values()]
    return traffic.calls, sum(e.numel() for e in trainer.networks.eta()), shapes


class WideImages(ImageSplit):
    """In float64; notes how many training images were asked for at once."""

    asked: ClassVar[list[int]] = []

    def pixels(self, indices: Tensor, key: int | None = None) -> Tensor:
        if self.random:
            self.asked.append(len(indices))
        return super().pixels(indices, key)

    def as_input(self, pixels: Tensor) -> Tensor:
        return super().as_input(pixels).double()


def images(tree: Path, steps: int, **changes: Any) -> tuple[Config, Dataset]:
    """Images in files by convolutions with batch normalisation."""
    start = small_config(tree, config(steps).trainer)
    settings = replace(
        start,
        method=replace(start.method, **changes.get("method", {})),
        trainer=replace(start.trainer, **{"max_steps": steps, **changes.get("trainer", {})}),
    )
    dataset = load_data(settings)
    wide = {
        name: WideImages(**vars(getattr(dataset, name))) for name in ("train", "validation", "test")
    }
    WideImages.asked.clear()
    return settings, replace(dataset, **wide)


def images_alone(folder: Path, tree: Path, steps: int, **changes: Any) -> dict[str, Tensor]:
    """As `alone`."""
    with in_float64():
        return fit(Trainer(*images(tree, steps, **changes), folder))


def images_together(
    folder: Path, tree: Path, steps: int, changes: dict[str, Any]
) -> tuple[dict[str, Tensor], set[int]]:
    """As `together`, and how many images of a minibatch this rank has read."""
    with in_float64():
        settings, dataset = images(tree, steps, **changes)
        tensors = fit(ShardedTrainer(settings, dataset, folder, World()))
        read = set(WideImages.asked)
        return {name: value.clone() for name, value in tensors.items()}, read


def normalised(rows: Tensor, towards: Tensor) -> list[Tensor]:
    """What this rank's part of the rows comes out as in training, its gradient along `towards`,
    those of gain and shift added up over the ranks, and the running averages."""
    world, layer = World(), BatchNorm(rows.shape[1]).double()
    over_ranks(layer, world)
    mine = slice(*(each * len(rows) // world.size for each in (world.rank, world.rank + 1)))
    x = rows[mine].clone().requires_grad_()
    out = layer(x)
    gradients = torch.autograd.grad(out, [x, layer.gain, layer.shift], towards[mine])
    found = [out.detach(), gradients[0], *world.sum(gradients[1:]), layer.mean, layer.variance]
    return [each.clone() for each in found]


def refusals() -> list[str]:
    """What `World.check` says of settings that cannot be shared out."""
    odd = replace(config(1), trainer=TrainerConfig(batch_size=9))
    labelled = config(1, labelled=True)
    labelled = replace(labelled, trainer=TrainerConfig(batch_size=3 * dist.get_world_size()))
    messages = []
    compiled = load_preset("tiny_imagenet")
    compiled = replace(compiled, trainer=replace(compiled.trainer, compile=True))
    for each in (odd, labelled, compiled):
        try:
            World().check(each)
        except ValueError as error:
            messages.append(str(error))
    return messages


def _narrow(dataset: Dataset) -> Dataset:
    return replace(dataset, train=Vectors(dataset.train.rows))  # type: ignore[attr-defined]
