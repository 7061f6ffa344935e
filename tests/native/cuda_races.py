"""CUDA kernels under ThreadSanitizer: every CUDA thread is a thread to it, blocks run in order.

``program`` compiles a driver (``shim/races_<feature>.cpp``, a main that takes names of launches)
with the sources that it calls; ``races`` runs it and counts the data races reported.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.native.cuda_shim import COMMON, CUDA, CXX, SHIM, cache, compile_object, run

SANITIZED = [*COMMON, "-std=c++17", "-O1", "-g1", "-fsanitize=thread"]
MAPPING = "unexpected memory mapping"  # of older runtimes, where addresses are very random


def probe(directory: Path) -> None:
    """Skip where there is no compiler, or none with ThreadSanitizer."""
    if shutil.which(CXX) is None:
        pytest.skip(f"no C++ compiler: {CXX} is not on the PATH")
    source = directory / "probe.cpp"
    source.write_text("int main() { return 0; }\n")
    command = [CXX, "-fsanitize=thread", str(source), "-o", str(directory / "probe")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"{CXX} has no ThreadSanitizer")


def program(
    driver: str,
    sources: Sequence[str],
    directory: Path,
    *,
    change: Callable[[str, str], str] = lambda name, text: text,
) -> Path:
    """An executable of ``shim/<driver>`` and csrc/cuda/<sources>; ``change(name, text)`` edits a
    copy of every file of csrc/cuda before it is compiled."""
    probe(directory)
    csrc = directory / "cuda"
    shutil.rmtree(csrc, ignore_errors=True)
    csrc.mkdir()
    for path in [*CUDA.glob("*.h"), *CUDA.glob("*.cuh"), *(CUDA / name for name in sources)]:
        (csrc / path.name).write_text(change(path.name, path.read_text()))
    flags = [flag for flag in SANITIZED if flag != f"-I{CUDA}"] + [f"-I{csrc}"]
    with cache() as kept:
        runtime = compile_object(
            SHIM / "runtime.cpp", [*COMMON, "-std=c++17", "-O2", "-DSHIM_TSAN"], directory=kept
        )
    result = directory / "races"
    objects = []
    for source in [*(csrc / name for name in sources), SHIM / driver]:
        objects.append(str(directory / f"{source.stem}.o"))
        run([CXX, *flags, "-x", "c++", "-c", str(source), "-o", objects[-1]])
    run([CXX, "-fsanitize=thread", *objects, str(runtime), "-o", str(result)])
    return result


def races(executable: Path, *launches: str) -> int:
    """The number of data races in these launches."""
    environment = {**os.environ, "TSAN_OPTIONS": "exitcode=0 atexit_sleep_ms=0"}
    command = [str(executable), *launches]

    def call(before: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*before, *command], capture_output=True, text=True, env=environment, check=False
        )

    done = call([])
    if MAPPING in done.stderr and shutil.which("setarch"):
        done = call(["setarch", "-R"])
    if MAPPING in done.stderr or "setarch: failed" in done.stderr:
        pytest.skip("ThreadSanitizer cannot map its memory here (vm.mmap_rnd_bits is too large)")
    assert done.returncode == 0, done.stderr[-3000:]
    return len(re.findall(r"WARNING: ThreadSanitizer: data race", done.stderr))
