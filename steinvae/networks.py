"""What training changes: the decoders' parameters theta and the encoder's eta."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from steinvae.blocks import cut_blocks
from steinvae.config import Config, MethodConfig, TrainerConfig
from steinvae.data import CountDataset, Dataset, step_generator
from steinvae.decoders import FAMILIES
from steinvae.labels.heads import make_labels
from steinvae.labels.softmax import LabelModel
from steinvae.models import Computes, GenerativeModel, HasStatistics
from steinvae.models.deep_poisson import DeepPoisson
from steinvae.particles import ParticleEnsemble
from steinvae.recognition import FlowEncoder, StochasticEncoder


@dataclass
class Networks:
    """A generative model, its parameter particles, and the recognition network."""

    model: GenerativeModel
    theta: ParticleEnsemble
    encoder: StochasticEncoder
    labels: LabelModel | None = None
    """The model of labels, where they are in use."""

    @property
    def device(self) -> torch.device:
        """Where all tensors live."""
        return self.theta.flat.device

    def eta(self) -> list[torch.nn.Parameter]:
        """The encoder's parameters, but those that its maker has frozen."""
        return [each for each in self.encoder.parameters() if each.requires_grad]

    def kernel_blocks(self, method: MethodConfig) -> tuple[int, ...]:
        """Dimensions of each block of codes that has a Stein kernel of its own; one by default."""
        own: tuple[int, ...] = getattr(self.model, "code_blocks", (self.encoder.codes,))
        if method.kernel_block:
            own = getattr(self.model, "finest_blocks", own)
        return cut_blocks(own, method.kernel_block)

    @contextmanager
    def training(self) -> Iterator[None]:
        """An encoder with batch normalisation uses the minibatch's statistics within, else its
        running averages."""
        self.encoder.train()
        try:
            yield
        finally:
            self.encoder.eval()

    @contextmanager
    def predicting(self) -> Iterator[None]:
        """Within `training`: the encoder as outside of it."""
        mode = self.encoder.training
        self.encoder.eval()
        try:
            yield
        finally:
            self.encoder.train(mode)

    def averages(self) -> list[Tensor]:
        """What an update moves beside parameters: running averages of batch normalisation, and of
        predictions where guesses are aligned."""
        own = [each for each in self.encoder.buffers() if each.is_floating_point()]
        if isinstance(self.model, HasStatistics):
            own.append(self.model.statistics)
        predicted = getattr(self.labels, "predicted", None)
        return own if predicted is None else [*own, predicted]

    def parameter_count(self) -> dict[str, int]:
        """Numbers in one decoder, in all decoders, and in the encoder."""
        decoders, decoder = self.theta.flat.shape
        encoder = sum(parameter.numel() for parameter in self.encoder.parameters())
        count = {"decoder": decoder, "decoders": decoders * decoder, "encoder": encoder}
        if self.labels:
            count["labels"] = sum(item.numel() for item in self.labels.trained())
        return count

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name; the tensors themselves, not copies."""
        encoder = {f"encoder.{name}": item for name, item in self.encoder.state_dict().items()}
        own = self.labels.tensors() if self.labels else {}
        labels = {f"labels.{name}": item for name, item in own.items()}
        found = {"theta": self.theta.flat, **encoder, **labels}
        if isinstance(self.model, HasStatistics):
            found["statistics"] = self.model.statistics
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy tensors, named and shaped as `tensors()` has them, in place.

        Errors: ValueError naming what is missing, unexpected or of another shape; nothing is
        copied then.
        """
        own = self.tensors()
        faults = _misfits(own, tensors)
        if faults:
            shown = "; ".join(faults[:_FAULTS_SHOWN])
            further = len(faults) - _FAULTS_SHOWN
            raise ValueError(shown + (f"; and {further} more" if further > 0 else ""))
        for name, each in own.items():
            each.copy_(tensors[name])


_FAULTS_SHOWN = 4


def _misfits(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} expected shape {tuple(each.shape)}, got {tuple(got[name].shape)}"
        for name, each in expected.items()
        if name in got and each.shape != got[name].shape
    ]
    missing = [f"missing {name}" for name in expected if name not in got]
    return [*shapes, *missing, *(f"unexpected {name}" for name in got if name not in expected)]


def start_at_data(networks: Networks, config: Config, dataset: Dataset) -> None:
    """Where the settings say so, start decoders of documents at documents of the training set.

    Each unit next to the words gets one of the longer half, drawn from (seed) alone.
    """
    model, theta = networks.model, networks.theta
    if not isinstance(model, DeepPoisson) or not isinstance(dataset, CountDataset):
        return
    if config.model.start == "prior":
        return
    train, units = dataset.train, theta.particles * model.code_blocks[0]
    longer = train.lengths.argsort(stable=True)[len(train) // 2 :]
    order = torch.randperm(len(longer), generator=step_generator(config.seed, 0, "start"))
    chosen = longer[order[torch.arange(units) % len(order)]]
    documents = train.batch(chosen).to_dense().unflatten(0, (theta.particles, -1))
    model.start_at(theta.views(theta.flat), documents, train.totals)


def build_networks(
    config: Config, pixels: int, device: torch.device | str, classes: int | None = None
) -> Networks:
    """Fresh networks; the same seed gives every method the same trunk, heads and first decoder.

    `classes` are those of the labels; by default what the data set is known to have.
    """
    shape, method = config.model, config.method
    family = FAMILIES[config.decoder]
    model = family.model(shape, pixels)
    if isinstance(model, HasStatistics):
        model.track(method.decoders, device)
    decoders = step_generator(config.seed, 0, "theta")
    theta = ParticleEnsemble(model.parameters, method.decoders, decoders, device)
    draws = step_generator(config.seed, 0, "encoder")
    encoder = family.encoder(method.encoder_kind(shape), shape, pixels, draws)
    if isinstance(encoder, FlowEncoder):
        for block in encoder.blocks:
            block.constant_gain = method.name != "flow_elbo"
    labels = make_labels(config, device, classes) if config.data.labelled else None
    return compute_as(config.trainer, Networks(model, theta, encoder.to(device).eval(), labels))


def compute_as(settings: TrainerConfig, networks: Networks) -> Networks:
    """The networks, told how to compute what `trainer` has a say in."""
    for part in (networks.model, networks.encoder):
        if isinstance(part, Computes):
            part.compute(
                recompute=settings.recompute,
                bfloat16=settings.precision == "bfloat16",
                compiled=settings.compile,
            )
    return networks
