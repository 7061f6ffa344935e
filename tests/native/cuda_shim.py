"""The CUDA kernels of csrc/cuda on a CPU: built by g++ against ``shim/``, loaded as torch ops.

``library()`` returns ``torch.ops.stein_kernels_cuda``, whose launches then take CPU tensors. What
is compiled is kept, by the hash of what it was made from, and shared between processes. While
several sources are being written, ``STEIN_SHIM_SOURCES=direction,median`` builds only those.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"
SHIM = Path(__file__).resolve().parent / "shim"
CXX = os.environ.get("CXX", "g++")
# Thread-local variables that are declared in a function need no call that initialises them.
COMMON = ["-fPIC", "-g0", "-fno-extern-tls-init", f"-I{SHIM}", f"-I{CUDA}", "-Wno-unknown-pragmas"]
KERNEL = [*COMMON, "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wno-comment"]


def torch_flags() -> list[str]:
    """Of a binding: the headers of torch, at no optimisation (a binding only unpacks)."""
    from torch.utils.cpp_extension import include_paths

    includes = [flag for path in include_paths() for flag in ("-isystem", path)]
    abi = int(torch.compiled_with_cxx11_abi())
    return [*COMMON, "-std=c++20", "-O0", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", *includes]


def sources(suffix: str) -> list[Path]:
    only = os.environ.get("STEIN_SHIM_SOURCES")
    chosen = sorted(CUDA.glob(f"*.{suffix}"))
    if only is None:
        return chosen
    return [path for path in chosen if path.stem.startswith(tuple(only.split(",")))]


def compile_object(source: Path, flags: Sequence[str], *, directory: Path) -> Path:
    """An object file; made before from the same source, headers and flags, it is taken as it is."""
    headers = [*SHIM.rglob("*.h"), *CUDA.glob("*.h"), *CUDA.glob("*.cuh")]
    digest = hashlib.sha256(" ".join([CXX, torch.__version__, *flags]).encode())
    for path in [source, *sorted(headers)]:
        digest.update(path.name.encode() + path.read_bytes())
    result = directory / f"{source.stem}-{digest.hexdigest()[:20]}.o"
    if not result.exists():
        partial = result.with_suffix(f".{os.getpid()}.part")
        run([CXX, *flags, "-x", "c++", "-c", str(source), "-o", str(partial)])
        partial.replace(result)
    return result


def link(objects: Sequence[Path], flags: Sequence[str], *, name: str) -> Path:
    """A shared library of these objects, named by them."""
    digest = hashlib.sha256("".join([str(path) for path in objects] + [*flags]).encode())
    result = objects[0].parent / f"{name}-{digest.hexdigest()[:20]}.so"
    if not result.exists():
        partial = result.with_suffix(f".{os.getpid()}.part")
        run([CXX, "-shared", "-o", str(partial), *map(str, objects), *flags])
        partial.replace(result)
    return result


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-6000:]}")


@contextmanager
def cache() -> Iterator[Path]:
    """The directory of what was compiled; one process builds at a time."""
    directory = Path(tempfile.gettempdir(), f"stein_kernels_shim-{os.getuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user")
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


@functools.cache
def library() -> Any:
    """``torch.ops.stein_kernels_cuda`` over the shim; skips where there is no C++ compiler."""
    if shutil.which(CXX) is None:
        pytest.skip(f"no C++ compiler: {CXX} is not on the PATH")
    with cache() as directory:
        kernels = [SHIM / "runtime.cpp", *sources("cu")]
        objects = [compile_object(path, KERNEL, directory=directory) for path in kernels]
        runtime = link(objects, ["-Wl,--no-undefined"], name="kernels")
        flags = torch_flags()
        objects = [compile_object(path, flags, directory=directory) for path in sources("cpp")]
        libraries = Path(torch.__file__).parent / "lib"
        flags = [f"-L{libraries}", "-ltorch_cpu", "-ltorch", "-lc10", str(runtime)]
        binding = link(objects, flags, name="binding")
    torch.ops.load_library(str(binding))
    return torch.ops.stein_kernels_cuda
