"""The one check behind every setting."""

from __future__ import annotations


def require(condition: bool, setting: str, expected: str, value: object) -> None:
    """Raise `ValueError` that names the setting, what was expected and what came."""
    if not condition:
        raise ValueError(f"{setting} must be {expected}, got {value!r}")
