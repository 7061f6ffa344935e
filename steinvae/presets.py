"""Complete configurations by name: one function each, chosen with `--preset NAME`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from steinvae.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    TrainerConfig,
)


def digits() -> Config:
    """The 8x8 digits of scikit-learn: offline, about a minute on two CPU cores."""
    return Config(preset="digits")


def mnist_small() -> Config:
    """Fixed binarised MNIST on a short budget: 2x128 tanh, 20 codes, 1,500 steps."""
    return Config(
        preset="mnist_small",
        data=DataConfig(name="binarized_mnist"),
        model=ModelConfig(codes=20, hidden=(128, 128)),
        method=MethodConfig(code_particles=10, theta_particles=1),
        optimizer=OptimizerConfig(learning_rate=2e-3, decay_steps=1500),
        trainer=TrainerConfig(max_steps=1500, batch_size=32, validate_every=500),
        evaluation=EvaluationConfig(images=500, samples=1000),
    )


def mnist() -> Config:
    """The networks of Pu et al. 2017, section 5.2: 200-200 tanh and 50 codes, batches of 64.

    The codes' kernel is linear: by one of distances the encoder of 50 codes collapses along lines
    after some 6,000 steps (docs/table1.md).
    """
    return Config(
        preset="mnist",
        data=DataConfig(name="binarized_mnist"),
        model=ModelConfig(codes=50, hidden=(200, 200)),
        method=MethodConfig(code_particles=50, theta_particles=1, kernel="linear"),
        optimizer=OptimizerConfig(learning_rate=1e-3, decay_steps=100_000),
        trainer=TrainerConfig(
            max_steps=100_000,
            log_every=100,
            monitor_every=0,
            validate_every=2_000,
            checkpoint_every=2_000,
            patience=10,
            threads=0,
        ),
        evaluation=EvaluationConfig(samples=5000, validation_images=200, validation_samples=200),
    )


def mnist_viwae() -> Config:
    """`mnist` by the method that does best with it: Stein VIWAE whose codes move.

    25 codes of a Gaussian with covariances, decoded before and after one leave-one-out step: as
    many decoder passes as 50 codes that stay (docs/table1.md).
    """
    base = mnist()
    return replace(
        base,
        preset="mnist_viwae",
        model=replace(base.model, encoder="triangular"),
        method=MethodConfig(
            name="stein_viwae",
            code_particles=1,
            importance_samples=25,
            theta_particles=1,
            move_codes=True,
            code_step=0.5,
        ),
    )


def mnist_labels() -> Config:
    """Table 3 of Pu et al. 2017 on a short budget: 600-600 softplus, 50 codes, 100 labels a class.

    Grey levels, the dropout and the learning rate were chosen on validation images, on a split that
    is in no table. `--model.network conv --model.hidden [32,64] --model.activation tanh` for its
    convolutions.
    """
    return Config(
        preset="mnist_labels",
        data=DataConfig(name="mnist", binarization="none", labels_per_class=100),
        model=ModelConfig(
            codes=50,
            hidden=(600, 600),
            activation="softplus",
            noise_hidden=200,
            input_dropout=0.4,
        ),
        method=MethodConfig(code_particles=5, theta_particles=1),
        optimizer=OptimizerConfig(learning_rate=3e-3, decay_steps=1500),
        trainer=TrainerConfig(max_steps=1500, batch_size=64, log_every=50, monitor_every=0),
        evaluation=EvaluationConfig(images=200, samples=1000),
    )


def imagenet() -> Config:
    """Section 5.3 and appendix D of Pu et al. 2017: 224 x 224, M = 20, 10 % of the labels.

    Codes are dealt to the decoders, one code each, and kernels are those of groups of 64 planes at
    a place. `--method.name stein_viwae --method.code_particles 20 --method.importance_samples 10`
    for k = 10; look at `--plan` first.
    """
    return Config(
        preset="imagenet",
        data=DataConfig(name="image_folder", binarization="none", label_fraction=0.1, workers=8),
        model=ModelConfig(
            network="residual", encoder="concat", codes=7 * 7 * 512, hidden=(64, 128, 256, 512)
        ),
        method=MethodConfig(
            code_particles=20, theta_particles=20, pairing="strat", kernel_block=64
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, decay_steps=400_000),
        trainer=TrainerConfig(
            max_steps=400_000,
            log_every=100,
            validate_every=10_000,
            checkpoint_every=2_000,
            monitor_every=0,
            baseline="none",
            recompute=True,
        ),
        evaluation=EvaluationConfig(
            images=200, samples=20, validation_images=20, validation_samples=20, proposal="diagonal"
        ),
    )


def tiny_imagenet() -> Config:
    """The same nets with smaller numbers, for 64 x 64: three stages, codes of 4 x 4 x 16.

    Images are enlarged to 72 pixels, of which training takes 64, close to the paper's 224 of 256.
    zeta is three times the paper's X/(C rho) at 40 classes: the labels help to hold the four codes
    of an image together (docs/table4.md).
    """
    base = imagenet()
    return replace(
        base,
        preset="tiny_imagenet",
        data=replace(base.data, side=72, crop=64, workers=0),
        model=replace(
            base.model, codes=4 * 4 * 16, hidden=(16, 32, 64), stack=2, label_kernels=256
        ),
        method=replace(
            base.method,
            code_particles=4,
            theta_particles=2,
            label_particles=5,
            kernel_block=16,
            zeta=2_000.0,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, decay_steps=3000),
        trainer=replace(
            base.trainer,
            max_steps=3000,
            batch_size=32,
            log_every=50,
            validate_every=500,
            checkpoint_every=500,
            recompute=False,
        ),
    )


def text() -> Config:
    """20 Newsgroups by NVDM, a Gaussian VAE on counts: 256 tanh, 50 codes, 60 epochs."""
    return Config(
        preset="text",
        data=DataConfig(name="20news"),
        model=ModelConfig(codes=50, hidden=(256,)),
        method=MethodConfig(name="vae", code_particles=5, theta_particles=1),
        optimizer=OptimizerConfig(learning_rate=2e-3, decay_steps=10_000),
        trainer=TrainerConfig(max_steps=10_000, log_every=100, validate_every=1000, patience=3),
        evaluation=EvaluationConfig(samples=100, validation_images=0, validation_samples=20),
    )


def text_deep() -> Config:
    """20 Newsgroups by the deep Poisson network of section 5.2, 200-200-50, Stein VIWAE."""
    base = text()
    return replace(
        base,
        preset="text_deep",
        model=ModelConfig(
            decoder="deep_poisson",
            layers=(200, 200, 50),
            gamma_shapes=(3.0, 0.1, 0.1),
            codes=450,
            hidden=(256,),
            encoder="gaussian",
        ),
        method=MethodConfig(
            name="stein_viwae",
            code_particles=1,
            importance_samples=10,
            theta_particles=1,
            log_q="jac",
            kernel_block=5,
        ),
        optimizer=replace(base.optimizer, learning_rate=1e-2, encoder_factor=0.2),
        trainer=replace(base.trainer, baseline="none"),
        evaluation=replace(base.evaluation, proposal="encoder"),
    )


def paper() -> Config:
    """Every literal reading of Pu et al. 2017 at once: what the printed recipe does.

    Own terms included, h the median distance, z = MLP([x, xi]) with one noise for all images, eqs.
    12 and 13 with their weights as printed and 100 tuples of 50 decoders, Adam at 2e-4 throughout.
    32 million decoder passes a step: look at `--plan` first. The paper does not say how q(z | x) is
    evaluated for an encoder that is not injective; a fitted Gaussian stands in.
    """
    base = mnist()
    return replace(
        base,
        preset="paper",
        model=replace(base.model, encoder="concat"),
        method=MethodConfig(
            name="stein_viwae",
            self_term="include",
            code_particles=100,
            theta_particles=100,
            importance_samples=50,
            weights="paper",
            bandwidth="median",
            theta_bandwidth="median",
            shared_noise=True,
        ),
        optimizer=replace(base.optimizer, learning_rate=2e-4, final_fraction=1.0),
        trainer=replace(base.trainer, batch_size=64, patience=0, monitor_every=0),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "digits": digits,
    "mnist_small": mnist_small,
    "mnist": mnist,
    "mnist_viwae": mnist_viwae,
    "mnist_labels": mnist_labels,
    "imagenet": imagenet,
    "tiny_imagenet": tiny_imagenet,
    "text": text,
    "text_deep": text_deep,
    "paper": paper,
}


def load_preset(name: str) -> Config:
    """The preset called `name`; `ValueError` lists the names when there is none."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]()
