"""What the schemas of all ops have in common: their last argument, ``backend``.

It is what :class:`use_backend` asked for. An argument, since autograd runs backward passes of a GPU
in a thread that knows nothing of the block, and a compiled graph runs when the block has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BACKEND = 'str backend="auto"'


def count_values(schema: str) -> int:
    """How many arguments come before ``backend``."""
    return schema.split("->")[0].count(",")


def of_values(schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that needs not know the backend."""
    count = count_values(schema)
    return lambda *arguments: function(*arguments[:count])
