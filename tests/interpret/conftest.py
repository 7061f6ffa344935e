"""Triton kernels in the interpreter: ``TRITON_INTERPRET=1 pytest tests/interpret``.

The interpreter shows wrong arithmetic, wrong offsets and unwritten outputs. It does not show races,
alignment, registers, or the rounding of tensor cores: it multiplies in float32 whatever is asked.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

from stein_kernels import testing

# Read when a kernel is decorated: this process either interprets or compiles. `make test` has both.
interprets = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton")
collect_ignore_glob = [] if interprets else ["test_*.py"]


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    with testing.poison_empty():
        yield
