"""nvcc compiles every CUDA source without spills, and the bindings fit the installed headers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.native.cuda_shim import CUDA, CXX, run

ARCHITECTURES = (80, 90, 100)
FUNCTION = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def sources(suffix: str) -> list[Path]:
    return sorted(CUDA.glob(f"*.{suffix}"))


def nvcc() -> str:
    for found in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if found is not None and Path(found).exists():
            return found
    pytest.skip("no nvcc on the PATH nor in /usr/local/cuda")


def toolkit() -> Path:
    """The toolkit's headers, where nvcc itself finds them."""
    done = subprocess.run(
        [nvcc(), "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    )
    for path in re.findall(r'"-I([^"]+)"', done.stderr):
        if Path(path, "cuda_runtime_api.h").exists():
            return Path(path)
    pytest.skip("nvcc has no cuda_runtime_api.h")


def demangled(names: list[str]) -> dict[str, str]:
    if shutil.which("c++filt") is None:
        pytest.skip("no c++filt on the PATH")
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return dict(zip(names, done.stdout.splitlines(), strict=True))


def uses_doubles(ptx: str) -> bool:
    """Arithmetic and conversions; moving a double costs nothing."""
    return re.search(r"^\s*(?!mov|ld|st)\w+\S*\.f64", ptx, re.MULTILINE) is not None


@pytest.mark.parametrize("source", sources("cu"), ids=lambda path: path.name)
def test_kernels_compile_without_spills(source, tmp_path):
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = [nvcc(), "-std=c++17", "-O3", *codes, "-Xptxas", "-v", "--keep"]
    command += [f"--keep-dir={tmp_path}", "-c", str(source), "-o", str(tmp_path / "object.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stderr, done.stderr[-3000:]
    kernels = [match.groupdict() for match in FUNCTION.finditer(done.stderr)]
    assert {int(kernel["arch"]) for kernel in kernels} == set(ARCHITECTURES)
    names = demangled(sorted({kernel["name"] for kernel in kernels}))
    spilled = [
        f"{names[kernel['name']]} on sm_{kernel['arch']}: {kernel['stack']} bytes of stack, "
        f"{kernel['stores']} and {kernel['loads']} bytes spilled, {kernel['registers']} registers"
        for kernel in kernels
        if int(kernel["stack"]) or int(kernel["stores"]) or int(kernel["loads"])
    ]
    assert not spilled, "\n".join(spilled)

    (path,) = [p for p in tmp_path.glob("*.ptx") if f"compute_{ARCHITECTURES[0]}" in p.name]
    entries = re.split(r"\.entry\s+(\w+)", path.read_text())[1:]
    wide = [
        names[name]
        for name, body in zip(entries[::2], entries[1::2], strict=True)
        if "double" not in names[name] and uses_doubles(body)
    ]
    assert not wide, f"float64 instructions in {wide}"


@pytest.mark.parametrize("source", sources("cpp"), ids=lambda path: path.name)
def test_bindings_fit_the_installed_headers(source):
    """The CPU wheel of torch ships c10's CUDA headers, all but one that CMake writes."""
    from torch.utils.cpp_extension import include_paths

    headers = Path(torch.__file__).parent / "include" / "c10" / "cuda" / "CUDAStream.h"
    if shutil.which(CXX) is None or not headers.exists():
        pytest.skip(f"no {CXX} on the PATH" if headers.exists() else f"torch has no {headers.name}")
    includes = [flag for path in (*include_paths(), toolkit()) for flag in ("-isystem", str(path))]
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE"]
    run([CXX, *flags, *includes, str(source)])
