"""Triton kernels compiled ahead of time: no spill, within limits, as in the committed table.

Nothing here runs a kernel: that is for tests/interpret, and for tests/gpu where a device is.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install triton", allow_module_level=True)

from stein_kernels.triton import aot
from stein_kernels.triton.aot import Row
from stein_kernels.triton.specialisation import Specialisation

ROOT = Path(__file__).resolve().parents[2]


def compiler(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that no test has put Triton's interpreter into."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "stein_kernels.triton.aot", *arguments],
        env={**environment, "PYTHONPATH": str(ROOT), "STEIN_KERNELS_JIT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.aot
@pytest.mark.slow
def test_every_kernel_on_every_architecture():
    done = compiler("--check", "--json")
    print(done.stderr)  # names the version where only the limits could be held
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert len(rows) == len(aot.variants()) * len(aot.ARCHITECTURES)
    assert all(row["stack"] == 0 and row["float64"] == 0 for row in rows)


def test_the_table_has_every_kernel():
    """A kernel that is added or renamed changes the table, whatever the version of Triton."""
    _, rows = aot.read()
    named = {variant.name for variant in aot.variants()}
    assert {(row.kernel, row.arch) for row in rows} == {
        (name, arch) for name in named for arch in aot.ARCHITECTURES
    }


def test_every_kernel_of_the_package_is_compiled():
    """A kernel is a jitted function that asks for its program; tiles.py has device functions."""
    compiled = {variant.specialisation.kernel.__name__ for variant in aot.variants()}
    for path in Path(aot.__file__).parent.glob("*.py"):
        if path.stem == "tiles" or ".program_id(" not in path.read_text():
            continue
        module = importlib.import_module(f"stein_kernels.triton.{path.stem}")
        written = {name for name in vars(module) if re.fullmatch(r"[a-z]\w*_kernel", name)}
        assert written
        assert written <= compiled, path.stem


def kernel(*names: str, **flags: tuple[str, ...]) -> SimpleNamespace:
    """A stand-in for a jitted function with these arguments."""
    parameters = [
        SimpleNamespace(
            name=name,
            do_not_specialize=name in flags.get("fixed", ()),
            do_not_specialize_on_alignment=name in flags.get("unhinted", ()),
        )
        for name in names
    ]
    return SimpleNamespace(
        params=parameters, arg_names=list(names), __module__="m", __name__="kernel"
    )


def specialisation(kernel: SimpleNamespace, **changes) -> Specialisation:
    given = {
        "arguments": {"x": "*fp32", "out": "*fp32", "count": "i32"},
        "constants": {"TILE": 64},
        "aligned": ("out",),
        "instruction": None,
    }
    given |= changes
    return Specialisation(kernel, "k[fp32]", **given, num_warps=4, num_stages=1)


def test_a_pointer_that_may_be_unaligned_is_compiled_twice():
    one = specialisation(kernel("x", "out", "count", "TILE", fixed=("count",)))
    found = {variant.name: variant.hints for variant in aot._hinted(one)}
    assert found == {"k[fp32]": ("x", "out"), "k[fp32,unaligned]": ("out",)}


def test_a_pointer_that_is_never_hinted_is_compiled_once():
    one = kernel("x", "out", "count", "TILE", fixed=("count",), unhinted=("x",))
    assert [variant.hints for variant in aot._hinted(specialisation(one))] == [("out",)]


def test_what_the_launcher_could_compile_unlisted_is_refused():
    with pytest.raises(ValueError, match="count is specialised on its value"):
        list(aot._hinted(specialisation(kernel("x", "out", "count", "TILE"))))
    with pytest.raises(ValueError, match=r"differ in \['more'\]"):
        list(aot._hinted(specialisation(kernel("x", "out", "count", "TILE", "more"))))


GOOD = Row("k[fp32]", 80, 128, 0, 1024, "fma", 0)


@pytest.mark.parametrize(
    ("change", "instruction", "fault"),
    [
        ({"stack": 8}, None, "spills registers to 8 bytes"),
        ({"registers": 256}, None, "takes 256 registers"),
        ({"shared": 160 * 1024 + 1}, None, "163841 bytes of shared memory"),
        ({"float64": 1}, None, "1 float64 instructions"),
        ({"instruction": None}, "fma", "None in the place of fma"),
        ({"instruction": "mma.sync"}, "fma", "mma.sync in the place of fma"),
        ({"instruction": "fma"}, "mma", "no matrix instruction, but fma"),
    ],
)
def test_a_row_beyond_its_limits_is_a_fault(change, instruction, fault):
    one = specialisation(kernel("x"), instruction=instruction)
    assert fault in aot.faults(GOOD._replace(**change), one)[0]
    assert not aot.faults(GOOD, one._replace(instruction="fma"))


def test_matrix_instructions_and_more_shared_memory_are_no_fault():
    one = specialisation(kernel("x"), instruction="mma")
    for arch, instruction in ((80, "mma.sync"), (90, "wgmma"), (100, "tcgen05")):
        assert not aot.faults(GOOD._replace(arch=arch, instruction=instruction), one)
    assert not aot.faults(GOOD._replace(arch=90, shared=200_000, instruction="wgmma"), one)
    wide = one._replace(arguments={"x": "*fp64"}, instruction="fma")
    assert not aot.faults(GOOD._replace(instruction="mma.sync"), wide)


def test_a_table_keeps_its_rows_and_shows_what_changed(tmp_path):
    path = tmp_path / "resources.json"
    rows = [GOOD, GOOD._replace(arch=90, instruction=None)]
    aot.write("3.9.0", rows[::-1], path)
    assert aot.read(path) == ("3.9.0", rows)
    changed = [GOOD._replace(registers=130), rows[1]]
    assert aot.differences(rows, rows) == []
    removed, added = aot.differences(rows, changed)
    assert removed == '- ["k[fp32]", 80, 128, 0, 1024, "fma", 0]'
    assert added.startswith('+ ["k[fp32]", 80, 130')


def test_the_interpreter_is_refused():
    command = [sys.executable, "-m", "stein_kernels.triton.aot", "--check"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unset it" in done.stderr
