"""The one command for a GPU machine: tests, tuning, quick benchmarks, whole networks, report.

Each step is bounded in time, runs whatever became of the one before, and leaves its output in a
folder, with a line in summary.txt.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

GRACE = 10  # seconds to finish in after an interrupt


class Step(NamedTuple):
    name: str
    command: Sequence[str]  # arguments of python
    seconds: float


MEASURED = {"quick": "results", "networks": "networks"}  # by marker, the stem of its file


def steps(out: Path, seconds: dict[str, float]) -> list[Step]:
    """Those that have seconds to run in."""
    benchmarks = ("-m", "benchmarks")
    commands = {
        "tests": ("-m", "pytest", "-q", "-p", "no:cacheprovider"),
        "tune": ("-m", "tritonconv.tune", "--folder", str(out)),
    }
    files = {name: str(out / f"{stem}.json") for name, stem in MEASURED.items() if seconds[name]}
    for name, file in files.items():
        commands[name] = (*benchmarks, "run", "-m", name, "--results", file)
    if files:
        commands["report"] = (*benchmarks, "report", *files.values())
    return [
        Step(name, command, seconds[name]) for name, command in commands.items() if seconds[name]
    ]


def run(out: Path, todo: list[Step]) -> int:
    """Runs every step; returns how many failed or ran out of time."""
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in todo:
        start = time.monotonic()
        outcome = _run(step, out / f"{step.name}.log")
        lines.append(f"{step.name}: {outcome}, {time.monotonic() - start:.0f} s")
        print(lines[-1], flush=True)
        (out / "summary.txt").write_text("\n".join(lines) + "\n")
    return sum(": passed," not in line for line in lines)


def _run(step: Step, log: Path) -> str:
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *step.command],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_listen,
        )
        try:
            status = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            _stop(process)
            return f"stopped after {step.seconds:.0f} s"
    return "passed" if status == 0 else f"failed with status {status}"


def _listen() -> None:
    """Interrupts reach the step, which in the background would inherit deafness to them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: subprocess.Popen) -> None:
    """Interrupts the step and all it started, so that pytest reports what it has; then kills."""
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
