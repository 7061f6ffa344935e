"""The compiled kernels are found, or built once and shared; else one warning says why."""

from __future__ import annotations

import logging
import os
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

import stein_kernels
from stein_kernels import _build, _extension

# As small as an extension gets: it compiles in a second.
TOY = """
#include <Python.h>
#include "stein_kernels_build.h"
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C() {
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "torch", STEIN_KERNELS_TORCH);
  return module;
}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """A csrc of one file, nothing installed, an empty cache; returns the csrc directory."""

    def nothing_installed():
        raise _extension._Unavailable("no extension is installed")

    csrc = tmp_path / "csrc"
    csrc.mkdir()
    (csrc / "module.cpp").write_text(TOY)
    monkeypatch.setattr(_extension, "csrc_directory", lambda: csrc)
    monkeypatch.setattr(_extension, "_installed", nothing_installed)
    monkeypatch.setattr(_extension, "_found", None)
    monkeypatch.setenv("STEIN_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STEIN_KERNELS_JIT", raising=False)
    monkeypatch.setitem(sys.modules, "stein_kernels._C", sys.modules.get("stein_kernels._C"))
    return csrc


def break_source(csrc: Path) -> None:
    (csrc / "module.cpp").write_text("this is not C++;\n")


# --- the real extension --------------------------------------------------------------------------


def test_extension_says_what_it_was_built_from():
    module = _extension.load(required=True)
    assert module is not None
    info = module.build_info()
    assert info["torch"] == str(torch.__version__)
    csrc = _extension.csrc_directory()
    assert csrc is not None
    assert info["source"] == _build.source_hash(csrc)
    assert info["flags"].split() == _build.CXX_FLAGS + _build.OPENMP
    assert module.instruction_set().lower() in {*info["instruction_sets"]}


def test_every_op_has_a_compiled_kernel():
    from stein_kernels import _ops

    _extension.load(required=True)
    lacking = [
        name
        for name in _ops.SCHEMAS
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"stein_kernels::{name}", "CPU")
    ]
    assert not lacking


def test_loading_twice_gives_the_same_module():
    assert _extension.load() is _extension.load()


def test_torch_and_the_kernels_share_one_openmp():
    """Two OpenMP runtimes in a process would each start a thread per core."""
    _extension.load(required=True)
    with open("/proc/self/maps") as maps:
        runtimes = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}
    ours = {path for path in runtimes if "sklearn" not in path and "scikit" not in path}
    assert len(ours) == 1, ours


# --- building on first use -----------------------------------------------------------------------


def test_first_use_builds_into_the_cache_and_says_so(toy, caplog, monkeypatch, recwarn):
    directory = _extension.cache_directory(toy)
    (directory / "build").mkdir(parents=True)  # what a killed build leaves behind
    (directory / "build" / "lock").touch()
    (directory / "build.lock").touch()
    with caplog.at_level(logging.WARNING, logger="stein_kernels"):
        first = _extension.status()
    assert first.origin == "built now"
    assert first.module is not None
    assert first.module.torch == str(torch.__version__)
    (record,) = caplog.records
    assert str(directory) in record.getMessage()

    def no_second_build(*arguments):
        raise AssertionError("built twice")

    monkeypatch.setattr(_extension, "_found", None)
    monkeypatch.setattr(_extension, "_build_into", no_second_build)
    assert _extension.status().origin == "cache"
    assert len(caplog.records) == 1
    assert not recwarn.list


def test_several_builders_build_once(toy, monkeypatch):
    builds, start = [], threading.Barrier(4)

    def build(directory, csrc, library, kind):
        builds.append(directory)
        time.sleep(0.2)  # the others have long looked for the library by now
        library.write_bytes(b"")

    def first_use(_):
        start.wait()
        return _extension._cached_or_built("no extension is installed")

    monkeypatch.setattr(_extension, "_build_into", build)
    monkeypatch.setattr(_extension, "_import_library", lambda library, kind: os)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(first_use, range(4)))
    assert len(builds) == 1
    assert sorted(extension.origin for extension in found) == ["built now"] + ["cache"] * 3


def test_cache_is_keyed_by_torch_python_and_sources(toy, monkeypatch):
    before = _extension.cache_directory(toy)
    assert str(torch.__version__) in before.name
    assert f"cpython-{sys.version_info[0]}{sys.version_info[1]}" in before.name
    (toy / "rbf.h").write_text("// a header\n")
    assert _extension.cache_directory(toy) != before


def test_failed_build_is_one_warning_with_the_compilers_words(toy):
    break_source(toy)
    with pytest.warns(RuntimeWarning, match="error: ") as warned:
        assert _extension.load() is None
    assert len(warned) == 1
    message = str(warned[0].message)
    log = _extension.cache_directory(toy) / "build.log"
    assert str(log) in message
    assert "this is not C++" in log.read_text()
    assert _extension.load() is None  # neither a second build nor a second warning
    with pytest.raises(RuntimeError, match=r"not available.*error: "):
        _extension.load(required=True)


def test_failed_build_leaves_ops_that_work(fresh_python, tmp_path):
    """The whole way, in a new process: a compiler that fails, the warning, the right numbers."""
    code = """
import sys, torch, warnings
sys.modules["stein_kernels._C"] = None
import stein_kernels
x = torch.randn(9, 2)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    phi = stein_kernels.svgd_direction(x, -x)
    stein_kernels.svgd_direction(x, -x)
