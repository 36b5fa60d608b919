"""A sweep: what it measures and in which order, that it ends in time, and that no fault ends it.

The rehearsal is the run itself, on a device that does nothing.
"""

import contextlib
import json
import os
import re
import signal
import time
from concurrent.futures import Future

import pytest
import torch
from tritonconv._ahead import ENVIRONMENT
from tritonconv._workers import Worker, WorkerDiedError

from benchmarks import plan, rehearsal, sweep
from benchmarks.__main__ import main
from benchmarks.cases import goals
from benchmarks.configurations import STATISTICS
from benchmarks.networks import NetworkRow, network_rows
from benchmarks.sweep import Call, Compilation, Wanted

GPU = rehearsal.CAPABILITY, rehearsal.NAME
ROWS = (
    "d2l-lenet_b256-(training|training_graph)-bf16",
    "(lenet_c2|r50_b1_l3_c2)-forward-bf16",
    "r50_max-backward",
    "r50_l1_64_256_bn_add-inference-bf16",
)


def test_everything_is_planned_once():
    found = plan.tasks()
    sides = [(str(task.row), side) for task in found for side in task.sides]
    assert len(sides) == len(set(sides))
    planned = {row for row, _ in sides}
    assert planned == {str(row) for row in (*plan.rows(), *network_rows())}
    configured = [task for task in found if task.configurations]
    assert {task.row.case.operator for task in configured} == {"conv2d"}
    assert len(configured) == len({str(task.row) for task in configured}) > 150


def test_what_matters_most_comes_first():
    found = plan.tasks()
    place = {str(task): i for i, task in enumerate(found)}
    firsts = [str(task) for task in found[:2]]
    step = "resnet50_b256-training-bf16"
    assert firsts == [f"{step}: eager", f"{step}: ours, unfused"]
    layer = "r50_l3_c2-forward-bf16: eager, ours, configurations"
    assert place["resnet50_b1-inference_graph-fp16: ours, unfused"] < place[layer]
    assert place[layer] < place["mbv2_dw144_56-dgrad-bf16: eager, ours, configurations"]
    assert (
        place["mbv2_dw144_56-dgrad-bf16: eager, ours, configurations"] < place[f"{step}: compile"]
    )
    compiled = [task for task in found if "compile" in task.sides]
    assert found[-len(compiled) :] == compiled
    kinds = {key[:2] for key in goals() if key[2] == "compile"}
    networks = {(t.row.family, t.row.direction) for t in compiled if isinstance(t.row, NetworkRow)}
    assert ("ResNet-50 batch 256", "training") in networks <= kinds


def test_rows_are_picked_by_a_pattern():
    found = {str(task.row) for task in plan.tasks("^r50_l3_c2-wgrad|^vgg16_b1-")}
    assert all(re.match("r50_l3_c2-wgrad|vgg16_b1-", name) for name in found)
    assert len(found) == 2 + 4


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The folder of a rehearsal, which takes 20 seconds where nothing else runs."""
    out = tmp_path_factory.mktemp("sweep")
    command = ["sweep", "--dry", "--seconds", "400", "--out", str(out), "--rows", "|".join(ROWS)]
    assert main(command) == 0
    return out


def test_a_rehearsal_walks_through_all_of_it(rehearsed):
    results = json.loads((rehearsed / "results.json").read_text())
    assert results["machine"]["device"] == "none: a rehearsal"
    assert results["failed"] == results["left_out"] == []
    rows = {f"{row['tag']}-{row['pass']}-{row['dtype']}": row for row in results["rows"]}
    expected = {
        "d2l-lenet_b256-training-bf16": {"eager", "ours", "unfused"},
        "d2l-lenet_b256-training_graph-bf16": {"eager", "ours"},
        "lenet_c2-forward-bf16": {"eager", "ours"},
        "r50_b1_l3_c2-forward-bf16": {"eager", "ours"},
        "r50_max-backward-fp16": {"eager", "ours", "compile"},
        "r50_max-backward-bf16": {"eager", "ours", "compile"},
        "r50_l1_64_256_bn_add-inference-bf16": {"eager", "ours", "unfused"},
    }
    assert {name: set(row["sides"]) for name, row in rows.items()} == expected
    step = rows["d2l-lenet_b256-training-bf16"]["sides"]["ours"]
    assert step["host_ms"] == 1.0
    assert step["kernels"] == {"a kernel": [1, 1000.0]}
    configurations = results["configurations"]
    assert set(configurations) == {
        f"{row}{end}"
        for row in ("lenet_c2-forward-bf16", "r50_b1_l3_c2-forward-bf16")
        for end in ("", STATISTICS)
    }
    families = {text.split()[0] for text in configurations["r50_b1_l3_c2-forward-bf16"]}
    assert families == {"boxes", "general"}
    assert "a kernel" in (rehearsed / "results.md").read_text()


@pytest.mark.parametrize("command", ["choose", "regret"])
def test_nothing_is_concluded_from_a_rehearsal(command, rehearsed, capsys):
    file = str(rehearsed / "results.json")
    with pytest.raises(SystemExit, match="2"):
        main([command, file, "--force"])
    assert "no GPU's" in capsys.readouterr().err


class Compilers:
    """Workers that have finished at once; one kernel fails."""

    def __init__(self) -> None:
        self.all = [None, None]
        self.compiled = []

    def submit(self, function, work, gpu):
        future = Future()
        if isinstance(work, plan.Task):
            with contextlib.closing(Worker(**ENVIRONMENT)) as worker:
                future.set_result(worker.call(function, work, gpu))
            return future
        self.compiled.append(work.key)
        if len(self.compiled) == 3:
            future.set_exception(WorkerDiedError("compile: its process died"))
        else:
            future.set_result(None)
        return future


def test_each_kernel_is_compiled_once():
    tasks = plan.tasks("^(r50_l1_256_64|r50_l3_1024_256)-forward-bf16")
    compilers = Compilers()
    compilation = Compilation(tasks, GPU, compilers)
    assert compilation.first_ready([0, 1], time.monotonic() + 400) == 0
    assert compilation.first_ready([1], time.monotonic() + 400) == 1
    assert len(compilers.compiled) == len(set(compilers.compiled)) > 10


def test_a_task_that_nothing_is_known_of_is_not_ready():
    compilers = Compilers()
    compilers.submit = lambda *what: sweep.Future()
    compilation = Compilation(plan.tasks("^r50_max-forward"), GPU, compilers)
    assert compilation.first_ready([0, 1], time.monotonic() + 0.1) is None


@pytest.fixture
def calls(monkeypatch) -> list[Call]:
    """What stands in for a task's."""
    found = []
    monkeypatch.setattr(sweep, "_calls", lambda *task: found)
    monkeypatch.setattr(sweep.device, "gpu", lambda: GPU)
    return found


