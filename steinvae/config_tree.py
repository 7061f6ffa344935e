"""A configuration as plain dictionaries and back, for YAML and JSON."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from typing import Any, get_type_hints

from steinvae.config import Config
from steinvae.config._checks import fits


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dictionaries, lists and scalars, ready for YAML and JSON."""
    return _plain(asdict(config))


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`; an unknown key or a value of another type is a `ValueError`."""
    return _build(Config, values, "")


def dotted(config: Config) -> dict[str, Any]:
    """Every setting by its name on a command line, section.field."""
    flat: dict[str, Any] = {}
    for name, value in to_dict(config).items():
        section = value if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": item for key, item in section.items()} or {name: value}
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, float) else value  # numpy's are floats too


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):  # an empty file is None
        where = f"under {prefix[:-1]}" if prefix else "by name"
        raise ValueError(f"expected settings {where}, got {values!r}")
    hints = get_type_hints(cls)
    known = {item.name for item in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown setting {prefix}{unknown[0]}; known here: {sorted(known)}")
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if is_dataclass(hint) and isinstance(hint, type):
            value = _build(hint, value, f"{prefix}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        if not (is_dataclass(hint) or fits(value, hint)):
            raise ValueError(f"{prefix}{name} cannot be {value!r}")
        arguments[name] = value
    return cls(**arguments)
