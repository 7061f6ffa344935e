"""``python -m stein_kernels.triton.aot``: what every Triton kernel takes, compiled without a GPU.

Each module of this package lists in ``specialisations()`` what its launches can reach. A pointer
that may be unaligned is compiled with and without the hint of 16 bytes, since the launcher hints
what it finds aligned. The compiled code tells the registers and the stack of a thread (a stack
means that registers were spilled), the shared memory of a block, the widest matrix instruction, and
float64 instructions where there is no float64 data. ``--write`` keeps the rows in resources.json,
so that a change of any is a change of that file; ``--check`` compares.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from stein_kernels.triton.specialisation import Specialisation

TABLE = Path(__file__).with_name("resources.json")
ARCHITECTURES = (80, 90, 100)
REGISTERS = 255  # of a thread
# Shared memory of a block. sm_80 has 163 KB: its limit leaves room for what the driver keeps.
SHARED = {80: 160 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# The widest first: a kernel may use several.
INSTRUCTIONS = {
    "tcgen05": r"\btcgen05\.mma",
    "wgmma": r"\bwgmma\.mma_async",
    "mma.sync": r"\bmma\.sync",
    "fma": r"\bfma\.rn",
}
MATRIX = ("tcgen05", "wgmma", "mma.sync")


class Row(NamedTuple):
    """What one specialisation takes on one architecture."""

    kernel: str
    arch: int
    registers: int
    stack: int  # bytes of a thread
    shared: int  # bytes of a block
    instruction: str | None
    float64: int  # instructions, in kernels without float64 data; 0 in others


class Variant(NamedTuple):
    """A specialisation with the pointers that the launcher found aligned."""

    name: str
    specialisation: Specialisation
    hints: tuple[str, ...]


def modules() -> Iterator[Any]:
    """Modules of this package that list specialisations."""
    package = importlib.import_module("stein_kernels.triton")
    for found in pkgutil.iter_modules(package.__path__):
        if found.name != "aot":
            module = importlib.import_module(f"{package.__name__}.{found.name}")
            if hasattr(module, "specialisations"):
                yield module


@functools.cache
def variants() -> tuple[Variant, ...]:
    """Everything to compile, each once; ValueError where two differ by more than their name."""
    found: dict[str, Variant] = {}
    compiled = set()
    for module in modules():
        for specialisation in module.specialisations():
            for variant in _hinted(specialisation):
                key = _identity(variant)
                if key in compiled:
                    continue
                if variant.name in found:
                    raise ValueError(f"two specialisations are called {variant.name}")
                compiled.add(key)
                found[variant.name] = variant
    return tuple(found[name] for name in sorted(found))


def _hinted(specialisation: Specialisation) -> Iterator[Variant]:
    """With every pointer hinted that the launcher may hint, and with those that always are."""
    _refuse_unlisted(specialisation)
    free = {
        parameter.name: not (
            parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
        )
        for parameter in specialisation.kernel.params
    }
    pointers = [name for name, kind in specialisation.arguments.items() if kind.startswith("*")]
    hintable = tuple(name for name in pointers if free[name])
    always = tuple(name for name in hintable if name in specialisation.aligned)
    yield Variant(specialisation.name, specialisation, hintable)
    if always != hintable:
        name = specialisation.name
        named = "unaligned" in name
        yield Variant(name if named else f"{name[:-1]},unaligned]", specialisation, always)


def _refuse_unlisted(specialisation: Specialisation) -> None:
    """ValueError where the launcher could compile what the list does not name."""
    arguments, constants = specialisation.arguments, specialisation.constants
    named = {*arguments, *constants}
    if named != set(specialisation.kernel.arg_names) or len(named) < len(arguments):
        differing = sorted(named ^ set(specialisation.kernel.arg_names))
        raise ValueError(f"{specialisation.name}: arguments and constants differ in {differing}")
    for parameter in specialisation.kernel.params:
        integer = arguments.get(parameter.name, "").startswith(("i", "u"))
        if integer and not parameter.do_not_specialize:
            raise ValueError(
                f"{specialisation.name}: the integer {parameter.name} is specialised on its value; "
                "name it in do_not_specialize"
            )


def _identity(variant: Variant) -> tuple[Any, ...]:
    """All that the compiled code depends on."""
    s = variant.specialisation
    return (
        *(s.kernel.__module__, s.kernel.__name__, tuple(s.arguments.items())),
        *(tuple(sorted(s.constants.items())), variant.hints, s.num_warps, s.num_stages, s.maxnreg),
    )


def measure(name: str, arch: int) -> Row:
    """Compile one variant for one architecture; Triton keeps the result in TRITON_CACHE_DIR."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variant = next(one for one in variants() if one.name == name)
    s = variant.specialisation
    names = s.kernel.arg_names
    source = ASTSource(
        s.kernel,
        {argument: s.arguments.get(argument, "constexpr") for argument in names},
        constexprs={(names.index(argument),): value for argument, value in s.constants.items()},
        attrs={(names.index(hint),): [["tt.divisibility", 16]] for hint in variant.hints},
    )
    options = {
        "num_warps": s.num_warps,
        "num_stages": s.num_stages,
        "maxnreg": s.maxnreg,
        "enable_fp_fusion": True,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, stack = _usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return Row(
        kernel=name,
        arch=arch,
        registers=registers,
        stack=stack,
        shared=compiled.metadata.shared,
        instruction=next((key for key, code in INSTRUCTIONS.items() if re.search(code, ptx)), None),
        float64=0 if _wide(s) else len(re.findall(r"^\s.*\.f64\b", ptx, re.MULTILINE)),
    )


def _wide(specialisation: Specialisation) -> bool:
    """Whether there is float64 data."""
    return any("fp64" in kind for kind in specialisation.arguments.values())


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump names no registers: {done.stdout}")
    return int(found[1]), int(found[2])


def measure_all(names: list[str], architectures: list[int], jobs: int) -> list[Row]:
    """Rows sorted by kernel and architecture, compiled by ``jobs`` processes."""
    wanted = [(name, arch) for name in names for arch in architectures]
    if jobs == 1:
        return [measure(*one) for one in wanted]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(measure, *zip(*wanted, strict=True))) if wanted else []


