"""Training on many devices: minibatches shared out by image, decoders by parameter.

Started by torch's own launcher, `torchrun --nproc-per-node N -m steinvae.train ...`. Every process
decodes its rows of the minibatch with all decoders; the scores of theta are added up by feature,
so each process has the Stein direction, Adam's moments and the update of its slice of (M, P) alone,
and the slices are gathered into the decoders that all of them hold. That is the traffic of ZeRO
stage 1 (Rajbhandari et al. 2020), and M x M numbers for the distances.

Everything random is a function of (seed, step, row), and a process draws that of its own rows: a
run of W processes is the run of one, up to the order of sums. Checkpoints hold whole tensors, so
any number of processes continues them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from steinvae.config import Config, OptimizerConfig
from steinvae.data import Dataset
from steinvae.draws import own_rows
from steinvae.gradients import ROOTS, Batch
from steinvae.logging import MetricsWriter, Progress
from steinvae.models import HasStatistics
from steinvae.models.batch_norm import over_ranks
from steinvae.networks import Networks
from steinvae.optimizer import Optimizer, is_left_out, marked
from steinvae.signals import Interrupted, StopRequest
from steinvae.trainer import Trainer

PATIENCE = timedelta(hours=12)
"""How long a process waits for another: the leader tests a model while the others wait to train the
baseline. A process that fails ends all of them at once, which is torchrun's doing."""


