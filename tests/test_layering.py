"""Who imports whom, how large a file may grow, and what an import drags in."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import stein_kernels

ROOT = Path(__file__).resolve().parents[1]
PYTHON = [
    path
    for folder in ("stein_kernels", "steinvae", "bench", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
NATIVE = sorted(
    path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".h", ".cu", ".cuh"}
)

PARTS = ("direction", "divergence", "gram", "long_pairs", "long_rows", "median", "small_set")
PAIRS = {"_checks", "reference", "gpu.packing"}  # what a flow may be made of

SLICES_ON_CUDA = {"gpu.dispatch", "gpu.routes", "gpu.slices"}

# What each module of stein_kernels may import of stein_kernels. A new module states its place here.
PLACES = {
    "__init__": {"functional", "optim", "_backends"},
    "functional": {"_backends", "_checks", "_ops", "_sharding", "reference"},
    "_sharding": {"_backends", "_slices"},
    "_slices": {"_backends", "_checks", "_slice_ops", "reference"},
    "_slice_ops": {"_checks", "_schemas", "reference"} | SLICES_ON_CUDA,
    "_ops": {"_checks", "_composite", "_schemas", "gpu.dispatch"},
    "_schemas": set(),
    "_composite": {"_checks", "reference"},
    "_checks": {"reference"},
    "_backends": {"_extension"},
    "_extension": {"_build"},
    "_build": set(),
    "reference": set(),
    "gpu/dispatch": {"_backends", "_composite", "_extension", "gpu.flows", "gpu.routes"},
    "gpu/flows": {"_composite", "reference", "gpu.routes", *(f"gpu.{name}" for name in PARTS)},
    "gpu/routes": {"gpu.small_set"},
    "gpu/packing": {"_checks"},
    "gpu/pairs": {"gpu.packing"},
    "gpu/direction": PAIRS | {"gpu.pairs"},
    "gpu/divergence": PAIRS | {"gpu.pairs"},
    "gpu/gram": PAIRS | {"gpu.pairs"},
    "gpu/median": PAIRS,
    "gpu/small_set": PAIRS,
    "gpu/long_pairs": PAIRS | {"gpu.median"},
    "gpu/slices": {"gpu.long_pairs"},
    "gpu/long_rows": PAIRS | {"gpu.median", "gpu.long_pairs"},
    "_optim_ops": {"_schemas", "gpu.dispatch", "gpu.long_rows", "gpu.routes"},
    "optim": {"_backends", "_checks", "_ops", "_optim_ops", "functional"},
    "info": {"", "_backends", "_extension", "gpu.routes"},
    "testing": {"_composite", "_ops", "_schemas", "gpu.flows", "gpu.routes", "reference"},
}
HEAVY = ("triton", "matplotlib", "jsonargparse", "sklearn", "setuptools", "torch._dynamo")


class Import(NamedTuple):
    module: str  # dotted, absolute
    names: tuple[str, ...]  # of `from module import names`; empty for `import module`


def imports(path: Path) -> Iterator[Import]:
    """Every import in a file, inside functions too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield Import(module, tuple(alias.name for alias in node.names))


def modules(found: Import) -> set[str]:
    """The modules that an import may mean: `from a import b` is a.b where b is a module."""
    folder = ROOT.joinpath(*found.module.split("."))
    members = {name for name in found.names if (folder / f"{name}.py").exists()}
    if not found.names or members != set(found.names):
        members.add("")
    return {f"{found.module}.{member}".rstrip(".") for member in members}


def inside(package: str, module: str) -> bool:
    return module == package or module.startswith(package + ".")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def files(folder: str) -> list[Path]:
    return [path for path in PYTHON if relative(path).startswith(folder + "/")]


@pytest.mark.parametrize("path", files("stein_kernels"), ids=relative)
def test_kernel_modules_keep_their_place(path):
    place = path.relative_to(ROOT / "stein_kernels").with_suffix("").as_posix()
    for found in imports(path):
        for module in modules(found):
            assert not any(inside(package, module) for package in ("steinvae", "bench", "tests"))
            if not inside("stein_kernels", module):
                continue
            imported = module.removeprefix("stein_kernels").removeprefix(".")
            if place.startswith("triton/"):
                assert inside("triton", imported), f"{place} imports {module}"
            else:
                assert imported in PLACES[place], f"{place} imports {module}"


def test_reference_is_plain_torch():
    third_party = {
        found.module.split(".")[0] for found in imports(ROOT / "stein_kernels/reference.py")
    }
    assert third_party - {"__future__", "collections", "functools", "math", "typing"} == {"torch"}


