"""What every test shares: a fixed seed, one thread, the real data, and fresh Python processes."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# Shapes and types in steinvae's annotations are checked at every call, from before it is imported.
# The hook wants the checker by a dotted name; an int passes for a float, as PEP 484 has it.
SHAPED = (
    "density",
    "labels",
    "models",
    "monitor",
    "pairs",
    "particles",
    "recognition",
    "spectral",
    "stein",
    "weights",
)
checker = types.ModuleType("shape_checker")
checker.checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # type: ignore[attr-defined]
sys.modules[checker.__name__] = checker
install_import_hook([f"steinvae.{name}" for name in SHAPED], "shape_checker.checked")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The tests time nothing; one thread keeps their sums in one order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The directory of the real data sets, as given to ``--data.root``."""
    named = os.environ.get("STEIN_DATA_ROOT")
    if named is not None and not Path(named).is_dir():
        pytest.fail(f"STEIN_DATA_ROOT={named} is not a directory")
    root = Path(named) if named is not None else ROOT.parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip("no real data: set STEIN_DATA_ROOT to the directory that holds it")
    return root


@pytest.fixture(scope="session")
def fresh_python(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code in a new process that imports this tree; keywords are environment variables."""
    elsewhere = tmp_path_factory.mktemp("cwd")  # -c imports from the working directory first

    def run(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *options, "-c", code],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
