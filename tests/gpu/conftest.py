"""On a CUDA device, each test once for every backend that a device has."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from stein_kernels import testing, use_backend

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # poison_empty asks for determinism


@pytest.fixture(params=["triton", "cuda"])
def backend(request) -> Iterator[str]:
    """The name of the backend that the public functions run on; asked for by name, built once.

    Skipped where it is not there, unless STEIN_KERNELS_TESTED says that it is what is tested.
    """
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        block = use_backend(request.param)
        block.__enter__()
    except RuntimeError as refused:
        if os.environ.get("STEIN_KERNELS_TESTED") == request.param:
            raise
        pytest.skip(str(refused))
    try:
        with testing.poison_empty():
            yield request.param
    finally:
        block.__exit__(None, None, None)