assert [w.category for w in warned] == [RuntimeWarning], warned
with stein_kernels.use_backend("reference"):
    assert torch.allclose(phi, stein_kernels.svgd_direction(x, -x), atol=1e-5)
try:
    with stein_kernels.use_backend("cpu"):
        raise SystemExit("a backend that is not there was accepted")
except RuntimeError as error:
    assert "build on first use failed" in str(error), error
"""
    failing = tmp_path / "c++"
    failing.write_text("#!/bin/sh\necho 'error: no licence' >&2\nexit 1\n")
    failing.chmod(failing.stat().st_mode | stat.S_IXUSR)
    done = fresh_python(code, CXX=str(failing), STEIN_KERNELS_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("CXX", "no-such-compiler", "no C\\+\\+ compiler: 'no-such-compiler' is not on the PATH"),
        ("STEIN_KERNELS_CACHE", "/dev/null/cache", "the cache is not writable"),
    ],
)
def test_missing_tool_is_named(toy, monkeypatch, variable, value, reason):
    monkeypatch.setenv(variable, value)
    with pytest.warns(RuntimeWarning, match=reason):
        assert _extension.load() is None


def test_missing_ninja_is_named(toy, monkeypatch, tmp_path):
    compiler = _extension.shutil.which(_build.compiler())
    assert compiler is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "c++").symlink_to(compiler)
    monkeypatch.setenv("CXX", "c++")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(_extension, "_tool_path", lambda: str(tmp_path / "bin"))
    with pytest.warns(RuntimeWarning, match="ninja is not installed"):
        assert _extension.load() is None


def test_switching_the_build_off_is_silent(toy, monkeypatch, recwarn):
    monkeypatch.setenv("STEIN_KERNELS_JIT", "0")
    assert _extension.load() is None
    assert not recwarn.list
    assert "STEIN_KERNELS_JIT=0" in _extension.status().reason


# --- an installed extension that does not fit ----------------------------------------------------


def library(path: Path, torch_version: str, source: str) -> Path:
    path.write_bytes(
        f"\x7fELF stein_kernels build: torch={torch_version};source={source};".encode()
    )
    return path


def test_installed_extension_must_fit_torch_and_sources(toy, tmp_path):
    source = _build.source_hash(toy)
    _extension._check_build(library(tmp_path / "fits.so", str(torch.__version__), source))
    with pytest.raises(_extension._Unavailable, match=r"built for torch 2\.1\.0, this is"):
        _extension._check_build(library(tmp_path / "old.so", "2.1.0", source))
    with pytest.raises(_extension._Unavailable, match="other sources"):
        _extension._check_build(library(tmp_path / "stale.so", str(torch.__version__), "0" * 16))
    (tmp_path / "foreign.so").write_bytes(b"\x7fELF")
    with pytest.raises(_extension._Unavailable, match="not a build of stein_kernels"):
        _extension._check_build(tmp_path / "foreign.so")


def test_import_of_the_package_does_not_load_the_extension(fresh_python):
    done = fresh_python(
        "import sys, stein_kernels; assert 'stein_kernels._C' not in sys.modules",
        STEIN_KERNELS_CACHE="/dev/null/cache",
    )
    assert done.returncode == 0, done.stderr
    assert stein_kernels.__version__


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("8.0;9.0;10.0+PTX", (9, 0), True),
        ("8.0;9.0;10.0+PTX", (8, 6), True),
        ("8.0;9.0;10.0+PTX", (12, 0), True),
        ("8.0;9.0;10.0+PTX", (7, 5), False),
        ("8.0", (9, 0), False),
        ("8.6", (8, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("9.0a", (9, 0), True),
        ("10.0a", (10, 3), False),
        ("10.0f", (10, 3), True),
        ("8.0 9.0", (9, 0), True),
        ("Hopper", (9, 0), True),
    ],
)
def test_a_build_for_other_devices_is_not_used(built, capability, runs):
    assert _extension.runs_on(built, capability) is runs


def test_cuda_cache_is_keyed_by_architectures(toy, monkeypatch):
    folders = set()
    for named in ("8.0", "9.0", "8.0;9.0+PTX"):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", named)
        folders.add(_extension.cache_directory(toy, "cuda"))
    assert len(folders) == 3


def test_a_build_of_the_gpu_kernels_keeps_nobody_waiting(monkeypatch):
    """Others run on what is there; who asks for the build waits, and it is made once."""
    nothing = _extension.Extension(None, "none", "not installed")
    built = _extension.Extension(ModuleType("built"), "built now", "built now")
    begun, end, builds = threading.Event(), threading.Event(), []

    def search(build: bool) -> _extension.Extension:
        if not build:
            return nothing
        builds.append(build)
        begun.set()
        assert end.wait(60)
        return built

    monkeypatch.setattr(_extension, "_found_cuda", {})
    monkeypatch.setattr(_extension, "_search_cuda", search)
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(_extension.cuda_status, build=True) for _ in range(2)]
        assert begun.wait(60)
        assert _extension.cuda_status(build=False) is nothing
        end.set()
        assert [each.result() for each in asking] == [built, built]
    assert builds == [True]
    assert _extension.cuda_status(build=False) is built
