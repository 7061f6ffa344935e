"""``python -m bench.gpu --out DIR``: everything that needs a GPU, in under nine minutes.

Facts of the device, the build of the CUDA kernels, the GPU tests, the benchmarks, and, in what time
is left, the kernels under compute-sanitizer. Every phase is a process of its own with its own limit
and its log in DIR: one that fails, hangs or is not there is written down, and the next goes on.
Records go to DIR as they are measured, so nothing is lost to a kill. ``--dry-run`` runs every phase
on a CPU on tiny problems with a host clock; its records say so and are no results.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LEAST = 3.0  # seconds under which no phase is started
GRACE = 8.0  # seconds that a phase out of time has to say how far it came
BUILD = "import stein_kernels\nwith stein_kernels.use_backend('cuda'): pass"
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])
SANITIZERS = ("memcheck_cuda", "racecheck_cuda", "memcheck_triton", "racecheck_triton")
REGIMES = {"weights": 65.0, "codes": 75.0, "samplers": 80.0, "adam": 25.0}
WORKERS = 4  # processes of the tests, where pytest-xdist is there: kernels are compiled in each


class Phase(NamedTuple):
    name: str
    command: tuple[str, ...]
    seconds: float  # at most
    background: bool = False  # runs beside the phases that follow, until one waits for it
    waits_for: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()  # beside that of the run


class Outcome(NamedTuple):
    """A line of phases.jsonl."""

    phase: str
    status: str  # "ok", "failed", "timed out", "absent" or "no time left"
    code: int | None
    seconds: float


class Running(NamedTuple):
    phase: Phase
    process: subprocess.Popen[bytes]
    started: float


def phases(out: Path, dry: bool) -> list[Phase]:
    """The build runs beside the tests of Triton, nothing beside the benchmarks."""
    python = (sys.executable,)
    flags = ("--out", str(out), *(("--dry-run",) if dry else ()))
    facts = Phase("facts", (*python, "-m", "bench.gpu_device", *flags), 45)
    if dry:
        measured = (*python, "-m", "bench.gpu_measure", *flags, "--regime", *REGIMES)
        cases = (*python, "-m", "bench.gpu_cases", "--backend", "reference", "--device", "cpu")
        tests = (*_tests(out, "triton"), "--collect-only")
        listed = [Phase("tests_triton", tests, 60), Phase("cases", cases, 60)]
        return [facts, *listed, Phase("benchmarks", measured, 60)]
    benchmarks = [
        Phase(f"benchmark_{regime}", (*python, *_regime(regime, seconds), *flags), seconds)
        for regime, seconds in REGIMES.items()
    ]
    tests = [
        Phase(
            f"tests_{backend}",
            _tests(out, backend),
            seconds,
            waits_for=("build",) * (backend == "cuda"),
            environment=(("STEIN_KERNELS_TESTED", backend), ("OMP_NUM_THREADS", str(WORKERS))),
        )
        for backend, seconds in (("triton", 134), ("cuda", 100))
    ]
    return [
        *(facts, Phase("build", (*python, "-c", BUILD), 240, background=True)),
        *(*tests, *benchmarks),
        *(_sanitized(*name.split("_"), seconds=90) for name in SANITIZERS),
    ]


def _regime(regime: str, seconds: float) -> tuple[str, ...]:
    """The benchmarks of a regime, which start nothing in the last seconds of their phase."""
    return ("-m", "bench.gpu_measure", "--regime", regime, "--seconds", str(seconds - 12))


def _tests(out: Path, backend: str) -> tuple[str, ...]:
    """The GPU tests of one backend; the machine may lack what the other tests import."""
    options = ("-v", "--tb=short", "-p", "no:cacheprovider", "-o", "filterwarnings=default")
    options += ("--maxfail=40",)
    if importlib.util.find_spec("xdist") is not None:
        options += ("-n", str(WORKERS))
    report = ("--junitxml", str(out / f"tests_{backend}.xml"))
    chosen = ("-m", "gpu", "-k", backend, "--confcutdir", "tests/gpu", "tests/gpu")
    return (sys.executable, "-m", "pytest", *options, *report, *chosen)


def _sanitized(tool: str, backend: str, seconds: float) -> Phase:
    """Every op once under compute-sanitizer; CUDA C++ has one precision. The tool sees what lies
    beyond an allocation, of which torch's cache makes few and large ones."""
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
    command += ("--target-processes", "application-only")
    precisions = ("highest", "high") if backend == "triton" else ("highest",)
    cases = ("-m", "bench.gpu_cases", "--backend", backend, "--precision", *precisions)
    plain = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),) if tool == "memcheck" else ()
    name = f"{tool}_{backend}"
    return Phase(name, (*command, sys.executable, *cases), seconds, environment=plain)


