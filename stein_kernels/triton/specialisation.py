"""What a launcher may compile: one record for each specialisation of a kernel."""

from __future__ import annotations

from typing import Any, NamedTuple


class Specialisation(NamedTuple):
    """A kernel with everything that Triton compiles into it."""

    kernel: Any  # the @triton.jit function
    name: str  # "direction[d=64,ieee,fp32]"
    arguments: dict[str, str]  # run-time argument -> "*fp32", "i32", "fp32", ... in order
    constants: dict[str, Any]  # tl.constexpr arguments
    aligned: tuple[str, ...]  # pointers known to be 16-byte aligned
    num_warps: int
    num_stages: int
    instruction: str | None = None  # what the PTX must show: "mma" or "fma"
    maxnreg: int | None = None  # registers of a thread; the assembler's choice where None
