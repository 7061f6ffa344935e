"""``python -m bench.gpu --out DIR``: everything that needs a GPU, in under nine minutes.

Facts of the device, the build of the CUDA kernels, the GPU tests, the benchmarks, and the kernels
under compute-sanitizer. Every phase is a process of its own with its own limit and its log in DIR:
one that fails, hangs or is not there is written down, and the next goes on. Records go to DIR as
they are measured, so nothing is lost to a kill. ``--dry-run`` runs every phase on a CPU on tiny
problems with a host clock; its records say so and are no results.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LEAST = 3.0  # seconds under which no phase is started
BUILD = "import stein_kernels\nwith stein_kernels.use_backend('cuda'): pass"
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])
TOOLS = ("memcheck", "racecheck")
REGIMES = {"codes": 75.0, "samplers": 80.0, "weights": 65.0, "adam": 25.0}


class Phase(NamedTuple):
    name: str
    command: tuple[str, ...]
    seconds: float  # at most
    background: bool = False  # runs beside the phases that follow, until one waits for it
    waits_for: tuple[str, ...] = ()


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
    """The build and the sanitizers run beside the tests, nothing beside the benchmarks."""
    python = (sys.executable,)
    flags = ("--out", str(out), *(("--dry-run",) if dry else ()))
    facts = Phase("facts", (*python, "-m", "bench.gpu_device", *flags), 40)
    if dry:
        measured = (*python, "-m", "bench.gpu_measure", *flags, "--regime", *REGIMES)
        cases = (*python, "-m", "bench.gpu_cases", "--backend", "reference", "--device", "cpu")
        tests = (*_tests(out, "triton"), "--collect-only")
        listed = [Phase("tests_triton", tests, 60), Phase("cases", cases, 60)]
        return [facts, *listed, Phase("benchmarks", measured, 60)]
    built = ("build",)
    sanitizers = [f"{tool}_{backend}" for backend in ("triton", "cuda") for tool in TOOLS]
    benchmarks = [
        Phase(f"benchmark_{regime}", (*python, *_regime(regime, seconds), *flags), seconds)
        for regime, seconds in REGIMES.items()
    ]
    return [
        *(facts, Phase("build", (*python, "-c", BUILD), 240, background=True)),
        *(Phase(f"{tool}_triton", _sanitized(tool, "triton"), 120, True) for tool in TOOLS),
        Phase("tests_triton", _tests(out, "triton"), 120),
        Phase("memcheck_cuda", _sanitized("memcheck", "cuda"), 100, True, built),
        Phase("racecheck_cuda", _sanitized("racecheck", "cuda"), 100, True),
        Phase("tests_cuda", _tests(out, "cuda"), 60),
        *(phase._replace(waits_for=(*built, *sanitizers)) for phase in benchmarks),
    ]


def _regime(regime: str, seconds: float) -> tuple[str, ...]:
    """The benchmarks of a regime, which start nothing in the last seconds of their phase."""
    return ("-m", "bench.gpu_measure", "--regime", regime, "--seconds", str(seconds - 12))


def _tests(out: Path, backend: str) -> tuple[str, ...]:
    """The GPU tests of one backend; the machine may lack what the other tests import."""
    options = ("-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "--maxfail=40")
    report = ("--junitxml", str(out / f"tests_{backend}.xml"))
    chosen = ("-m", "gpu", "-k", backend, "--confcutdir", "tests/gpu", "tests/gpu")
    return (sys.executable, "-m", "pytest", *options, *report, *chosen)


def _sanitized(tool: str, backend: str) -> tuple[str, ...]:
    """Every op once under compute-sanitizer; CUDA C++ has one precision."""
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
    precisions = ("highest", "high") if backend == "triton" else ("highest",)
    cases = ("-m", "bench.gpu_cases", "--backend", backend, "--precision", *precisions)
    return (*command, sys.executable, *cases)


def run(todo: list[Phase], out: Path, seconds: float) -> list[Outcome]:
    """Run the phases in their order within ``seconds`` in all; every outcome is written at once."""
    out.mkdir(parents=True, exist_ok=True)
    deadline, outcomes = time.monotonic() + seconds, []
    background: dict[str, Running] = {}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PATH": SEARCHED}
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
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Running(phase, process, time.monotonic())


def _finish(running: Running, deadline: float) -> Outcome:
    """Wait for a phase until its own limit or that of the run, then kill what is left of it."""
    name, process = running.phase.name, running.process
    limit = min(running.started + running.phase.seconds, deadline) - time.monotonic()
    try:
        code = process.wait(max(0.0, limit))
    except subprocess.TimeoutExpired:
        _kill(process)
        return Outcome(name, "timed out", None, time.monotonic() - running.started)
    except BaseException:
        _kill(process)
        raise
    spent = time.monotonic() - running.started
    return Outcome(name, "failed" if code else "ok", code, spent)


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
    outcomes = run(phases(out, options.dry_run), out, 60 * options.minutes)
    missed = [outcome.phase for outcome in outcomes if outcome.status != "ok"]
    print(f"not ok: {', '.join(missed)}" if missed else "all phases ok")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
