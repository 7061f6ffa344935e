"""Settings of `method` that the chosen method never reads, so that a run can say so."""

from __future__ import annotations

from typing import NamedTuple

from steinvae.config import GROUPED, Config, MethodConfig

STEIN = ("stein_vae", "stein_viwae")


class Switch(NamedTuple):
    """A value of another setting that leaves this one unread, unless a third acts by a value."""

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
    "log_q": (MOVED, Switch("importance_samples", 1), Switch("weights", "none")),
    "bandwidth": (MOVED, Switch("kernel", "linear", unless=("log_q", "kde"))),
    "bandwidth_factor": (MOVED, Switch("kernel", "linear")),
    "kernel_block": (MOVED,),
    "kernel": (MOVED,),
    "code_step": (Switch("regression_steps", 1, unless=("move_codes", True)),),
    "mass_codes": (Switch("mass_rate", 0),),
}
"""What leaves a setting unread by those methods."""


def unread(config: Config, defaults: Config) -> list[str]:
    """Names under `method` that differ from `defaults`, which are those of the preset, and that
    nothing learned depends on; a logged statistic may."""
    own, theirs = config.method, defaults.method
    changed = [name for name in READ_BY if getattr(own, name) != getattr(theirs, name)]
    return [f"method.{name}" for name in changed if _idle(own, name)]


def unread_lines(config: Config, defaults: Config) -> list[str]:
    """A line for each of `unread`, with the reason."""
    found = []
    for setting in unread(config, defaults):
        name = setting.removeprefix("method.")
        value, why = getattr(config.method, name), _idle(config.method, name)
        found.append(f"{setting} = {value} has no effect {why}")
    return found


def _idle(method: MethodConfig, name: str) -> str | None:
    """Why this setting is of no account, if it is."""
    readers = READ_BY.get(name)
    if readers is not None and method.name not in readers:
        return f"on method.name {method.name} (read by {', '.join(readers)})"
    for setting, value, unless in SWITCHES.get(name, ()):
        if getattr(method, setting) == value and not (unless and _acts(method, *unless)):
            return f"with method.{setting} {value}"
    return None


def _acts(method: MethodConfig, name: str, value: object) -> bool:
    return getattr(method, name) == value and _idle(method, name) is None
