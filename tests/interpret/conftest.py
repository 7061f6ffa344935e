"""Triton kernels in the interpreter: ``TRITON_INTERPRET=1 pytest tests/interpret``.

The interpreter shows wrong arithmetic, wrong offsets and unwritten outputs. It does not show races,
alignment, registers, or the rounding of tensor cores: it multiplies in float32 whatever is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from stein_kernels import testing

# Read when a kernel is decorated: this process either interprets or compiles.
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    with testing.poison_empty():
        yield
