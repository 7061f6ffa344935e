"""The checks behind every setting."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints


def require(condition: bool, setting: str, expected: str, value: object) -> None:
    """Raise `ValueError` that names the setting, what was expected and what came."""
    if not condition:
        raise ValueError(f"{setting} must be {expected}, got {value!r}")


def check_types(section: Any, prefix: str = "") -> None:
    """`ValueError` naming the first setting of a section whose value is not of its field's type.

    Any text is a data.name here: a program registers data sets of its own.
    """
    hints = _hints(type(section))
    for item in fields(section):
        value, hint = getattr(section, item.name), hints[item.name]
        if prefix + item.name == "data.name":
            hint = str
        require(fits(value, hint), prefix + item.name, _called(hint), value)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _called(hint: Any) -> str:
    """A field's type in words."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a tuple of {_called(get_args(hint)[0])}"
    if get_args(hint):
        return " or ".join(map(_called, get_args(hint)))
    return "None" if hint is type(None) else hint.__name__


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; a whole number is a float too, and no switch is one."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(each, parts[0]) for each in value)
    if parts:
        return any(fits(value, part) for part in parts)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
