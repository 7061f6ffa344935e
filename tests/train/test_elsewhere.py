"""Runs on another device than the CPU put every tensor there: nothing is mixed or forgotten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

ROOT = Path(__file__).resolve().parents[2]
CASES = (
    *("stein_vae", "stein_viwae", "as printed", "moved codes", "planar flow", "flow_elbo"),
    *("guesses", "m2", "documents", "deep documents", "images"),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, str]:
    """What went wrong, by case."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip(f"torch {torch.__version__} cannot have a device that Python pretends")
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "tests.train.elsewhere", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=900)
    return json.loads((folder / "found.json").read_text())


def test_every_case_is_run(found):
    assert tuple(found) == CASES


@pytest.mark.parametrize("case", CASES)
def test_no_devices_are_mixed(found, case):
    assert found[case] == ""
