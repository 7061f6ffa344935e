"""Where no compiler and no torch are there to build with, pure Python is installed, and works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import stein_kernels
import steinvae
from stein_kernels import _build

ROOT = Path(__file__).resolve().parents[1]
TREE = ("stein_kernels", "steinvae", "csrc", "setup.py", "pyproject.toml", "MANIFEST.in")
TREE += ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt")
PACKAGES = ("stein_kernels", "steinvae")


def setup_py(tree: Path, *arguments: str, prelude: str = "", **environment: str):
    """Run setup.py as pip's build does: by the interpreter, in the tree."""
    code = f"import runpy, sys\n{prelude}\nsys.argv = ['setup.py', *sys.argv[1:]]\n"
    code += "runpy.run_path('setup.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the sources without anything built."""
    copy = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignore)
        else:
            shutil.copy(source, copy / name)
    (copy / "tests").mkdir()  # of which setuptools takes what is named test*.py, and no more
    shutil.copy(__file__, copy / "tests")
    return copy


@pytest.fixture(scope="module")
def wheel(tree) -> Path:
    """A wheel built with no C++: the compiler of this build always fails."""
    done = setup_py(tree, "-q", "bdist_wheel", CXX="/bin/false", STEIN_KERNELS_BUILD="none")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pure-Python build: STEIN_KERNELS_BUILD=none") == 1
    assert "absent from" not in done.stderr  # setuptools, of a folder that is no package
    (path,) = (tree / "dist").glob("*.whl")
    return path


def unpack(wheel: Path, directory: Path) -> None:
    """All that installing a pure wheel does, without touching this environment."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)


def test_pure_wheel_fits_every_python_and_holds_everything(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    expected |= {f"{package}/py.typed" for package in PACKAGES}
    expected |= {
        "stein_kernels/_csrc/" + path.relative_to(ROOT / "csrc").as_posix()
        for path in (ROOT / "csrc").rglob("*")
        if path.is_file()
    }
    assert expected <= names, expected - names
    assert not [name for name in names if name.startswith(("tests", "bench"))]


def test_pure_wheel_works_where_no_compiler_does(wheel, fresh_python, tmp_path):
    unpack(wheel, tmp_path)
    code = f"""
import sys, warnings, torch
sys.modules["stein_kernels._C"] = None  # an editable install of this tree would lend its own
import stein_kernels
from stein_kernels import info
assert stein_kernels.__file__.startswith({str(tmp_path)!r}), stein_kernels.__file__
x = torch.randn(8, 2)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    stein_kernels.svgd_direction(x, -x)
    info.main([])
assert len(warned) == 1, [str(w.message) for w in warned]
"""
    done = fresh_python(
        code,
        PYTHONPATH=str(tmp_path),
        CXX="/bin/false",
        STEIN_KERNELS_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"svgd_direction +reference +cpu: no extension is installed", done.stdout)


def test_sources_are_found_inside_the_installed_package(wheel, fresh_python, tmp_path):
    unpack(wheel, tmp_path)
    code = """
from stein_kernels import _build, _extension
csrc = _extension.csrc_directory()
assert csrc.name == "_csrc", csrc
print(_build.source_hash(csrc))
"""
    installed = fresh_python(code, PYTHONPATH=str(tmp_path))
    assert installed.returncode == 0, installed.stderr
    from stein_kernels import _build

    assert installed.stdout.strip() == _build.source_hash(ROOT / "csrc")


def test_source_distribution_can_be_built_from(tree):
    done = setup_py(tree, "-q", "sdist", STEIN_KERNELS_BUILD="none")
    assert done.returncode == 0, done.stderr
    (path,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in names if name.startswith(("tests/", "bench/"))]
    native = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert native | {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names


def test_setup_without_torch_is_pure_python(tree):
    """pip's isolated build: torch cannot be imported there."""
    done = setup_py(tree, "--name", prelude="sys.modules['torch'] = None")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "stein-kernels"
    assert "torch is not importable in this build" in done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"STEIN_KERNELS_BUILD": "cpu", "CXX": "/bin/false"}, "'/bin/false' does not work"),
        ({"STEIN_KERNELS_BUILD": "cpu", "CXX": "no-such-compiler"}, "is not on the PATH"),
        ({"STEIN_KERNELS_BUILD": "cuda"}, "STEIN_KERNELS_BUILD=cuda: "),
        ({"STEIN_KERNELS_BUILD": "fast"}, "expected one of auto, cpu, cuda, none, got 'fast'"),
    ],
)
def test_setup_refuses_what_it_cannot_do(tree, environment, message):
    done = setup_py(tree, "--name", **environment)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_object_file_has_a_name_of_its_own(kind):
    """setuptools names it by its source without the suffix: x.cpp and x.cu would be one."""
    names = [path.with_suffix("") for path in _build.sources(ROOT / "csrc", kind)]
    assert len(names) == len(set(names)) > 5


def test_one_version_everywhere():
    version = stein_kernels.__version__
    assert steinvae.__version__ == version
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
