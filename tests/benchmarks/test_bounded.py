"""Commands that have so many seconds."""

import sys
import time

from benchmarks import bounded

HANGS = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}]); time.sleep(60)"
)
CHILD = (
    "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "time.sleep(4); open({!r}, 'w')"
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_becomes_of_a_command_is_told(tmp_path):
    log = tmp_path / "log"
    assert bounded.run(python("print('output')"), 60, log) == "passed"
    assert log.read_text() == "output\n"
    assert bounded.run(python("raise SystemExit(3)"), 60, log) == "failed with status 3"


def test_what_hangs_is_stopped_with_all_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "GRACE", 1)
    done = tmp_path / "child survived"
    code = HANGS.format(CHILD.format(str(done)))
    assert bounded.run(python(code), 2.5, tmp_path / "log") == "stopped after 2 s"
    time.sleep(4)
    assert not done.exists()


def test_what_is_interrupted_may_finish_what_it_says(tmp_path):
    talks = (
        "import time\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('so far: 12 passed')"
    )
    bounded.run(python(talks), 2 + bounded.GRACE, tmp_path / "log")
    assert (tmp_path / "log").read_text() == "so far: 12 passed\n"
