"""How csrc is compiled: sources, flags, build header; for setup.py and the build on first use.

Standard library only: setup.py reads this file where torch may be absent, and the build on first
use runs it as a script in a fresh process, so that nothing of the build stays in the user's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = "stein_kernels_build.h"  # included by the module files alone: an edit rebuilds one object
NAMES = {"cpu": "_C", "cuda": "_CUDA"}  # the library of each kind, a module of stein_kernels
FOLDERS = {"cpu": ("", "cpu/"), "cuda": ("cuda/", "cuda/python/")}  # of csrc

# No -march: one binary serves every CPU, csrc/cpu chooses the instruction set at run time.
# No -std: torch's default is the one that the headers of its version need.
# errno and floating-point traps keep GCC from vectorising; no other part of -ffast-math is used.
CXX_FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=fast"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
# No --use_fast_math: the accuracy contract is 2e-6. Line numbers cost nothing and serve profilers.
NVCC_FLAGS = ["-O3", "-lineinfo", "--threads=2"]
CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"  # where TORCH_CUDA_ARCH_LIST does not say


def sources(csrc: Path, kind: str = "cpu") -> list[Path]:
    """The translation units of a library."""
    suffixes = ("cpp", "cu") if kind == "cuda" else ("cpp",)
    return sorted(
        path
        for folder in FOLDERS[kind]
        for suffix in suffixes
        for path in csrc.glob(f"{folder}*.{suffix}")
    )


def flags(kind: str = "cpu") -> list[str]:
    return NVCC_FLAGS if kind == "cuda" else CXX_FLAGS + OPENMP


def compile_flags() -> dict[str, list[str]]:
    """Flags by compiler, as torch's builder takes them."""
    return {"cxx": CXX_FLAGS + OPENMP, "nvcc": NVCC_FLAGS}


def source_hash(csrc: Path, kind: str = "cpu") -> str:
    """Names what a library is made of: every source, every header, the flags."""
    digest = hashlib.sha256(" ".join(flags(kind)).encode())
    headers = [
        path
        for folder in FOLDERS[kind]
        for suffix in ("h", "cuh")
        for path in csrc.glob(f"{folder}*.{suffix}")
    ]
    for path in sorted([*sources(csrc, kind), *headers]):
        digest.update(path.relative_to(csrc).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def write_header(directory: Path, csrc: Path, torch_version: str, kind: str = "cpu") -> None:
    """Tell the module file what it is built from; untouched where nothing changed."""
    values = {
        "TORCH": torch_version,
        "SOURCE": source_hash(csrc, kind),
        "FLAGS": " ".join(flags(kind)),
        "ARCHITECTURES": architectures(),
    }
    text = "".join(f'#define STEIN_KERNELS_{key} "{value}"\n' for key, value in values.items())
    path = directory / HEADER
    if not path.exists() or path.read_text() != text:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def architectures() -> str:
    """The CUDA architectures to compile for, as torch's builder reads them."""
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES


def cuda_home() -> Path | None:
    """A CUDA toolkit with its compiler and headers: $CUDA_HOME, the one on the PATH, or the usual.

    torch looks no further than the folder above nvcc, which is not the toolkit where nvcc on the
    PATH is a script.
    """
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    found = shutil.which("nvcc")
    on_path = None if found is None else Path(found).resolve().parents[1]
    for home in (*(Path(name) for name in named if name), on_path, Path("/usr/local/cuda")):
        if home and (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists():
            return home
    return None


def why_no_cuda() -> str | None:
    """None where torch has CUDA and a toolkit is here; otherwise what is missing."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if cuda_home() is None:
        return (
            "there is no CUDA toolkit with nvcc: not in CUDA_HOME, on the PATH, or /usr/local/cuda"
        )
    return None


def use_cuda_toolkit() -> None:
    """Tell torch's builder which toolkit and architectures; before it is imported."""
    os.environ["CUDA_HOME"] = str(cuda_home())
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()


def compiler() -> str:
    """The C++ compiler that torch's build would call."""
    return os.environ.get("CXX", "c++")


def why_no_compiler() -> str | None:
    """None where a small OpenMP program compiles; otherwise what stood in the way."""
    command = compiler().split()
    if not command or shutil.which(command[0]) is None:
        return f"no C++ compiler: {compiler()!r} is not on the PATH"
    with tempfile.TemporaryDirectory() as directory:
        probe = Path(directory, "probe.cpp")
        probe.write_text("#include <vector>\nint main() { return std::vector<int>().size(); }\n")
        command += [*CXX_FLAGS, *OPENMP, str(probe), "-o", str(probe.with_suffix(""))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return f"the C++ compiler {compiler()!r} does not work: {done.stderr.strip()[-300:]}"


def build(csrc: Path, directory: Path, kind: str = "cpu") -> None:
    """Compile a library into ``directory`` and load it once, as the proof that it loads."""
    import torch

    if kind == "cuda":
        use_cuda_toolkit()
    from torch.utils.cpp_extension import load

    write_header(directory, csrc, str(torch.__version__), kind)
    load(
        name=NAMES[kind],
        sources=[str(path) for path in sources(csrc, kind)],
        extra_cflags=CXX_FLAGS + OPENMP,
        extra_cuda_cflags=NVCC_FLAGS,
        extra_ldflags=[*OPENMP],
        extra_include_paths=[str(csrc), str(directory)],
        build_directory=str(directory),
        with_cuda=kind == "cuda",
        is_python_module=False,
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
