"""A test that takes ``kernels`` runs on each implementation that can stand behind the public names.

``compiled``: the C++ kernels of the CPU dispatch key. ``composite``: the torch kernels that run
where nothing is compiled. ``reference``: the specification itself.
"""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from hypothesis import settings

from stein_kernels import _extension, testing, use_backend

settings.register_profile("kernels", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("kernels")


@pytest.fixture(scope="session")
def extension() -> _extension.Extension:
    """Look for the compiled kernels once; a failed build is reported by ``require_compiled``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return _extension.status()


def require_compiled(extension: _extension.Extension) -> None:
    if testing.has_compiled_kernels():
        return
    missing = f"no compiled CPU kernels: {extension.reason}"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="module", params=["compiled", "composite", "reference"])
def kernels(request, extension):
    """The name of the implementation that the public functions use in this test."""
    yield from _implementation(request.param, extension)


@pytest.fixture(scope="module", params=["compiled", "composite"])
def fused(request, extension):
    """As ``kernels``, for what the reference is not meant to do: ops, memory, float32 accuracy."""
    yield from _implementation(request.param, extension)


@pytest.fixture(scope="module")
def compiled(extension):
    """The C++ kernels alone."""
    yield from _implementation("compiled", extension)


def _implementation(name, extension):
    if name == "compiled":
        require_compiled(extension)
        yield name
    elif name == "composite":
        with testing.composite_kernels():
            yield name
    else:
        with use_backend("reference"):
            yield name


@pytest.fixture(autouse=True)
def _poisoned_memory():
    with testing.poison_empty():
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The suite times nothing; one thread keeps it steady on a shared machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
