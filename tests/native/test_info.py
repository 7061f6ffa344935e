"""Asking for a backend, and `python -m stein_kernels.info`."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import timeit
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from typing_extensions import assert_type  # torch brings it

from stein_kernels import _backends, _extension, info, svgd_direction, use_backend

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


# --- use_backend ---------------------------------------------------------------------------------


def test_unknown_backend_lists_the_names():
    with pytest.raises(ValueError, match="'auto', 'cpu', 'cuda', 'triton', 'reference', got 'gpu'"):
        use_backend("gpu")


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_unavailable_backend_is_refused_on_entry(name, monkeypatch):
    no = _backends.Availability(False, "it is raining")
    monkeypatch.setitem(_backends.PROBES, name, lambda: no)
    with pytest.raises(RuntimeError, match=f"'{name}'.*it is raining"), use_backend(name):
        pytest.fail("entered")
    assert _backends.active_backend() == "auto"


@pytest.mark.parametrize(
    ("kilobytes", "built", "refused"),
    [
        (99, "9.0", "160 KB of shared memory in a block, GPU has 99"),
        (163, "8.0;9.0", None),
        (227, "9.0a", None),
        (227, "8.0;10.0+PTX", "it was built for compute capability 8.0;10.0+PTX, GPU has 9.0"),
    ],
)
def test_cuda_kernels_ask_for_a_data_centre_gpu_that_they_were_built_for(
    monkeypatch, kilobytes, built, refused
):
    device = SimpleNamespace(
        name="GPU", major=9, minor=0, shared_memory_per_block_optin=kilobytes * 1024
    )
    library = SimpleNamespace(build_info=lambda: {"architectures": built})
    there = _extension.Extension(library, "installed", "installed")  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(_extension, "cuda_status", lambda build: there)
    available, reason = _backends.availability("cuda")
    assert available == (refused is None)
    assert available or refused in reason


def test_blocks_nest_and_end_with_an_exception():
    block = use_backend("reference")
    with block:
        with use_backend("auto"), block:
            assert _backends.active_backend() == "reference"
        assert _backends.active_backend() == "reference"
    with pytest.raises(ZeroDivisionError), block:
        raise ZeroDivisionError
    assert _backends.active_backend() == "auto"


def test_decorator_covers_the_call():
    @use_backend("reference")
    def inside() -> str:
        return _backends.active_backend()

    assert inside() == "reference"
    assert inside.__name__ == "inside"
    assert _backends.active_backend() == "auto"


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "triton", "reference"])
def test_alone_it_changes_nothing_and_says_so(name):
    with pytest.warns(RuntimeWarning, match=rf"use_backend\('{name}'\) alone changes.*with use"):
        use_backend(name)
    assert _backends.active_backend() == "auto"


def test_a_decorated_function_waits_for_its_backend(monkeypatch):
    """Until it is called: a module of such functions is imported everywhere."""
    no = _backends.Availability(False, "it is raining")
    monkeypatch.setitem(_backends.PROBES, "triton", lambda: no)

    @use_backend("triton")
    def inside() -> None:
        pytest.fail("entered")

    with pytest.raises(RuntimeError, match=r"'triton'.*it is raining"):
        inside()
    assert _backends.active_backend() == "auto"


def test_decorator_refuses_what_runs_later():
    async def later():
        return None

    def items():
        yield 1

    async def later_items():
        yield 1

    for function in (later, items, later_items):
        with pytest.raises(TypeError, match=function.__name__):
            use_backend("reference")(function)


def test_calls_of_a_decorated_function_may_overlap():
    inside = threading.Barrier(2, timeout=10)

    @use_backend("reference")
    def meet() -> str:
        inside.wait()
        return _backends.active_backend()

    def call(_: int) -> tuple[str, str]:
        return meet(), _backends.active_backend()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(call, range(2))) == [("reference", "auto")] * 2


def test_one_object_in_threads_and_tasks_at_once():
    """Entered and left in turns, not one inside the other."""
    block, turns = use_backend("reference"), [threading.Event() for _ in range(3)]
    seen: list[str] = []

    def first() -> None:
        with block:
            turns[0].set()
            assert turns[1].wait(10)
        seen.append(_backends.active_backend())
        turns[2].set()

    def second() -> None:
        assert turns[0].wait(10)
        with block:
            turns[1].set()
            assert turns[2].wait(10)
            seen.append(_backends.active_backend())
        seen.append(_backends.active_backend())

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result()
    assert seen == ["auto", "reference", "auto"]

    async def task(waits: int) -> list[str]:
        with block:
            for _ in range(waits):
                await asyncio.sleep(0)
            inside = _backends.active_backend()
        return [inside, _backends.active_backend()]

    async def both() -> list[list[str]]:
        return list(await asyncio.gather(task(1), task(2)))

    assert asyncio.run(both()) == [["reference", "auto"]] * 2


def test_a_checkpointed_function_is_decorated():
    """As the docstring says: what is computed again in the backward pass is outside the block."""
    seen: list[str] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(_backends.active_backend())
        return x.square()

    for inner in (function, use_backend("reference")(function)):
        with use_backend("reference"):
            y = checkpoint(inner, X.clone().requires_grad_(), use_reentrant=False)
        assert isinstance(y, torch.Tensor)
        y.sum().backward()
    assert seen == ["reference", "auto", "reference", "reference"]


def test_threads_and_tasks_have_their_own():
    seen = []

    async def task(name: str) -> str:
        with use_backend(name):
            await asyncio.sleep(0)
            return _backends.active_backend()

    async def both() -> list[str]:
        return list(await asyncio.gather(task("reference"), task("auto")))

    assert asyncio.run(both()) == ["reference", "auto"]
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(_backends.active_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]
    assert _backends.active_backend() == _backends._traced.name == "auto"


def test_request_is_seen_by_compiled_code():
    """A change of the request must recompile, and neither form may break the graph."""

    @torch.compile(fullgraph=True, backend="eager")
    def sign(x):
        return x + 1 if _backends.active_backend() == "auto" else x - 1

    @torch.compile(fullgraph=True, backend="eager")
    def enters(x):
        with use_backend("reference"):
            return x + 1 if _backends.active_backend() == "auto" else x - 1

    zero = torch.zeros(())
    assert sign(zero) == 1
    with use_backend("reference"):
        assert sign(zero) == -1
    assert sign(zero) == 1
    assert enters(zero) == -1
    assert _backends.active_backend() == "auto"


def test_a_decorated_function_compiles_and_may_be_called_by_compiled_code():
    @use_backend("reference")
    def sign(x: torch.Tensor) -> torch.Tensor:
        by_reference = _backends.active_backend() == "reference"
        return svgd_direction(x, -x) * 0 + (1 if by_reference else -1)

    for function in (sign, lambda x: sign(x)):
        assert (torch.compile(function, fullgraph=True, backend="eager")(X) == 1).all()
    assert _backends.active_backend() == _backends._traced.name == "auto"


def test_a_decorated_function_keeps_its_signature():
    """For a type checker too: assert_type does nothing here, and fails where pyright reads it."""

    @use_backend("reference")
    def first(x: torch.Tensor, places: int = 3) -> str:
        return str(round(float(x[0, 0]), places))

    assert_type(first(X), str)
    assert list(inspect.signature(first).parameters) == ["x", "places"]


# --- what runs -----------------------------------------------------------------------------------


def test_named_cpu_backend_refuses_other_devices():
    with use_backend("cpu"), pytest.raises(RuntimeError, match="takes tensors on cpu, got cuda"):
        _backends.resolve("svgd_direction", "cuda")


def test_auto_takes_the_extension_or_says_why_not(monkeypatch):
    assert _backends.resolve("svgd_direction", "cpu").backend == "cpu"
    missing = _extension.Extension(None, "none", "no compiler")
    monkeypatch.setattr(_extension, "_found", missing)
    choice = _backends.resolve("svgd_direction", torch.device("cpu"))
    assert choice == ("reference", "cpu: no compiler")
    assert _backends.resolve("svgd_direction", "meta").backend == "reference"


def test_named_backend_without_extension_is_an_error(monkeypatch):
    monkeypatch.setattr(_extension, "_found", _extension.Extension(None, "none", "no compiler"))
    with pytest.raises(RuntimeError, match="no compiler"), use_backend("cpu"):
        pytest.fail("entered")


def test_named_cpu_backend_runs_the_compiled_kernel():
    with use_backend("cpu"):
        compiled = svgd_direction(X, -X)
    with use_backend("reference"):
        torch.testing.assert_close(compiled, svgd_direction(X, -X))


def test_asking_costs_nearly_nothing():
    """Each op call asks once; measured 0.5 us, against 10 us for the smallest torch op."""
    _backends.require("svgd_direction", X)
    calls = 10_000
    seconds = min(
        timeit.repeat(lambda: _backends.require("svgd_direction", X), number=calls, repeat=7)
    )
    assert seconds / calls < 2e-6


# --- the report ----------------------------------------------------------------------------------


def test_report_names_every_backend_and_op(capsys):
    assert info.main(["--shape", "64,100,50"]) == 0
    text = capsys.readouterr().out
    for name in [*_backends.PROBES, *info.OPS, "codes", "instruction sets"]:
        assert name in text


def test_report_as_json(capsys):
    assert info.main(["--json", "--shape", "100,200000", "--dtype", "float64"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == str(torch.__version__)
    assert facts["problem"] == {"shape": [100, 200_000], "dtype": "float64", "device": "cpu"}
    assert facts["regime"]["name"] == "weights"
    assert facts["ops"]["svgd_direction"]["backend"] == "cpu"
    assert facts["built"]["torch"] == str(torch.__version__)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((100, 200_000), "weights"),
        ((64, 100, 50), "codes"),
        ((10_000, 16), "samplers"),
        ((2_000, 50), None),
    ],
)
def test_regimes(shape, name):
    found = info.regime(shape)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "7"], "expected M,d or batch,M,d, got '7'"),
        (["--shape", "a,b"], "expected M,d or batch,M,d, got 'a,b'"),
        (["--shape", "3,-1"], "expected M,d or batch,M,d, got '3,-1'"),
        (["--device", "abacus"], "not a torch device: 'abacus'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_report_refuses_what_it_does_not_know(capsys, arguments, message):
    with pytest.raises(SystemExit) as refused:
        info.main(arguments)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_report_without_the_extension(capsys, monkeypatch):
    monkeypatch.setattr(_extension, "_found", _extension.Extension(None, "none", "no compiler"))
    assert info.main([]) == 0
    text = capsys.readouterr().out
    assert "not loaded" in text
    assert "cpu: no compiler" in text