def test_what_fails_is_told_and_ends_nothing(tmp_path, calls):
    tasks, taken = plan.tasks("^lenet_avg-forward-bf16"), []
    calls += [
        Call(os._exit, (3,), taken.append, "dies"),
        Call(divmod, (1, 0), taken.append, "raises"),
        Call(time.sleep, (60,), taken.append, "hangs", longest=0.5),
        Call(abs, (-7,), taken.append, "works"),
    ]
    results = sweep.sweep(Wanted(tasks), tmp_path, 400)
    assert taken == [7]
    assert [line.partition(" modulo")[0] for line in results.failed] == [
        "dies: _exit: its process died",
        "raises: ZeroDivisionError: integer division or",
        "hangs: sleep: its process did not finish in 0 s",
    ]
    assert results.left_out == []


@pytest.mark.parametrize("healthy", [True, False])
def test_after_a_failure_an_unusable_process_is_replaced(healthy, tmp_path, calls, monkeypatch):
    """As one is after an illegal access, in all that follows."""
    check = os.getpid if healthy else signal.raise_signal  # which lacks its argument
    monkeypatch.setattr(sweep.jobs, "require_health", check)
    pids = []
    calls += [
        Call(os.getpid, (), pids.append, "first"),
        Call(divmod, (1, 0), print, "raises"),
        Call(os.getpid, (), pids.append, "second"),
    ]
    sweep.sweep(Wanted(plan.tasks("^lenet_avg-forward-bf16")), tmp_path, 400)
    first, second = pids
    assert (first == second) == healthy


def test_without_expected_results_nothing_is_measured(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(sweep.jobs, "prepare", divmod)
    calls += [
        Call(divmod, (1, 0), print, "a: expected results"),
        Call(abs, (-7,), print, "a: ours"),
    ]
    tasks = plan.tasks("^lenet_avg-forward-bf16")
    (failed,) = sweep.sweep(Wanted(tasks), tmp_path, 400).failed
    assert failed.startswith("a: expected results: ZeroDivisionError")


def test_it_ends_in_time_and_says_what_it_left_out(tmp_path, calls):
    tasks = plan.tasks("^lenet_avg-forward")
    calls += 3 * [Call(time.sleep, (60,), print, "hangs")]
    start = time.monotonic()
    results = sweep.sweep(Wanted(tasks), tmp_path, 27)
    assert time.monotonic() - start < 27 - sweep.MARGIN
    assert results.left_out == [str(task) for task in tasks]
    assert results.failed == []
    assert json.loads((tmp_path / "results.json").read_text())["left_out"] == results.left_out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seconds", "300"), "this machine has none; --dry walks through the same steps"),
        (("--seconds", "59", "--dry"), "--seconds must be 60 at least, got 59"),
        (("--seconds", "60", "--dry", "--counters", "a"), "there is no ncu on the path"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["sweep", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    command = ["sweep", "--dry", "--seconds", "60", "--out", str(tmp_path / "file" / "out")]
    assert main(command) == 2
    assert "--out: cannot write there" in capsys.readouterr().err