class World:
    """The processes of a run; process 0 leads: it alone writes."""

    def __init__(self, device: str = "cpu") -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        self.mesh = init_device_mesh(device, (self.size,))

    @property
    def leads(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def check(self, config: Config) -> None:
        """`ValueError` naming a setting with which a minibatch cannot be shared out."""
        batch = config.trainer.batch_size
        if batch % self.size:
            raise ValueError(
                f"trainer.batch_size must be a multiple of the {self.size} processes, got {batch}"
            )
        if config.data.labelled and (batch // 2) % self.size:
            raise ValueError(
                f"trainer.batch_size must be a multiple of {2 * self.size} where labels are in use "
                f"on {self.size} processes, so that each half is shared out, got {batch}"
            )
        if config.model.network == "residual" and config.trainer.compile:
            raise ValueError(
                "trainer.compile must be false on several processes for model.network residual: "
                "its batch normalisation adds up statistics of all of them inside a pass"
            )

    def by_feature(self, theta: Tensor, score: Tensor) -> tuple[DTensor, DTensor]:
        """theta, which all have, and the mean of their scores, both (M, P) sharded by feature."""
        return self._sharded(theta, Replicate()), self.mean_by_feature(score)

    def replicated(self, value: Tensor) -> DTensor:
        """What all processes have."""
        return DTensor.from_local(value, self.mesh, [Replicate()], run_check=False)

    def logsumexp(self, value: Tensor) -> Tensor:
        """log of the sum over the processes of exp(value), from every process's value."""
        every = value.new_zeros(self.size, *value.shape)
        every[self.rank] = value
        return self.sum([every])[0].logsumexp(0)

    def mean_by_feature(self, value: Tensor) -> DTensor:
        """The mean of what each process has, (M, P) sharded by feature."""
        return self._sharded(value / self.size, Partial())

    def slice_of(self, value: Tensor) -> Tensor:
        """This process's features (M, P / W) of a tensor (M, P) that all have."""
        return self._sharded(value, Replicate()).to_local().contiguous()

    def whole(self, part: Tensor, like: Tensor) -> Tensor:
        """The tensor, of the shape of `like`, of which every process holds a slice."""
        sizes = {"shape": like.shape, "stride": like.stride()}
        placed = DTensor.from_local(part, self.mesh, [Shard(1)], run_check=False, **sizes)
        return placed.full_tensor()

    def sum(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Over the processes, of each tensor, in one all-reduce."""
        flat = torch.cat([value.reshape(-1) for value in values])
        dist.all_reduce(flat)
        parts = flat.split([value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    def meet(self) -> None:
        """Wait for all processes. By the host: no device is waited for."""
        dist.all_reduce(torch.zeros(()))

    def agree(self, value: Any) -> Any:
        """What the leader says."""
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def _sharded(self, value: Tensor, lies: Replicate | Partial) -> DTensor:
        placed = DTensor.from_local(value, self.mesh, [lies], run_check=False)
        return placed.redistribute(placements=[Shard(1)])


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The processes that torchrun started, for the block; `device` as in trainer.device."""
    on_gpu = torch.cuda.is_available() and device != "cpu"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield World("cuda" if on_gpu else "cpu")
    finally:
        dist.destroy_process_group()


class ShardedOptimizer:
    """Adam on this process's slice of the decoders, and on the encoder, which all have."""

    def __init__(self, networks: Networks, config: OptimizerConfig, world: World) -> None:
        self._world, self._whole = world, networks.theta.flat
        theta = _Slice(world.slice_of(self._whole))
        self._slice = theta.flat
        self._own = Optimizer(replace(networks, theta=theta), config)  # type: ignore[arg-type]

    def schedule(self, step: int) -> None:
        """As `Optimizer.schedule`."""
        self._own.schedule(step)

    def apply(
        self,
        theta: Tensor | None,
        *replicated: Sequence[Tensor],
        loss: Tensor | None = None,
        unless: Tensor | None = None,
    ) -> Tensor:
        """As `Optimizer.apply`, with the gradients and the loss of this process's images.

        Returns the norm of the mean gradients, the same to all: all leave out the same updates.
        """
        part = None if theta is None else self._mean_slice(theta)
        groups = [list(group) for group in replicated]
        square = self._whole.new_zeros(()) if part is None else part.square().sum()
        square = marked(square, loss)
        *sums, square = self._world.sum([*(g for group in groups for g in group), square])
        for value in sums:
            value /= self._world.size
        norm = (square + sum(value.square().sum() for value in sums)).sqrt()
        means = iter(sums)
        mean_groups = [[next(means) for _ in group] for group in groups]
        self._own.move(part, *mean_groups, left_out=is_left_out(norm, unless))
        if part is not None:
            self._whole.copy_(self._world.whole(self._slice, self._whole))
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Adam's state by name, whole; every process has to ask for it."""
        return {
            name: self._world.whole(value, self._whole) if _is_of_theta(name) else value
            for name, value in self._own.tensors().items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`, once the networks have been loaded."""
        self._slice.copy_(self._world.slice_of(self._whole))
        own = {
            name: self._world.slice_of(value.to(self._whole.device))
            if _is_of_theta(name)
            else value
            for name, value in tensors.items()
        }
        self._own.load(own)

    def _mean_slice(self, theta: Tensor) -> Tensor:
        """A Stein direction comes as its slice; other gradients come whole, of own images."""
        mean = theta if isinstance(theta, DTensor) else self._world.mean_by_feature(theta)
        return mean.to_local().contiguous()


class ShardedTrainer(Trainer):
    """A trainer of one of several processes. All hold the networks; the leader writes."""

    def __init__(self, config: Config, dataset: Dataset, run_dir: Path, world: World) -> None:
        if config.trainer.cuda_graph:
            raise ValueError("trainer.cuda_graph must be false on several processes, got True")
        super().__init__(config, dataset, run_dir)
        self._world = world
        over_ranks(self.networks.encoder, world)
        if isinstance(self.networks.model, HasStatistics):
            self.networks.model.share(world)
        labelled = self.labelled.sampler.labelled_size if self.labelled else 0
        self._rows = own_rows(config.trainer.batch_size, labelled, world.rank, world.size)
        self._feed.share(self._rows)
        self.optimizer = ShardedOptimizer(self.networks, config.optimizer, world)  # type: ignore[assignment]

    def fit(self, metrics: MetricsWriter, progress: Progress, stop: StopRequest) -> None:
        """As `Trainer.fit`; a signal to one process stops all at the same step."""
        super().fit(metrics, progress, _AgreedStop(stop, self._world))  # type: ignore[arg-type]

    def update(self, step: int, *, monitor: bool) -> dict[str, float]:
        """As `Trainer.update`; statistics are means over the processes of those of own images, or
        the roots of means of squares. Counts are the same in all.
        """
        stats = super().update(step, monitor=monitor)
        if not stats:
            return stats
        roots = torch.tensor([name in ROOTS for name in stats], device=self.device)
        values = torch.tensor(list(stats.values()), dtype=torch.float64, device=self.device)
        (total,) = self._world.sum([torch.where(roots, values.square(), values)])
        mean = total / self._world.size
        means = zip(stats.items(), torch.where(roots, mean.sqrt(), mean).tolist(), strict=True)
        return {name: own if isinstance(own, int) else mean for (name, own), mean in means}

    def batch(self, step: int, *, monitor: bool = False) -> Batch:
        """This process's rows of the minibatch that one process would have."""
        return super().batch(step, monitor=monitor)._replace(ranks=self._world)

    def save(self, tensors: dict[str, Tensor], metrics: MetricsWriter | None = None) -> None:
        """The leader writes the checkpoint of one process."""
        if self._world.leads:
            super().save(tensors, metrics)
        self._rollbacks = 0  # in all, or one gives up at a rollback that the others make

    def settle(self) -> None:
        """As `Trainer.settle`: no process goes on, or ends, before the leader's save is whole.

        One that ended first would have torchrun end the leader while it writes.
        """
        super().settle()
        self._world.meet()

    def resume(self) -> bool:
        """As `Trainer.resume`. Every process reads the checkpoint.

        Errors: RuntimeError where they do not find the same one.
        """
        found = super().resume()
        led = self._world.agree(self.step)
        if self.step != led:
            raise RuntimeError(
                f"process {self._world.rank} continues from step {self.step}, process 0 from "
                f"{led}: all processes must see the same run_dir={self.run_dir}"
            )
        return found


class _AgreedStop:
    """A stop request that all processes have or none: asked once a step, by all."""

    def __init__(self, stop: StopRequest, world: World) -> None:
        self._stop, self._world = stop, world
        self.deferred: Callable[[], Any] = stop.deferred
        self._agreed: int | None = None

    @property
    def requested(self) -> int | None:
        number = torch.tensor(self._stop.requested or 0)  # on the host: no device is waited for
        dist.all_reduce(number, dist.ReduceOp.MAX)
        self._agreed = int(number) or None
        return self._agreed

    def check(self) -> None:
        """Raise `Interrupted` where the last answer was a signal."""
        if self._agreed is not None:
            raise Interrupted(self._agreed)


class _Slice:
    """What an optimiser sees of the decoders."""

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat


def _is_of_theta(name: str) -> bool:
    return name.startswith("adam.0.") and not name.endswith(".step")
