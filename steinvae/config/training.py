"""How to train and what to measure: the settings under `optimizer`, `trainer`, `evaluation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from steinvae.config._checks import require


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam for decoders and encoder, with a cosine learning rate."""

    learning_rate: float = 4e-3
    """Learning rate at step 0."""

    encoder_factor: float = 1.0
    """Times the learning rate, for the encoder: below 1 where decoders bear a larger one than the
    noise of Stein directions in many codes does."""

    final_fraction: float = 0.02
    """Learning rate after decay_steps, as a fraction of learning_rate; 1 keeps it constant."""

    decay_steps: int = 2500
    """Steps of the cosine; not tied to trainer.max_steps: a longer run repeats a shorter."""

    def __post_init__(self) -> None:
        rate, final = self.learning_rate, self.final_fraction
        require(0 < rate < float("inf"), "optimizer.learning_rate", "positive", rate)
        factor = self.encoder_factor
        require(0 < factor < float("inf"), "optimizer.encoder_factor", "positive", factor)
        require(0 <= final <= 1, "optimizer.final_fraction", "between 0 and 1", final)
        require(self.decay_steps >= 1, "optimizer.decay_steps", "at least 1", self.decay_steps)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The loop."""

    max_steps: int = 2500
    """Minibatch updates in all."""

    batch_size: int = 64
    """Images in a minibatch."""

    log_every: int = 25
    """Steps between two training lines of metrics.jsonl."""

    tensorboard: bool = False
    """Write metrics as TensorBoard events too, into tensorboard/ of the run folder."""

    monitor_every: int = 500
    """Steps between two comparisons of the Stein direction of one joint kernel with the exact field
    of an injective encoder; at 500 they take 1 to 7 % of the time. 0 for none."""

    validate_every: int = 250
    """Steps between two estimates on the validation images."""

    checkpoint_every: int = 500
    """Steps between two checkpoints; one is also written at the end and on SIGTERM or SIGINT."""

    keep_checkpoints: int = 2
    """Newest checkpoints kept on disk."""

    patience: int = 0
    """Validations without a better value before training stops early; 0 never stops early."""

    save_in_background: bool = True
    """Write checkpoints in a thread, from a copy in host memory, while training goes on."""

    on_nonfinite: Literal["skip", "raise", "rollback"] = "skip"
    """An update whose loss or gradient is NaN or infinite is never made. skip goes on, raise ends
    the run, rollback returns to the last checkpoint and passes over the minibatches since; noticed
    at the next step that is logged or saved, since until then nothing waits for the device."""

    nonfinite_limit: int = 10
    """Updates skipped, or rollbacks made, in a row before the run fails."""

    baseline: Literal["vae", "none"] = "vae"
    """A VAE with the same networks, steps and codes an image that is trained beside the method. Its
    one decoder decodes a code once; with pairing full each of theta_particles decoders does (--plan
    counts the passes). Codes of move_codes, which are decoded twice, are doubled."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; auto takes a GPU when torch sees one."""

    recompute: bool = False
    """Compute activations within a stage of model.network residual a second time on the way back
    instead of keeping them: a third more time, and a fraction of the memory (see --plan)."""

    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of products in an update. tf32: float32 matrices in TF32 where a GPU has it, Stein moves by
    three such products; bfloat16: the convolutions of model.network residual (autocast), while
    parameters, codes, likelihoods and Stein moves stay float32."""

    compile: bool = False
    """Compile the stages of model.network residual by torch.compile: about a minute at the first
    step. Not with recompute."""

    cuda_graph: bool = False
    """Capture an update as a CUDA graph after three plain ones and replay it: a launch a step, for
    networks whose kernels take less time than their launches. One process, images in memory."""

    threads: int = 1
    """CPU threads, 0 for all cores. One: the same bits on every machine, and small networks are no
    slower."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "log_every", "validate_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"trainer.{name}", "at least 1", getattr(self, name))
        alone = not (self.compile and self.recompute)
        require(alone, "trainer.compile", "false where trainer.recompute is true", self.compile)
        for name in ("keep_checkpoints", "nonfinite_limit"):
            require(getattr(self, name) >= 1, f"trainer.{name}", "at least 1", getattr(self, name))
        for name in ("monitor_every", "patience", "threads"):
            require(getattr(self, name) >= 0, f"trainer.{name}", "0 or more", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The reported negative log-likelihood: an importance-sampling bound, by default iw_g."""

    images: int = 0
    """Test images, evenly spaced over the test set; 0 takes all of them."""

    samples: int = 1000
    """Importance samples per test image."""

    validation_images: int = 100
    """Validation images of the estimate that picks the best parameters; 0 takes all of them."""

    validation_samples: int = 100
    """Importance samples per validation image."""

    proposal: Literal["fitted", "diagonal", "encoder"] = "fitted"
    """Where importance samples come from: a Gaussian fitted to the encoder's codes (iw_g), one with
    a diagonal covariance (iw_d), for thousands of codes, or the encoder itself by its own density
    (s_elbo), for hundreds of codes; that must be injective."""

    fit_samples: int = 8
    """Encoder samples that fit the Gaussian, per code dimension (at least 4; 64 or more in all); a
    diagonal one takes 64."""

    inflation: float = 1.2
    """Factor on the fitted standard deviation: the proposal must be wider than the posterior."""

    def __post_init__(self) -> None:
        for name in ("images", "validation_images"):
            require(
                getattr(self, name) >= 0, f"evaluation.{name}", "0 or more", getattr(self, name)
            )
        for name in ("samples", "validation_samples"):
            require(
                getattr(self, name) >= 1, f"evaluation.{name}", "at least 1", getattr(self, name)
            )
        require(self.fit_samples >= 4, "evaluation.fit_samples", "at least 4", self.fit_samples)
        require(self.inflation >= 1, "evaluation.inflation", "at least 1", self.inflation)