def faults(row: Row, specialisation: Specialisation) -> list[str]:
    """What is wrong with a row, whatever the version of Triton.

    A product that must be exact is an fma, or in float64 a matrix instruction, which is as exact.
    """
    wanted, found = specialisation.instruction, []
    exact = ("fma", "mma.sync") if _wide(specialisation) else ("fma",)
    if row.stack:
        found.append(f"spills registers to {row.stack} bytes of stack")
    if row.registers > REGISTERS:
        found.append(f"takes {row.registers} registers of {REGISTERS}")
    if row.shared > SHARED.get(row.arch, SHARED[100]):
        found.append(f"takes {row.shared} bytes of shared memory")
    if row.float64:
        found.append(f"has {row.float64} float64 instructions")
    if wanted == "mma" and row.instruction not in MATRIX:
        found.append(f"has no matrix instruction, but {row.instruction}")
    if wanted == "fma" and row.instruction not in exact:
        found.append(f"has {row.instruction} in the place of fma")
    return [f"{row.kernel} on sm_{row.arch} {fault}" for fault in found]


def read(path: Path = TABLE) -> tuple[str, list[Row]]:
    """Triton's version and the rows of a table."""
    content = json.loads(path.read_text())
    return content["triton"], [Row(*row) for row in content["rows"]]


def write(version: str, rows: list[Row], path: Path = TABLE) -> None:
    """One row a line, sorted."""
    lines = ",\n".join("  " + json.dumps(row) for row in sorted(rows))
    columns = json.dumps(Row._fields)
    path.write_text(
        f'{{\n"triton": {json.dumps(version)},\n"columns": {columns},\n"rows": [\n{lines}\n]\n}}\n'
    )


def differences(old: list[Row], new: list[Row]) -> list[str]:
    """Rows that are gone (-), are new or have changed (+), in order."""
    lines = [(row, "-") for row in set(old) - set(new)] + [
        (row, "+") for row in set(new) - set(old)
    ]
    ordered = sorted(lines, key=lambda line: (line[0].kernel, line[0].arch, line[1] == "+"))
    return [f"{sign} {json.dumps(row)}" for row, sign in ordered]


def render(rows: list[Row]) -> str:
    """The rows for a person."""
    width = max((len(row.kernel) for row in rows), default=6)
    lines = [f"{'kernel':<{width}}  arch  regs stack  shared  instruction  f64"]
    for row in rows:
        lines.append(
            f"{row.kernel:<{width}}  sm_{row.arch:<3}{row.registers:>4}{row.stack:>6}"
            f"{row.shared:>8}  {row.instruction or '-':<11}{row.float64:>5}"
        )
    return "\n".join(lines)


def _complaints(rows: list[Row], version: str, selected: list[str]) -> Iterator[str]:
    """What ``--check`` finds, a line each."""
    known = {variant.name: variant.specialisation for variant in variants()}
    for row in rows:
        yield from faults(row, known[row.kernel])
    if not TABLE.exists():
        yield f"there is no {TABLE.name}: make it with --write"
        return
    written, table = read()
    if written != version:
        note = f"{TABLE.name} is of Triton {written}, this is {version}: only the limits were held"
        print(note, file=sys.stderr)
        return
    architectures = {row.arch for row in rows}
    compared = [
        row
        for row in table
        if row.arch in architectures and (row.kernel in selected or row.kernel not in known)
    ]
    yield from differences(compared, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m stein_kernels.triton.aot", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--kernel", default="", metavar="REGEX", help="only kernels with this name")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", action="store_true", help="one JSON object a line and row")
    doing = parser.add_mutually_exclusive_group()
    doing.add_argument("--write", action="store_true", help=f"keep the rows in {TABLE.name}")
    doing.add_argument("--check", action="store_true", help="exit 1 where rows differ or exceed")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler: unset it")
    if options.write and (options.kernel or sorted(options.arch) != sorted(ARCHITECTURES)):
        parser.error("--write keeps every row: leave --kernel and --arch out")
    import triton

    selected = [one.name for one in variants() if re.search(options.kernel, one.name)]
    rows = measure_all(selected, sorted(set(options.arch)), options.jobs)
    shown = "\n".join(json.dumps(row._asdict()) for row in rows) if options.json else render(rows)
    print(shown, flush=True)
    if options.write:
        write(triton.__version__, rows)
    complaints = list(_complaints(rows, triton.__version__, selected)) if options.check else []
    print("\n".join(complaints), end="\n" if complaints else "", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
