"""A command that has so many seconds."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

GRACE = 5  # of its seconds: to finish in after an interrupt


def run(command: Sequence[str], seconds: float, log: Path, append: bool = False) -> str:
    """Runs it, its output into log; returns what became of it."""
    with log.open("a" if append else "w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_listen,
        )
        try:
            status = process.wait(max(seconds - GRACE, 0))
        except subprocess.TimeoutExpired:
            _stop(process)
            return f"stopped after {seconds:.0f} s"
    return "passed" if status == 0 else f"failed with status {status}"


def _listen() -> None:
    """Interrupts reach the command, which in the background would inherit deafness to them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: subprocess.Popen) -> None:
    """Interrupts it and all it started, so that pytest reports what it has; then kills."""
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
