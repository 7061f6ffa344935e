"""Install the torch of constraints.txt into this environment, without CUDA where no GPU is.

The default index serves Linux a torch that brings several gigabytes of CUDA libraries. Where pip
would install those and the machine has no NVIDIA driver, uv, which knows where torch's CPU builds
are, takes over. TORCH_INDEX=URL names the index of torch itself, and settles the question.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = str(Path(__file__).resolve().parents[1] / "constraints.txt")
PIP = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]


def brings_cuda() -> bool:
    """Whether pip, left alone, would install CUDA libraries with torch."""
    command = [*PIP, "install", "--dry-run", "--report", "-", "-c", CONSTRAINTS, "torch"]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    names = [package["metadata"]["name"].lower() for package in report["install"]]
    return any(name.startswith(("nvidia-", "cuda-")) for name in names)


def install() -> None:
    index = os.environ.get("TORCH_INDEX")
    if index:
        command = [*PIP, "install", "--index-url", index, "-c", CONSTRAINTS, "torch"]
        subprocess.run(command, check=True)
    elif shutil.which("nvidia-smi") is None and brings_cuda():
        print("no NVIDIA driver here: installing the CPU build of torch", flush=True)
        subprocess.run([*PIP, "install", "uv"], check=True)
        uv = [sys.executable, "-m", "uv", "-q", "pip", "install", "--python", sys.executable]
        subprocess.run([*uv, "--torch-backend=cpu", "-c", CONSTRAINTS, "torch"], check=True)
    else:
        subprocess.run([*PIP, "install", "-c", CONSTRAINTS, "torch"], check=True)


try:
    install()
except subprocess.CalledProcessError as error:
    raise SystemExit(
        f"torch was not installed: {' '.join(error.cmd)} failed. "
        "TORCH_INDEX=URL makes pip take torch from the index at that URL"
    ) from error
