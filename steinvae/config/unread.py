"""Settings that the method, networks, data or device never read, so that a run can say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from steinvae.config import COUNTS, GROUPED, IN_FILES, Config, MethodConfig

STEIN = ("stein_vae", "stein_viwae")


class Switch(NamedTuple):
    """A value of another setting, or a number that follows from several, that leaves this one
    unread, unless a third acts by a value."""

    setting: str
    value: object
    unless: tuple[str, object] | None = None


MOVED = Switch("move_codes", True)

READ_BY: dict[str, tuple[str, ...]] = {
    "self_term": STEIN,
    "importance_samples": GROUPED,
    "weights": GROUPED,
    "log_q": ("stein_viwae",),
    "theta_particles": STEIN,
    "pairing": STEIN,
    "label_particles": STEIN,
    "bandwidth": STEIN,
    "bandwidth_factor": STEIN,
    "kernel_block": STEIN,
    "kernel": STEIN,
    "theta_bandwidth": STEIN,
    "regression_steps": STEIN,
    "code_step": STEIN,
    "iwae_gradient": ("iwae",),
    "mass_codes": STEIN,
}
"""Methods by the setting that they read. All methods read the others, or are refused with them."""

SWITCHES: dict[str, tuple[Switch, ...]] = {
    "self_term": (MOVED,),
    "weights": (Switch("importance_samples", 1),),
    "theta_bandwidth": (Switch("decoders", 1), Switch("fixed_theta", True)),
    "log_q": (MOVED, Switch("importance_samples", 1), Switch("weights", "none")),
    "bandwidth": (MOVED, Switch("kernel", "linear", unless=("log_q", "kde"))),
    "bandwidth_factor": (MOVED, Switch("kernel", "linear")),
    "kernel_block": (MOVED,),
    "kernel": (MOVED,),
    "code_step": (Switch("regression_steps", 1, unless=("move_codes", True)),),
    "mass_codes": (Switch("mass_rate", 0),),
}
"""What leaves a setting unread by those methods."""


OF_MODEL: dict[str, tuple[str, ...]] = {
    "encoder": (*STEIN, "flow_elbo"),
    "planar_layers": ("planar_flow",),
}
"""Settings of `model` that not every method reads, and those that do."""


class Needs(NamedTuple):
    """What of a configuration decides whether a setting is read."""

    found: Callable[[Config], str]
    readers: tuple[str, ...]
    why: str
    """Of another than `readers`, which takes the place of {}."""


def _encoder(config: Config) -> str:
    return config.method.encoder_kind(config.model)


def _data(config: Config) -> str:
    return config.data.name


def _proposal(config: Config) -> str:
    return config.evaluation.proposal


def _arithmetic(config: Config) -> str:
    if config.trainer.precision != "tf32":
        return "any"
    if config.trainer.device != "auto":
        return {"cpu": "CPU"}.get(config.trainer.device, "GPU")
    import torch  # which this package does without, so that --help is fast

    return "GPU" if torch.cuda.is_available() else "CPU"


_WITH_DATA, _WITH_ENCODER = "with data.name {}", "with an encoder of the form {}"
_WITH_PROPOSAL, _LAYERED = "with evaluation.proposal {}", "with the decoder {}"

NEEDS: dict[str, Needs] = {
    "data.binarization": Needs(_data, ("digits", "mnist", "binarized_mnist"), _WITH_DATA),
    "data.root": Needs(
        lambda config: "files" if config.data.name != "digits" else "digits",
        ("files",),
        "on {}, which come with scikit-learn: --data.name or --preset chooses other data",
    ),
    "data.bad_records": Needs(_data, (*(set(COUNTS) - {"rcv1"}), IN_FILES), _WITH_DATA),
    "data.side": Needs(_data, (IN_FILES,), _WITH_DATA),
    "data.crop": Needs(_data, (IN_FILES,), _WITH_DATA),
    "data.workers": Needs(_data, (IN_FILES,), _WITH_DATA),
    "model.gamma_shapes": Needs(lambda config: config.decoder, ("deep_poisson",), _LAYERED),
    "model.start": Needs(lambda config: config.decoder, ("deep_poisson",), _LAYERED),
    "model.noise_hidden": Needs(_encoder, ("flow", "residual"), _WITH_ENCODER),
    "model.flow_blocks": Needs(_encoder, ("flow",), _WITH_ENCODER),
    "model.output_scale": Needs(_encoder, ("concat",), _WITH_ENCODER),
    "trainer.precision": Needs(_arithmetic, ("any", "GPU"), "on a {}"),
    "trainer.nonfinite_limit": Needs(
        lambda config: config.trainer.on_nonfinite,
        ("skip", "rollback"),
        "with trainer.on_nonfinite {}",
    ),
    "evaluation.fit_samples": Needs(_proposal, ("fitted",), _WITH_PROPOSAL),
    "evaluation.inflation": Needs(_proposal, ("fitted", "diagonal"), _WITH_PROPOSAL),
}
"""Settings of all sections but `method` that networks, data or device may leave unread. rcv1 has no
lines that could be bad."""


def unread(config: Config, defaults: Config) -> list[str]:
    """Names under `method`, and of OF_MODEL and NEEDS, that differ from `defaults`, which are those
    of the preset, and that nothing learned or reported depends on; a logged statistic may."""
    return [setting for setting, _ in _found(config, defaults)]


def unread_lines(config: Config, defaults: Config) -> list[str]:
    """A line for each of `unread`, with the reason."""
    return [
        f"{setting} = {_value(config, setting)} has no effect {why}"
        for setting, why in _found(config, defaults)
    ]


def _found(config: Config, defaults: Config) -> Iterator[tuple[str, str]]:
    settings = [f"model.{name}" for name in OF_MODEL] + [f"method.{name}" for name in READ_BY]
    settings += NEEDS
    for setting in settings:
        if _value(config, setting) != _value(defaults, setting):
            why = _why(config, setting)
            if why is not None:
                yield setting, why


def _value(config: Config, setting: str) -> Any:
    section, name = setting.split(".")
    return getattr(getattr(config, section), name)


def _why(config: Config, setting: str) -> str | None:
    section, name = setting.split(".")
    if setting in NEEDS:
        found, readers, why = NEEDS[setting]
        return None if (own := found(config)) in readers else why.format(own)
    if section == "method":
        of_labels = name == "theta_bandwidth" and config.data.labelled  # label decoders read it too
        return None if of_labels and config.method.is_stein else _idle(config.method, name)
    readers = OF_MODEL[name]
    return None if config.method.name in readers else _of_others(config.method, readers)


def _of_others(method: MethodConfig, readers: tuple[str, ...]) -> str:
    return f"on method.name {method.name} (read by {', '.join(readers)})"


def _idle(method: MethodConfig, name: str) -> str | None:
    """Why this setting is of no account, if it is."""
    readers = READ_BY.get(name)
    if readers is not None and method.name not in readers:
        return _of_others(method, readers)
    for setting, value, unless in SWITCHES.get(name, ()):
        if getattr(method, setting) == value and not (unless and _acts(method, *unless)):
            return "with one decoder" if setting == "decoders" else f"with method.{setting} {value}"
    return None


def _acts(method: MethodConfig, name: str, value: object) -> bool:
    return getattr(method, name) == value and _idle(method, name) is None
