"""The command for a GPU machine, with short steps in place of its own."""

import time

import pytest

from benchmarks import gpu
from benchmarks.gpu import Step

HANGS = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}]); time.sleep(60)"
)
CHILD = (
    "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "time.sleep(4); open({!r}, 'w')"
)


def test_a_step_that_fails_or_hangs_stops_no_other(tmp_path):
    done = tmp_path / "child survived"
    failed = gpu.run(
        tmp_path / "out",
        [
            Step("fails", ("-c", "raise SystemExit(3)"), 60),
            Step("hangs", ("-c", HANGS.format(CHILD.format(str(done)))), 1.5),
            Step("works", ("-c", "print('output')"), 60),
        ],
    )
    assert failed == 2
    outcomes = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert [line.partition(",")[0] for line in outcomes] == [
        "fails: failed with status 3",
        "hangs: stopped after 2 s",
        "works: passed",
    ]
    assert (tmp_path / "out" / "works.log").read_text() == "output\n"
    time.sleep(4)
    assert not done.exists()


def test_an_interrupted_step_may_finish_what_it_says(tmp_path):
    talks = (
        "import time\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('so far: 12 passed')"
    )
    gpu.run(tmp_path, [Step("tests", ("-c", talks), 2)])
    assert (tmp_path / "tests.log").read_text() == "so far: 12 passed\n"


SECONDS = {"tests": 1, "tune": 5, "quick": 2, "networks": 3, "report": 4}


def test_a_step_without_seconds_is_left_out(tmp_path):
    def names(**seconds: float) -> list[str]:
        return [step.name for step in gpu.steps(tmp_path, SECONDS | seconds)]

    assert names() == ["tests", "tune", "quick", "networks", "report"]
    assert names(networks=0, tune=0) == ["tests", "quick", "report"]
    assert names(tests=0, quick=0, tune=0) == ["networks", "report"]
    assert names(quick=0, networks=0) == ["tests", "tune"]  # there is nothing to report
    assert {step.name: step.seconds for step in gpu.steps(tmp_path, SECONDS)} == SECONDS


@pytest.mark.parametrize(
    ("left_out", "files"),
    [("networks", ["results"]), ("quick", ["networks"]), ("tests", ["results", "networks"])],
)
def test_what_is_measured_is_reported(tmp_path, left_out, files):
    *measured, report = gpu.steps(tmp_path, SECONDS | {left_out: 0, "tune": 0})
    paths = [str(tmp_path / f"{name}.json") for name in files]
    assert list(report.command[-len(files) :]) == paths
    assert [s.command[-1] for s in measured if s.name != "tests"] == paths


@pytest.mark.parametrize("name", SECONDS)
def test_all_it_leaves_lies_in_one_folder(tmp_path, name):
    command = next(s.command for s in gpu.steps(tmp_path, SECONDS) if s.name == name)
    paths = [part for part in command if "/" in part]
    assert all(path.startswith(str(tmp_path)) for path in paths)
