"""Every setting of a run, as frozen dataclasses: one docstring with its unit under each field.

Nothing heavy is imported here, so that `--help` is fast. A value that is wrong by itself or does
not fit another one raises `ValueError` with the dotted name of the setting, when it is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

Rule = Literal["liu_wang", "median", "median_squared"]
MethodName = Literal[
    "stein_vae",
    "stein_viwae",
    "vae",
    "iwae",
    "planar_flow",
    "vae_weighted_decoder",
    "flow_elbo",
]
GROUPED = ("stein_viwae", "vae_weighted_decoder", "flow_elbo")
"""Methods whose code_particles counts groups of importance_samples codes."""

ANNEALED = "positive for a method.temperature above 1, else 0"

Binarization = Literal["fixed", "dynamic", "none"]
COUNTS = ("20news", "nyt", "rcv1", "bag_of_words")
"""Data sets of documents as counts of words."""


def _require(condition: bool, setting: str, expected: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{setting} must be {expected}, got {value!r}")


def _check_bandwidth(value: Rule | float, setting: str) -> None:
    named = value in get_args(Rule)
    positive = isinstance(value, (int, float)) and 0 < value < float("inf")
    _require(named or positive, setting, f"one of {get_args(Rule)} or a positive number", value)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images or documents are modelled."""

    name: Literal["digits", "mnist", "binarized_mnist", "20news", "nyt", "rcv1", "bag_of_words"] = (
        "digits"
    )
    """Data set: scikit-learn's 8x8 digits (offline), MNIST, or Larochelle's binarised MNIST; counts
    of words: 20 Newsgroups, New York Times, RCV1, or files of one's own (bag_of_words)."""

    root: str | None = None
    """Directory that holds the data files; not used by digits."""

    binarization: Binarization = "fixed"
    """fixed: one draw for ever; dynamic: a new draw at every visit; none: grey levels in [0, 1].
    Nothing binarises counts."""

    bad_lines: Literal["raise", "skip"] = "raise"
    """A bad line of a file of counts: an error that names it, or left out and counted."""

    def __post_init__(self) -> None:
        only_fixed = self.name == "binarized_mnist"
        _require(
            not only_fixed or self.binarization == "fixed",
            "data.binarization",
            "'fixed' for data.name binarized_mnist, whose grey levels are not distributed",
            self.binarization,
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks: tanh MLPs on both sides, Bernoulli pixels; for counts the encoder sees
    log(1 + n), and the decoder is one linear layer and a softmax (NVDM)."""

    codes: int = 8
    """Dimension d of a code z."""

    hidden: tuple[int, ...] = (128, 128)
    """Units of each hidden layer, from the pixels to the code; the decoder mirrors them."""

    encoder: Literal["flow", "residual", "concat", "gaussian"] = "flow"
    """Form of z = f(x, xi) for Stein methods and flow_elbo; flow is injective in xi. The other
    methods use its Gaussian part, planar_flow with layers of its own."""

    flow_blocks: int = 1
    """Blocks of the flow encoder; each stretches at most 1.9 times, and far modes need several."""

    output_scale: float = 1.0
    """Factor on the output of the concat encoder: how far codes reach."""

    planar_layers: int = 10
    """Layers of the encoder of planar_flow."""

    def __post_init__(self) -> None:
        _require(self.codes >= 1, "model.codes", "at least 1", self.codes)
        widths = len(self.hidden) >= 1 and all(width >= 1 for width in self.hidden)
        _require(widths, "model.hidden", "one or more positive widths", self.hidden)
        _require(self.output_scale > 0, "model.output_scale", "positive", self.output_scale)
        for name in ("flow_blocks", "planar_layers"):
            _require(getattr(self, name) >= 1, f"model.{name}", "at least 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The learning rule and its particles."""

    name: MethodName = "stein_vae"
    """stein_vae: Algorithm 1 of Pu et al. 2017; stein_viwae: section 3. Baselines: vae, iwae,
    planar_flow; vae_weighted_decoder: an ELBO encoder with the decoder gradient of stein_viwae;
    flow_elbo: the flow encoder by its exact ELBO gradient."""

    self_term: Literal["leave_one_out", "include"] = "leave_one_out"
    """Does a code enter its own kernel average? include: eq. 5 as printed, which collapses."""

    code_particles: int = 10
    """Codes per image and step: M of the paper for z, samples of the bound for vae and iwae; for
    stein_viwae, vae_weighted_decoder and flow_elbo groups of importance_samples codes."""

    importance_samples: int = 5
    """k, the codes of a group, within which importance weights sum to 1; k = 1 has no weights."""

    weights: Literal["theta", "z", "both", "paper", "none"] = "theta"
    """Importance weights act on the decoders' score (theta), the codes' direction (z), both, as
    eqs. 12 and 13 print them (paper; theta_particles * k decoders), or not at all (none). Only
    theta and none for vae_weighted_decoder and flow_elbo."""

    log_q: Literal["gauss", "jac", "kde", "track"] = "gauss"
    """Density of the codes in the weights: a Gaussian fitted to them, the exact one of an injective
    encoder (jac), a kernel estimate (kde), or that of a chain (track: not for drawn codes).
    vae_weighted_decoder and flow_elbo know it."""

    entropy_weight: float = 1.0
    """Times the entropy in the ELBO of vae_weighted_decoder's encoder: narrower codes below 1."""

    theta_particles: int = 5
    """Decoders: M of the paper for theta; the baselines train one whatever this says."""

    pairing: Literal["full", "strat"] = "full"
    """full: every decoder sees every code; strat: the codes are dealt out to the decoders."""

    bandwidth: Rule | float = "liu_wang"
    """Kernel bandwidth h of the codes, one per image: a rule, or h itself in squared code units."""

    bandwidth_factor: float = 1.0
    """Times the rule's h of the codes: a flatter kernel above 1. Only with a rule."""

    theta_bandwidth: Rule | float = "liu_wang"
    """Kernel bandwidth h of the decoders: a rule, or h itself in squared parameter units."""

    regression_steps: int = 1
    """K of eq. (7): optimiser steps of the encoder towards the moved codes."""

    code_step: float = 0.1
    """Step size epsilon of eq. (4); with K = 1 it cancels, so it acts only for K > 1."""

    iwae_gradient: Literal["standard", "dreg"] = "standard"
    """Encoder gradient of iwae: that of the bound, or doubly reparameterised (Tucker et al.)."""

    temperature: float = 1.0
    """T of the codes' target p(x, z)^(1/T) at step 0, falling as T^(1 - step / annealing_steps) to
    1: far modes part late. About the square of half their distance, in standard deviations."""

    annealing_steps: int = 0
    """Steps until the temperature is 1; 0 for temperature 1."""

    fixed_theta: bool = False
    """Leave the decoders as they are and train the encoder alone."""

    shared_noise: bool = False
    """Use the same noise xi for every image of a minibatch, as Algorithm 1 prints it."""

    def __post_init__(self) -> None:
        codes, decoders, steps = self.code_particles, self.theta_particles, self.regression_steps
        _require(codes >= 1, "method.code_particles", "at least 1", codes)
        _require(decoders >= 1, "method.theta_particles", "at least 1", decoders)
        _require(steps >= 1, "method.regression_steps", "at least 1", steps)
        _require(self.code_step > 0, "method.code_step", "positive", self.code_step)
        _check_bandwidth(self.bandwidth, "method.bandwidth")
        _check_bandwidth(self.theta_bandwidth, "method.theta_bandwidth")
        factor, ruled = self.bandwidth_factor, isinstance(self.bandwidth, str)
        _require(0 < factor < float("inf"), "method.bandwidth_factor", "positive", factor)
        fixed = "1 where method.bandwidth is a number: that is h itself"
        _require(ruled or factor == 1, "method.bandwidth_factor", fixed, factor)
        entropy, alone = self.entropy_weight, self.name != "vae_weighted_decoder"
        allowed = entropy == 1 if alone else 0 < entropy < float("inf")
        fitting = f"{1 if alone else 'positive'} for method.name {self.name}"
        _require(allowed, "method.entropy_weight", fitting, entropy)
        k = self.importance_samples
        _require(k >= 1, "method.importance_samples", "at least 1", k)
        if self.is_stein:
            self._check_particles()
        self._check_annealing()
        if self.name == "stein_viwae" and self.weights != "none":
            chain = "gauss, kde or jac: track needs a chain of persistent codes, these are redrawn"
            _require(self.log_q != "track", "method.log_q", chain, self.log_q)
        follows_elbo = self.name in ("vae_weighted_decoder", "flow_elbo")
        _require(
            not follows_elbo or self.weights in ("theta", "none"),
            "method.weights",
            f"theta or none for method.name {self.name}, whose codes follow no Stein direction",
            self.weights,
        )

    @property
    def is_stein(self) -> bool:
        """Whether codes and decoders follow Stein directions."""
        return self.name in ("stein_vae", "stein_viwae")

    def encoder_kind(self, model: ModelConfig) -> str:
        """The encoder this method trains."""
        if self.is_stein or self.name == "flow_elbo":
            return model.encoder
        return "planar" if self.name == "planar_flow" else "gaussian"

    @property
    def codes_per_image(self) -> int:
        """S: code_particles, times k where those count groups."""
        return self.code_particles * (self.importance_samples if self.name in GROUPED else 1)

    @property
    def decoders(self) -> int:
        """Decoders that are trained: theta_particles (times k for weights paper), or 1."""
        groups = self.name == "stein_viwae" and self.weights == "paper"
        per_particle = self.importance_samples if groups else 1
        return self.theta_particles * per_particle if self.is_stein else 1

    def _check_annealing(self) -> None:
        hot, steps = self.temperature, self.annealing_steps
        _require(1 <= hot < float("inf"), "method.temperature", "at least 1", hot)
        _require((steps > 0) == (hot > 1), "method.annealing_steps", ANNEALED, steps)
        weighted = self.name == "stein_viwae" and self.weights not in ("theta", "none")
        can = self.name in ("stein_vae", "stein_viwae", "planar_flow", "flow_elbo") and not weighted
        what = f"1 for method.name {self.name}, whose {'weights' if weighted else 'bound'} has none"
        _require(can or hot == 1, "method.temperature", what, hot)

    def _check_particles(self) -> None:
        codes, decoders = self.code_particles, self.theta_particles
        others = self.self_term == "include" or self.codes_per_image >= 2
        enough = "at least 2 for method.self_term leave_one_out"
        _require(others, "method.code_particles", enough, codes)
        dealt = self.pairing == "full" or codes % decoders == 0
        even = f"a multiple of method.theta_particles ({decoders}) for method.pairing strat"
        _require(dealt, "method.code_particles", even, codes)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam for decoders and encoder, with a cosine learning rate."""

    learning_rate: float = 4e-3
    """Learning rate at step 0."""

    final_fraction: float = 0.02
    """Learning rate after decay_steps, as a fraction of learning_rate; 1 keeps it constant."""

    decay_steps: int = 2500
    """Steps of the cosine; not tied to trainer.max_steps: a longer run repeats a shorter."""

    def __post_init__(self) -> None:
        rate, final = self.learning_rate, self.final_fraction
        _require(0 < rate < float("inf"), "optimizer.learning_rate", "positive", rate)
        _require(0 <= final <= 1, "optimizer.final_fraction", "between 0 and 1", final)
        _require(self.decay_steps >= 1, "optimizer.decay_steps", "at least 1", self.decay_steps)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The loop."""

    max_steps: int = 2500
    """Minibatch updates in all."""

    batch_size: int = 64
    """Images in a minibatch."""

    log_every: int = 25
    """Steps between two training lines of metrics.jsonl."""

    monitor_every: int = 500
    """Steps between two comparisons of the Stein direction with the exact field of an injective
    encoder; at 500 they take 1 to 7 % of the time of the presets' steps. 0 for none."""

    validate_every: int = 250
    """Steps between two estimates on the validation images."""

    checkpoint_every: int = 500
    """Steps between two checkpoints; one is also written at the end and on SIGTERM or SIGINT."""

    keep_checkpoints: int = 2
    """Newest checkpoints kept on disk."""

    patience: int = 0
    """Validations without a better value before training stops early; 0 never stops early."""

    nonfinite_limit: int = 10
    """Updates with a NaN or infinite gradient in a row that are skipped before the run fails."""

    baseline: Literal["vae", "none"] = "vae"
    """An ordinary VAE with the same networks and budget, trained beside stein_vae or iwae."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; auto takes a GPU when torch sees one."""

    threads: int = 1
    """CPU threads, 0 for all cores. One: the same bits on every machine, and small networks are no
    slower."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "log_every", "validate_every", "checkpoint_every"):
            _require(getattr(self, name) >= 1, f"trainer.{name}", "at least 1", getattr(self, name))
        for name in ("keep_checkpoints", "nonfinite_limit"):
            _require(getattr(self, name) >= 1, f"trainer.{name}", "at least 1", getattr(self, name))
        for name in ("monitor_every", "patience", "threads"):
            _require(getattr(self, name) >= 0, f"trainer.{name}", "0 or more", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The reported negative log-likelihood: importance sampling with a fitted Gaussian (iw_g)."""

    images: int = 0
    """Test images, evenly spaced over the test set; 0 takes all of them."""

    samples: int = 1000
    """Importance samples per test image."""

    validation_images: int = 100
    """Validation images of the estimate that picks the best parameters; 0 takes all of them."""

    validation_samples: int = 100
    """Importance samples per validation image."""

    fit_samples: int = 8
    """Encoder samples that fit the Gaussian, per code dimension (at least 4; 64 or more in all)."""

    inflation: float = 1.2
    """Factor on the fitted standard deviation: the proposal must be wider than the posterior."""

    def __post_init__(self) -> None:
        for name in ("images", "validation_images"):
            _require(
                getattr(self, name) >= 0, f"evaluation.{name}", "0 or more", getattr(self, name)
            )
        for name in ("samples", "validation_samples"):
            _require(
                getattr(self, name) >= 1, f"evaluation.{name}", "at least 1", getattr(self, name)
            )
        _require(self.fit_samples >= 4, "evaluation.fit_samples", "at least 4", self.fit_samples)
        _require(self.inflation >= 1, "evaluation.inflation", "at least 1", self.inflation)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    preset: str | None = None
    """Name of the preset the other defaults came from."""

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
        _require(0 <= self.seed < 2**63, "seed", "between 0 and 2**63 - 1", self.seed)
        self._check_density()

    def _check_density(self) -> None:
        """An encoder that folds has no density."""
        method, encoder = self.method, self.model.encoder
        counts = self.data.name in COUNTS and method.encoder_kind(self.model) == "concat"
        _require(not counts, "model.encoder", f"no concat for {self.data.name}", encoder)
        if encoder not in ("residual", "concat"):
            return
        exact = method.name == "stein_viwae" and method.weights != "none" and method.log_q == "jac"
        folds = f"for model.encoder {encoder}, which folds: its codes have no density"
        _require(not exact, "method.log_q", f"gauss or kde {folds}", method.log_q)
        injective = f"flow or gaussian for method.name flow_elbo; {encoder} folds"
        _require(method.name != "flow_elbo", "model.encoder", injective, encoder)