@pytest.mark.parametrize("path", files("steinvae"), ids=relative)
def test_training_package_uses_public_kernel_names_only(path):
    for found in imports(path):
        assert not inside("bench", found.module)
        assert not inside("tests", found.module)
        if inside("stein_kernels", found.module):
            assert found.module == "stein_kernels", f"import of {found.module}"
            assert set(found.names) <= {*stein_kernels.__all__, "__version__"}, found.names


@pytest.mark.parametrize("path", files("bench"), ids=relative)
def test_benchmarks_use_no_private_module(path):
    for found in imports(path):
        assert not inside("tests", found.module)
        for module in modules(found):
            if inside("stein_kernels", module) or inside("steinvae", module):
                assert "._" not in module, f"import of {module}"


@pytest.mark.parametrize("path", NATIVE, ids=relative)
def test_native_sources_include_no_python_torch(path):
    """torch/extension.h brings every torch header and the Python API: a minute for each file."""
    text = path.read_text()
    assert "torch/extension.h" not in text
    assert "torch/all.h" not in text
    assert "torch/torch.h" not in text


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE, ROOT / "setup.py"], ids=relative)
def test_files_stay_short(path):
    lines = path.read_text().count("\n")
    limit = 100 if path.name == "setup.py" else 400
    assert lines <= limit


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_functions_stay_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # the signature does not count: a kernel has a pointer on each of its lines
            documented = ast.get_docstring(node) is not None and len(node.body) > 1
            first = node.body[1 if documented else 0]
            code = (node.end_lineno or first.lineno) - first.lineno + 1
            assert code <= 60, f"{node.name} has {code} lines"


# --- fresh processes -----------------------------------------------------------------------------

USE = """
import torch, warnings
import stein_kernels
x = torch.randn(7, 3)
phi = stein_kernels.svgd_direction(x, -x)
assert stein_kernels.optim.SVGDAdam  # no import of its own
with stein_kernels.use_backend("reference"):
    assert torch.allclose(phi, stein_kernels.svgd_direction(x, -x), atol=1e-5)
"""


def succeeds(done) -> None:
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["stein_kernels", "steinvae"])
def test_import_is_light(fresh_python, package):
    """Of our own, beside torch: nothing heavy."""
    succeeds(
        fresh_python(
            f"""
import sys, torch
before = set(sys.modules)
import {package}
dragged_in = (set(sys.modules) - before) & {{*{HEAVY!r}, "torch.utils.cpp_extension"}}
assert not dragged_in, dragged_in
"""
        )
    )


@pytest.mark.parametrize("blocked", ["triton", "numpy", "pybind11", "ninja", "torchvision"])
def test_kernels_work_without_optional_package(fresh_python, blocked):
    block = f"import sys; sys.modules[{blocked!r}] = None\n"
    ignore = ("-W", "ignore:Failed to initialize NumPy")
    succeeds(fresh_python(block + USE, *(ignore if blocked == "numpy" else ())))


def test_kernels_work_without_the_extension(fresh_python):
    """STEIN_KERNELS_JIT=0 and no installed extension: torch kernels, and not a word about it."""
    block = "import sys; sys.modules['stein_kernels._C'] = None\n"
    done = fresh_python(
        block + USE + "from stein_kernels import _extension\nprint(_extension.status().origin)",
        "-W",
        "error",
        STEIN_KERNELS_JIT="0",
    )
    succeeds(done)
    assert done.stdout.strip() == "none"
    assert not done.stderr


@pytest.mark.parametrize("package", ["stein_kernels", "steinvae"])
def test_import_survives_a_broken_torchvision(fresh_python, package, tmp_path):
    """A torchvision built for another torch raises RuntimeError, which few libraries expect."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator does not exist')\n")
    done = fresh_python(f"import {package}", PYTHONPATH=f"{tmp_path}:{ROOT}")
    succeeds(done)


def test_first_call_in_a_fresh_process_may_be_compiled(fresh_python):
    code = """
import torch, stein_kernels
x = torch.randn(7, 3)
step = torch.compile(lambda x: stein_kernels.svgd_direction(x, -x), fullgraph=True, backend="eager")
assert torch.equal(step(x), stein_kernels.svgd_direction(x, -x))
"""
    succeeds(fresh_python(code))


def test_optimised_python_works(fresh_python):
    """python -O strips assert: no check of the packages may hang on one."""
    code = """
import torch, stein_kernels
try:
    stein_kernels.svgd_direction(torch.zeros(3), torch.zeros(3))
except ValueError:
    raise SystemExit(0)
raise SystemExit("a wrong shape was accepted")
"""
    succeeds(fresh_python(code, "-O"))
