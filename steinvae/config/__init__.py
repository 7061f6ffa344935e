"""Every setting of a run, as frozen dataclasses: one docstring with its unit under each field.

Nothing heavy is imported here, so that `--help` is fast. A value that is wrong by itself or does
not fit another one raises `ValueError` with the dotted name of the setting, when it is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from steinvae.config._checks import check_types, require
from steinvae.config.data import CLASSES, COUNTS, IN_FILES, Binarization, DataConfig
from steinvae.config.method import GROUPED, IMAGES, LABELLED, MethodConfig, MethodName, Rule
from steinvae.config.model import Decoder, ModelConfig
from steinvae.config.training import EvaluationConfig, OptimizerConfig, TrainerConfig

__all__ = [
    "CLASSES",
    "COUNTS",
    "GROUPED",
    "IN_FILES",
    "LABELLED",
    "Binarization",
    "Config",
    "DataConfig",
    "Decoder",
    "EvaluationConfig",
    "MethodConfig",
    "MethodName",
    "ModelConfig",
    "OptimizerConfig",
    "Rule",
    "TrainerConfig",
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    preset: str | None = None
    """Where the other defaults come from: digits, mnist_small, mnist, mnist_viwae, mnist_labels,
    text, text_deep, tiny_imagenet, imagenet or paper; none: those of digits."""

    run_dir: str | None = None
    """Run folder; default runs/<preset or data>-<method>-<seed>, then -2, -3 and so on."""

    seed: int = 0
    """Seed of initialisation, data order, noise and evaluation."""

    resume: Literal["never", "auto"] = "never"
    """auto: continue from the newest checkpoint of the run folder, bit for bit, if there is one."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_types(self)
        for section in ("data", "model", "method", "optimizer", "trainer", "evaluation"):
            check_types(getattr(self, section), f"{section}.")
        require(0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1", self.seed)
        self._check_decoder()
        self._check_density()
        self._check_labels()
        self._check_networks()
        self._check_annealing()

    @property
    def decoder(self) -> Decoder:
        """The decoder: `model.decoder`, or the first that fits the data."""
        return self.model.decoder or self._fitting[0]

    @property
    def _fitting(self) -> tuple[Decoder, ...]:
        if self.data.name == IN_FILES:
            return ("gaussian",)
        return ("softmax", "deep_poisson") if self.data.name in COUNTS else ("bernoulli",)

    def _check_decoder(self) -> None:
        fitting = f"{' or '.join(self._fitting)} for data.name {self.data.name}"
        require(self.decoder in self._fitting, "model.decoder", fitting, self.decoder)
        blind = self.method.is_stein and self.model.encoder == "layered"
        seen = "gaussian or flow: kernels of blocks do not see how one block depends on another"
        require(not blind, "model.encoder", seen, self.model.encoder)
        cut = self.method.kernel_block > 0 or self.decoder == "deep_poisson"
        whole = "joint where blocks of codes (method.kernel_block, deep_poisson) have their own"
        require(
            not cut or self.method.kernel == "joint", "method.kernel", whole, self.method.kernel
        )

    def _check_density(self) -> None:
        """An encoder that folds has no density."""
        method, encoder = self.method, self.model.encoder
        counts = self.data.name in COUNTS and method.encoder_kind(self.model) == "concat"
        require(not counts, "model.encoder", f"another than concat for {self.data.name}", encoder)
        if method.encoder_kind(self.model) not in ("residual", "concat"):
            return
        exact = method.name == "stein_viwae" and method.weights != "none" and method.log_q == "jac"
        folds = f"for model.encoder {encoder}, which folds: its codes have no density"
        proposal = self.evaluation.proposal
        fits = f"fitted or diagonal {folds}"
        require(proposal != "encoder", "evaluation.proposal", fits, proposal)
        require(not exact, "method.log_q", f"gauss or kde {folds}", method.log_q)
        moved = f"false {folds}"
        require(not method.move_codes, "method.move_codes", moved, method.move_codes)
        injective = f"flow, gaussian or triangular for method.name flow_elbo; {encoder} folds"
        require(method.name != "flow_elbo", "model.encoder", injective, encoder)

    def _check_labels(self) -> None:
        """What is for labels is refused without any, and labels where a method cannot use them."""
        method, labelled = self.method, self.data.labelled
        without = "where no labels are in use: give data.labels_per_class or data.label_fraction"
        for name in ("zeta", "label_particles", "guess_above"):
            value = getattr(method, name)
            require(labelled or value is None, f"method.{name}", f"left out {without}", value)
        dropped = self.model.input_dropout
        require(labelled or not dropped, "model.input_dropout", f"0 {without}", dropped)
        needs = method.name in ("m2", "supervised")
        require(labelled or not needs, "method.name", f"another {without}", method.name)
        can = not labelled or method.name in LABELLED
        require(can, "method.name", f"one of {LABELLED} where labels are in use", method.name)
        blind = "off where labels are in use, which its importance weights do not know"
        for name in ("mass_rate", "move_codes"):
            value = getattr(method, name)
            require(not labelled or not value, f"method.{name}", blind, value)
        unused = f"left out for method.name {method.name}, which has no such weight"
        for name in ("zeta", "guess_above"):
            value = getattr(method, name)
            require(not needs or value is None, f"method.{name}", unused, value)

    def _check_networks(self) -> None:
        """Convolutions are for images, and have no planar layers."""
        self._check_files()
        conv = self.model.network == "conv"
        images = not conv or self.data.name not in COUNTS
        require(images, "model.network", f"mlp for data.name {self.data.name}", "conv")
        self._check_computing()
        planar = conv and self.method.name == "planar_flow"
        require(not planar, "model.network", "mlp for method.name planar_flow", "conv")
        if self.data.name in COUNTS:
            model, of_counts = self.model, f"for data.name {self.data.name}"
            plain = model.activation == "tanh"
            require(plain, "model.activation", f"tanh {of_counts}", model.activation)
            unset = model.noise_hidden is None
            require(unset, "model.noise_hidden", f"left out {of_counts}", model.noise_hidden)

    def _check_annealing(self) -> None:
        """Codes of a run that ends hot are not those of the posterior."""
        hot, last = self.method.annealing_steps, self.trainer.max_steps
        cold = f"at most trainer.max_steps {last}: a run ends at temperature 1"
        require(hot <= last, "method.annealing_steps", cold, hot)

    def _check_computing(self) -> None:
        """Ways to compute that not all networks have, and what a captured update cannot hold."""
        trainer, network = self.trainer, self.model.network
        if network != "residual":
            half = trainer.precision == "bfloat16"
            full = f"float32 or tf32 for model.network {network}"
            require(not half, "trainer.precision", full, trainer.precision)
            for name in ("recompute", "compile"):
                value = getattr(trainer, name)
                require(not value, f"trainer.{name}", f"false for model.network {network}", value)
        if trainer.cuda_graph:
            own, name = self.method.annealing_steps, self.data.name
            require(own == 0, "method.annealing_steps", "0 with trainer.cuda_graph", own)
            memory = name not in (*COUNTS, IN_FILES)
            require(memory, "trainer.cuda_graph", f"false for data.name {name}", True)

    def _check_files(self) -> None:
        """Images in files and the network that is made for them go together."""
        model, name = self.model, self.data.name
        files, residual = name == IN_FILES, model.network == "residual"
        ready = "residual for data.name image_folder (--preset imagenet or tiny_imagenet)"
        require(residual or not files, "model.network", ready, model.network)
        other = f"another than residual for data.name {name}: that is for image_folder"
        require(files or not residual, "model.network", other, model.network)
        if not files:
            return
        for setting, allowed in (
            ("method.name", IMAGES),
            ("method.regression_steps", (1,)),
            ("method.log_q", ("gauss", "kde")),
            ("method.mass_rate", (0.0,)),
            ("evaluation.proposal", ("diagonal",)),
        ):
            section, field_name = setting.split(".")
            value = getattr(getattr(self, section), field_name)
            one = f"{' or '.join(map(str, allowed))} for data.name {name}"
            require(value in allowed, setting, one, value)
