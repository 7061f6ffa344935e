"""Builds the C++ kernels into the wheel where that is possible; the rest is in pyproject.toml.

STEIN_KERNELS_BUILD chooses: "auto" (default) builds the CPU kernels where torch and a C++ compiler
are there, and otherwise installs pure Python, which builds them on first use; "cpu" fails instead;
"cuda" builds the CUDA kernels too, or fails; "none" never builds. Use --no-build-isolation, since
pip's isolated builds do not see torch.
"""

from __future__ import annotations

import os
import runpy
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from setuptools import find_namespace_packages, find_packages, setup

ROOT = Path(__file__).resolve().parent
CSRC, GENERATED = ROOT / "csrc", ROOT / "build" / "generated"
MODES = ("auto", "cpu", "cuda", "none")
MODE = os.environ.get("STEIN_KERNELS_BUILD", "auto")

kernels = SimpleNamespace(**runpy.run_path(str(ROOT / "stein_kernels" / "_build.py")))


def why_not() -> str | None:
    """None where the extension can be built, otherwise the reason."""
    if MODE == "none":
        return "STEIN_KERNELS_BUILD=none"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not importable in this build (pip needs --no-build-isolation)"
    return kernels.why_no_compiler() or (kernels.why_no_cuda() if MODE == "cuda" else None)


def extension() -> dict[str, Any]:
    """The arguments of setup() that build stein_kernels._C, and _CUDA where that was asked for."""
    import torch

    kinds = ("cpu", "cuda") if MODE == "cuda" else ("cpu",)
    if MODE == "cuda":
        kernels.use_cuda_toolkit()
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class BuildKernels(BuildExtension):
        """In mode "auto" a failed compilation leaves a pure-Python package."""

        def run(self) -> None:
            for kind in kinds:
                kernels.write_header(GENERATED / kind, CSRC, str(torch.__version__), kind)
            try:
                super().run()
            except Exception as error:
                if MODE != "auto":
                    raise
                self.extensions = []
                say(f"the compilation failed ({error})")

    def module(kind: str) -> Any:
        return {"cpu": CppExtension, "cuda": CUDAExtension}[kind](
            f"stein_kernels.{kernels.NAMES[kind]}",
            [str(path.relative_to(ROOT)) for path in kernels.sources(CSRC, kind)],
            include_dirs=[str(CSRC), str(GENERATED / kind)],
            extra_compile_args=kernels.compile_flags(),
            extra_link_args=kernels.OPENMP,
        )

    # ninja, which compiles in parallel, is beside the Python of an environment not activated
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    modules = [module(kind) for kind in kinds]
    return {"ext_modules": modules, "cmdclass": {"build_ext": BuildKernels}}


def say(reason: str) -> None:
    print(f"stein-kernels: pure-Python build: {reason}", file=sys.stderr)


if MODE not in MODES:
    raise SystemExit(f"STEIN_KERNELS_BUILD: expected one of {', '.join(MODES)}, got {MODE!r}")
obstacle = why_not()
if obstacle is not None:
    if MODE in ("cpu", "cuda"):
        raise SystemExit(f"STEIN_KERNELS_BUILD={MODE}: {obstacle}")
    say(obstacle)

# csrc travels inside the package, for the build on first use: every folder of it is a package
sub = [f"stein_kernels._csrc.{name}" for name in find_namespace_packages(str(CSRC))]

setup(
    packages=[*find_packages(include=["stein_kernels*", "steinvae*"]), "stein_kernels._csrc", *sub],
    package_dir={"stein_kernels._csrc": "csrc"},
    package_data={"": ["py.typed", "*.cpp", "*.h", "*.cu*"], "stein_kernels": ["triton/*.json"]},
    **(extension() if obstacle is None else {}),
)
