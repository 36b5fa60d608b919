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


def test_its_steps_are_tests_quick_and_report(tmp_path):
    steps = gpu.steps(tmp_path, tests=1, quick=2, report=3)
    assert [(step.name, step.seconds) for step in steps] == [
        ("tests", 1),
        ("quick", 2),
        ("report", 3),
    ]
    assert all(str(tmp_path / "results.json") in step.command for step in steps[1:])


@pytest.mark.parametrize("name", ["tests", "quick", "report"])
def test_all_it_leaves_lies_in_one_folder(tmp_path, name):
    command = next(s.command for s in gpu.steps(tmp_path, 1, 1, 1) if s.name == name)
    paths = [part for part in command if "/" in part]
    assert all(path.startswith(str(tmp_path)) for path in paths)
