"""Finds the compiled kernels, or builds them from csrc on first use; import never needs them.

Loading ``stein_kernels._C`` adds the CPU kernels to the ops that ``_ops`` defines; loading
``stein_kernels._CUDA`` defines the launches of csrc/cuda. Each is looked for in this order:

1. the library that was installed, where it was built from these sources for this torch;
2. a library in the cache, built by an earlier process;
3. a build into the cache, with one line that says so. ``STEIN_KERNELS_JIT=0`` turns 2 and 3 off.
   The CUDA kernels take minutes to build: that is done only for those who ask for them by name.

The cache is ``$STEIN_KERNELS_CACHE``, or ``stein_kernels`` in the user's cache directory.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from stein_kernels import _build

_logger = logging.getLogger("stein_kernels")
_BUILD_ID = re.compile(rb"stein_kernels build: torch=([^;]+);source=([^;]+);")


class Extension(NamedTuple):
    """The outcome of looking for the compiled kernels."""

    module: ModuleType | None
    origin: str  # "installed", "cache", "built now" or "none"
    reason: str  # one sentence: where it is, or why it is not there


class _Unavailable(Exception):
    """Why one of the ways to the extension is closed."""


_lock = threading.Lock()
_cuda_build = threading.Lock()  # held for minutes, in which other threads run what is there
_found: Extension | None = None
_found_cuda: dict[bool, Extension] = {}  # by whether a build was allowed


def load(*, required: bool = False) -> ModuleType | None:
    """The loaded ``_C``, or None where it can be neither found nor built.

    The search runs once in a process; a search that fails is one warning (none where
    ``STEIN_KERNELS_JIT=0`` asked for it).

    Raises:
        RuntimeError: ``required``, and there is no extension; the message ends with the compiler's.
    """
    found = status()
    if required and found.module is None:
        raise RuntimeError(f"stein_kernels: the C++ kernels are not available: {found.reason}")
    return found.module


def status() -> Extension:
    """What :func:`load` found, searching first where nobody has."""
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                _found = _search()
    return _found


def cuda_status(*, build: bool) -> Extension:
    """The library of the CUDA kernels; ``build`` compiles it where it is nowhere."""
    if not build:
        with _lock:
            if not _found_cuda:
                _remember_cuda(_search_cuda(build=False), build=False)
            return _found_cuda.get(True, _found_cuda[False])
    with _cuda_build:
        if True not in _found_cuda:
            found = _search_cuda(build=True)
            with _lock:
                _remember_cuda(found, build=True)
        return _found_cuda[True]


def _remember_cuda(found: Extension, build: bool) -> None:
    """That a build was allowed, or not needed, is final."""
    _found_cuda.setdefault(False, found)
    if build or found.module is not None:
        _found_cuda[True] = found


def csrc_directory() -> Path | None:
    """The C++ sources: inside the package when installed, beside it in a source tree."""
    package = Path(__file__).parent
    for directory in (package / "_csrc", package.parent / "csrc"):
        if (directory / "module.cpp").exists():
            return directory
    return None


def _search() -> Extension:
    try:
        return _installed()
    except _Unavailable as closed:
        not_installed = str(closed)
    if os.environ.get("STEIN_KERNELS_JIT", "1") == "0":
        return Extension(None, "none", f"{not_installed}, and STEIN_KERNELS_JIT=0 forbids a build")
    try:
        return _cached_or_built(not_installed)
    except _Unavailable as closed:
        reason = f"{not_installed}, and the build on first use failed: {closed}"
    warnings.warn(
        f"stein_kernels runs without its C++ kernels, on slower torch ones: {reason}\n"
        "(STEIN_KERNELS_JIT=0 skips the build and this warning)",
        RuntimeWarning,
        stacklevel=2,
    )
    return Extension(None, "none", reason)


def _search_cuda(build: bool) -> Extension:
    try:
        return _installed("cuda")
    except _Unavailable as closed:
        not_installed = str(closed)
    if os.environ.get("STEIN_KERNELS_JIT", "1") == "0":
        return Extension(None, "none", f"{not_installed}, and STEIN_KERNELS_JIT=0 forbids a build")
    try:
        return _cached_or_built(not_installed, "cuda", build)
    except _Unavailable as closed:
        return Extension(None, "none", f"{not_installed}; {closed}")


# --- the installed library -----------------------------------------------------------------------


def _module_name(kind: str) -> str:
    return f"stein_kernels.{_build.NAMES[kind]}"


def _installed(kind: str = "cpu") -> Extension:
    spec = importlib.util.find_spec(_module_name(kind))
    if spec is None or spec.origin is None:
        raise _Unavailable("no extension is installed")
    path = Path(spec.origin)
    _check_build(path, kind)
    try:
        module = importlib.import_module(_module_name(kind))
    except ImportError as error:  # a missing symbol or shared library
        raise _Unavailable(f"the installed extension does not load ({error})") from error
    return Extension(module, "installed", f"installed as {path}")


def _check_build(path: Path, kind: str = "cpu") -> None:
    """Refuse a library of another torch or of other sources before it is loaded.

    The kernels register themselves while the library loads, and an ABI mismatch may show only as a
    crash, so the build's identity is read from the file.
    """
    match = _BUILD_ID.search(path.read_bytes())
    if match is None:
        raise _Unavailable(f"{path} is not a build of stein_kernels")
    built_for, source = (group.decode() for group in match.groups())
    if built_for != str(torch.__version__):
        raise _Unavailable(
            f"the installed extension was built for torch {built_for}, this is {torch.__version__}"
        )
    csrc = csrc_directory()
    if csrc is not None and source != _build.source_hash(csrc, kind):
        raise _Unavailable("the installed extension was built from other sources than csrc")


# --- the library in the cache --------------------------------------------------------------------


def _cached_or_built(why: str, kind: str = "cpu", build: bool = True) -> Extension:
    csrc = csrc_directory()
    if csrc is None:
        raise _Unavailable("the C++ sources are not installed")
    directory = cache_directory(csrc, kind)
    library = directory / f"{_build.NAMES[kind]}.so"
    origin = "cache"
    if not library.exists():
        if not build:
            raise _Unavailable("use_backend('cuda') builds the CUDA kernels, in minutes")
        _check_tools(kind)
        with _exclusive(directory):  # another process may have built it meanwhile
            if not library.exists():
                _logger.warning(
                    "stein_kernels: %s; building the %s kernels once into %s",
                    *(why, "C++" if kind == "cpu" else "CUDA", directory),
                )
                try:
                    _build_into(directory, csrc, library, kind)
                except OSError as error:  # a full disk, a cache that turned read-only
                    raise _Unavailable(str(error)) from error
                origin = "built now"
    return Extension(_import_library(library, kind), origin, f"built on first use: {library}")


def runs_on(built: str, capability: tuple[int, int]) -> bool:
    """Whether code of these architectures runs on a device: the same major version and no newer a
    minor one, or PTX of an older device. Names that are no numbers are taken to fit."""
    for name in built.replace(";", " ").split():
        number, ptx = name.removesuffix("+PTX"), name.endswith("+PTX")
        exact = number.endswith("a")  # "f" is of a family: all of its major version from here on
        try:
            major, minor = (int(part) for part in number.rstrip("af").split("."))
        except ValueError:
            return True
        older = (major, minor) <= capability and (ptx or major == capability[0])
        if (major, minor) == capability or (older and not exact):
            return True
    return False


def cache_directory(csrc: Path, kind: str = "cpu") -> Path:
    """Where the build of these sources for this torch and this Python lives."""
    root = os.environ.get("STEIN_KERNELS_CACHE")
    if root is None:
        home = os.path.expanduser("~")
        if home == "~":
            raise _Unavailable("no home directory; set STEIN_KERNELS_CACHE to a writable one")
        root = os.path.join(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache", "stein_kernels")
    abi = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
    digest = _build.source_hash(csrc, kind)
    if kind == "cuda":  # a build for other devices is another build
        digest += "-sm" + "".join(
            each if each.isalnum() else "_" for each in _build.architectures()
        )
    return Path(root, f"torch{torch.__version__}-{abi}-{digest}").absolute()


def _tool_path() -> str:
    """PATH with this Python's scripts first: a virtual environment need not be activated."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def _check_tools(kind: str) -> None:
    if os.name != "posix" or not sys.executable:
        raise _Unavailable("building on first use needs a POSIX system and a Python executable")
    command = _build.compiler().split()
    if not command or shutil.which(command[0]) is None:
        raise _Unavailable(f"no C++ compiler: {_build.compiler()!r} is not on the PATH")
    if shutil.which("ninja", path=_tool_path()) is None:
        raise _Unavailable("ninja is not installed (pip install ninja)")
    missing = _build.why_no_cuda() if kind == "cuda" else None
    if missing is not None:
        raise _Unavailable(missing)


@contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    """One builder at a time. The kernel drops a flock with its process, so none is ever stale."""
    import fcntl

    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = open(directory / "build.lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise _Unavailable(f"the cache is not writable ({error})") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build_into(directory: Path, csrc: Path, library: Path, kind: str) -> None:
    """Compile in a fresh process, then move the library into place: it is whole or not there."""
    work, log = directory / "build", directory / "build.log"
    shutil.rmtree(work, ignore_errors=True)  # objects and torch's own lock of a killed build
    work.mkdir()
    script = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-c", script, _build.__file__, str(csrc), str(work), kind]
    environment = {**os.environ, "PATH": _tool_path()}
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    log.write_text(done.stdout)
    if done.returncode != 0 or not (work / library.name).exists():
        raise _Unavailable(f"{_last_lines(done.stdout)}\n(whole log: {log})")
    os.replace(work / library.name, library)
    shutil.rmtree(work, ignore_errors=True)


def _last_lines(log: str, count: int = 6) -> str:
    """The compiler's own errors where there are any, else the end of the log."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b:", line)]
    return "\n".join((errors or lines)[:count] if errors else lines[-count:])


def _import_library(library: Path, kind: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_module_name(kind), library)
    if spec is None or spec.loader is None:
        raise _Unavailable(f"{library} is not a Python extension")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise _Unavailable(f"{library} does not load ({error}); remove it to rebuild") from error
    sys.modules[_module_name(kind)] = module
    return module
