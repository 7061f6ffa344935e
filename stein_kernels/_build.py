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

HEADER = "stein_kernels_build.h"  # included by csrc/module.cpp alone: an edit rebuilds one object

# No -march: one binary serves every CPU, csrc/cpu chooses the instruction set at run time.
# No -std: torch's default is the one that the headers of its version need.
# errno and floating-point traps keep GCC from vectorising; no other part of -ffast-math is used.
CXX_FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=fast"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []


def sources(csrc: Path) -> list[Path]:
    """The translation units of the CPU extension."""
    return sorted([*csrc.glob("*.cpp"), *csrc.glob("cpu/*.cpp")])


def source_hash(csrc: Path) -> str:
    """Names what the extension is made of: every source, every header, the flags."""
    digest = hashlib.sha256(" ".join(CXX_FLAGS + OPENMP).encode())
    for path in sorted([*sources(csrc), *csrc.glob("*.h"), *csrc.glob("cpu/*.h")]):
        digest.update(path.relative_to(csrc).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def write_header(directory: Path, csrc: Path, torch_version: str) -> None:
    """Tell csrc/module.cpp what it is built from; untouched where nothing changed."""
    values = {
        "TORCH": torch_version,
        "SOURCE": source_hash(csrc),
        "FLAGS": " ".join(CXX_FLAGS + OPENMP),
    }
    text = "".join(f'#define STEIN_KERNELS_{key} "{value}"\n' for key, value in values.items())
    path = directory / HEADER
    if not path.exists() or path.read_text() != text:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


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


def build(csrc: Path, directory: Path) -> None:
    """Compile csrc into ``directory/_C.so`` and load it once, as the proof that it loads."""
    import torch
    from torch.utils.cpp_extension import load

    write_header(directory, csrc, str(torch.__version__))
    load(
        name="_C",
        sources=[str(path) for path in sources(csrc)],
        extra_cflags=CXX_FLAGS + OPENMP,
        extra_ldflags=[*OPENMP],
        extra_include_paths=[str(csrc), str(directory)],
        build_directory=str(directory),
        is_python_module=False,
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