def device_environment() -> dict[str, str]:
    """For every phase: kernels are built for the device that is here alone, by all cores."""
    found = {"MAX_JOBS": str(os.cpu_count() or 1)}
    query = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    if shutil.which(query[0], path=SEARCHED) is not None:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
        if capability := re.match(r"\d+\.\d+", done.stdout):  # else it says why there is none
            found["TORCH_CUDA_ARCH_LIST"] = capability[0]
    return found


def run(todo: list[Phase], out: Path, seconds: float) -> list[Outcome]:
    """Run the phases in their order within ``seconds`` in all; every outcome is written at once."""
    out.mkdir(parents=True, exist_ok=True)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it in the background,
        signal.signal(signal.SIGINT, signal.default_int_handler)  # and phases would have it so too
    deadline, outcomes = time.monotonic() + seconds, []
    background: dict[str, Running] = {}
    environment = {**device_environment(), **os.environ}
    environment |= {"PYTHONUNBUFFERED": "1", "PATH": SEARCHED}
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the tests ask for determinism

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if outcome.phase == "build" and outcome.status != "ok":
            environment["STEIN_KERNELS_JIT"] = "0"  # nobody after it tries again for minutes
        with (out / "phases.jsonl").open("a") as file:
            file.write(json.dumps(outcome._asdict()) + "\n")
        print(f"{outcome.phase:<24}{outcome.status:<14}{outcome.seconds:6.1f} s", flush=True)

    try:
        for phase in todo:
            for name in phase.waits_for:
                if name in background:
                    note(_finish(background.pop(name), deadline))
            if deadline - time.monotonic() < LEAST:
                note(Outcome(phase.name, "no time left", None, 0.0))
            elif shutil.which(phase.command[0], path=SEARCHED) is None:
                note(Outcome(phase.name, "absent", None, 0.0))
            else:
                running = _start(phase, out, environment)
                if phase.background:
                    background[phase.name] = running
                else:
                    note(_finish(running, deadline))
        for name in list(background):
            note(_finish(background.pop(name), deadline))
    finally:
        for running in background.values():
            _kill(running.process)
    return outcomes


def _start(phase: Phase, out: Path, environment: dict[str, str]) -> Running:
    with (out / f"{phase.name}.log").open("wb") as log:
        process = subprocess.Popen(
            phase.command,
            cwd=ROOT,
            env={**environment, **dict(phase.environment)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Running(phase, process, time.monotonic())


def _finish(running: Running, deadline: float) -> Outcome:
    """Wait for a phase until its own limit or that of the run, then end what is left of it."""
    name, process = running.phase.name, running.process
    limit = min(running.started + running.phase.seconds, deadline) - time.monotonic()
    try:
        code = process.wait(max(0.0, limit))
    except subprocess.TimeoutExpired:
        _interrupt(process, min(GRACE, max(0.0, deadline - time.monotonic())))
        return Outcome(name, "timed out", None, time.monotonic() - running.started)
    except BaseException:
        _kill(process)
        raise
    spent = time.monotonic() - running.started
    return Outcome(name, "failed" if code else "ok", code, spent)


def _interrupt(process: subprocess.Popen[bytes], grace: float) -> None:
    """As Ctrl-C does, upon which pytest says what has failed so far; then kill it."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(grace)
    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def was_built(out: Path) -> bool:
    """Whether this run has built the CUDA kernels; True where no run says that it has not."""
    log = out / "phases.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return all(line["status"] == "ok" for line in lines if line["phase"] == "build")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of logs and records")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, on tiny problems")
    options = parser.parse_args(arguments)
    out = options.out.absolute()
    if (out / "phases.jsonl").exists():
        parser.error(f"{out} holds an earlier run: name another folder")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the phases too
    outcomes = run(phases(out, options.dry_run), out, 60 * options.minutes)
    missed = [outcome.phase for outcome in outcomes if outcome.status != "ok"]
    print(f"not ok: {', '.join(missed)}" if missed else "all phases ok")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
