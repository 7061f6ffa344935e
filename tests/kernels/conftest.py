"""A test that takes ``kernels`` runs on each implementation that can stand behind the public names.

``compiled``: the C++ kernels of the CPU dispatch key. ``composite``: the torch kernels that run
where nothing is compiled. ``reference``: the specification itself. ``cuda``: the flows of GPUs over
the CUDA C++ kernels, which run on an emulated device (tests/native/shim).
"""

from __future__ import annotations

import os
import warnings
from typing import NamedTuple

import pytest
from hypothesis import settings

from stein_kernels import _extension, testing, use_backend
from tests.native import cuda_shim

settings.register_profile("kernels", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("kernels")


class Compiled(NamedTuple):
    present: bool
    reason: str


@pytest.fixture(scope="session")
def compiled_kernels() -> Compiled:
    """Look for the C++ kernels once, before any test puts others in their place."""
    with warnings.catch_warnings():  # a failed build is reported below, by its reason
        warnings.simplefilter("ignore", RuntimeWarning)
        reason = _extension.status().reason
    return Compiled(testing.has_compiled_kernels(), reason)


@pytest.fixture(scope="module", params=["compiled", "composite", "reference", "cuda"])
def kernels(request, compiled_kernels):
    """The name of the implementation that the public functions use in this test.

    The only fixture that puts kernels in place, so that no two of them are in place at once; a test
    for some implementations alone names them: ``parametrize("kernels", [...], indirect=True)``.
    """
    if request.param == "compiled":
        _require(compiled_kernels)
        yield "compiled"
    elif request.param == "composite":
        with testing.composite_kernels():
            yield "composite"
    elif request.param == "cuda":
        with testing.gpu_flows("cuda", cuda_shim.library()):
            yield "cuda"
    else:
        with use_backend("reference"):
            yield "reference"


def _require(compiled: Compiled) -> None:
    """Continuous integration has a compiler, so there a missing kernel is a failure."""
    if compiled.present:
        return
    missing = f"no compiled CPU kernels: {compiled.reason}"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(autouse=True)
def _poisoned_memory():
    with testing.poison_empty():
        yield
