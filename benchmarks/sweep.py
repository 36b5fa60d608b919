"""Everything that is measured on a GPU, in so many seconds, what matters most first.

Processes without a GPU find out what a task launches and compile it; one with the GPU checks and
times those tasks whose kernels are compiled, in order.  What fails ends one process at most, and
every figure is written as it comes.
"""

import contextlib
import heapq
import importlib.util
import itertools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm
from tritonconv._ahead import ENVIRONMENT, Kernel
from tritonconv._workers import CallError, Worker, WorkerDiedError, Workers
from tritonconv.tune import processes

from . import bounded, counters, device, jobs, rehearsal, report
from .configurations import as_text, configured
from .jobs import Gpu
from .networks import NetworkRow
from .plan import Task
from .results import Results

MARGIN = 10  # seconds before the end at which it has ended
REPORT = 10  # more, for the report
LONGEST = 120  # seconds of a call on the GPU; torch.compile may take all there are
COUNTERS = 0.25, 70  # the share of the seconds, and at most how many, for Nsight Compute
TESTS = ("-m", "pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider")
IN_PARALLEL = ("-n", "auto", "--maxprocesses", "16", "--dist", "worksteal")
FAULTS = CallError, WorkerDiedError


class Wanted(NamedTuple):
    """What is measured."""

    tasks: list[Task]
    profiled: tuple[str, ...] = ()  # names of rows, by Nsight Compute
    tests: float = 0  # seconds for the suite, before all else
    dry: bool = False  # on a device that does nothing


def sweep(wanted: Wanted, out: Path, seconds: float) -> Results:
    """Leaves results.json, its report, and what processes said, in the folder `out`."""
    end = time.monotonic() + seconds - MARGIN - REPORT
    results = Results(out / "results.json", rehearsed=wanted.dry)
    if wanted.tests:
        parallel = IN_PARALLEL if importlib.util.find_spec("xdist") else ()
        tests = bounded.run([sys.executable, *TESTS, *parallel], wanted.tests, out / "tests.log")
        print(f"tests: {tests}", flush=True)
    share, most = COUNTERS if wanted.profiled else (0, 0)
    measured_by = end - min(share * (end - time.monotonic()), most)
    with (out / "processes.log").open("w") as log:
        results.leave_out(_measure(wanted, results, measured_by, log))
    if wanted.profiled:
        command = counters.command(wanted.profiled, out / "counters.csv")
        outcome = bounded.run(command, end - time.monotonic(), out / "counters.log")
        print(f"counters: {outcome}", flush=True)
    report.write(results.content(), out, "results")
    return results


def _measure(wanted: Wanted, results: Results, end: float, log: IO) -> list[str]:
    """Returns what there was no time for."""
    left = dict(enumerate(wanted.tasks))
    gpu = (rehearsal.CAPABILITY, rehearsal.NAME) if wanted.dry else device.gpu()
    with (
        Workers(processes(), log, **ENVIRONMENT) as compilers,
        contextlib.closing(Worker(log, TRITON_INTERPRET="0")) as worker,
        tqdm(total=len(left), unit="task", file=sys.stderr) as progress,
    ):
        compilation = Compilation(wanted.tasks, gpu, compilers)
        while (i := compilation.first_ready(left, end)) is not None:
            progress.set_description(str(left[i]))
            for call in _calls(left[i], results, gpu):
                done = _run(call, worker, results, end, wanted.dry)
                if call.function is jobs.prepare and not done:
                    break
            if time.monotonic() >= end:
                break
            del left[i]
            progress.update()
    return [str(task) for task in left.values()]


class Call(NamedTuple):
    """What the GPU's process does for a task, and who takes its result."""

    function: Callable
    args: tuple
    take: Callable[[Any], None]
    name: str
    longest: float = LONGEST


def _calls(task: Task, results: Results, gpu: Gpu) -> Iterator[Call]:
    row = task.row
    yield Call(jobs.prepare, (row,), lambda nothing: None, f"{row}: expected results")
    for side in task.sides:
        longest = math.inf if side == "compile" else LONGEST
        take = partial(results.add, row, side)
        yield Call(jobs.figures, (row, side), take, f"{row}: {side}", longest)
        if isinstance(row, NetworkRow):
            take = partial(results.add_kernels, row, side)
            yield Call(jobs.kernels, (row,), take, f"{row}: {side}'s kernels")
    for named in configured(row) if task.configurations else ():
        for choice in jobs.candidates(named, gpu):
            text = as_text(choice.tuned)
            take = partial(results.add_configuration, named, text)
            args = row, named.statistics, choice.tuned
            yield Call(jobs.microseconds, args, take, f"{named}: {text}")


def _run(call: Call, worker: Worker, results: Results, end: float, dry: bool) -> bool:
    """Whether it came to a result."""
    seconds = end - time.monotonic()
    if seconds <= 0:
        return False
    function = (rehearsal.rehearse, call.function) if dry else (call.function,)
    try:
        call.take(worker.call(*function, *call.args, seconds=min(call.longest, seconds)))
    except FAULTS as error:
        seconds = end - time.monotonic()
        if seconds > 0:  # otherwise it is time that failed
            results.add_failure(f"{call.name}: {str(error).strip().splitlines()[-1]}")
            try:
                worker.call(jobs.require_health, seconds=min(LONGEST, seconds))
            except FAULTS:
                worker.stop()
        return False
    return True


class Compilation:
    """What tasks launch, compiled in their order in processes beside each other.

    What fails there fails again on the GPU's process, where it is told.
    """

    def __init__(self, tasks: list[Task], gpu: Gpu, workers: Workers) -> None:
        self.gpu, self.workers = gpu, workers
        self.idle = len(workers.all)
        self.tasks = [jobs.without_graph(task) for task in tasks]
        self.missing: dict[Task, set[str]] = {}  # keys of kernels, by task once that is known
        self.seen: set[str] = set()
        self.compiled: set[str] = set()
        self.changed = threading.Condition()
        count = itertools.count()  # of equal importance what came first
        self.waiting = [(i, next(count), task) for i, task in enumerate(dict.fromkeys(self.tasks))]
        self.push = lambda i, work: heapq.heappush(self.waiting, (i, next(count), work))
        with self.changed:
            self._submit()

    def first_ready(self, tasks: Iterable[int], until: float) -> int | None:
        """Waits for one of tasks to have its kernels; None where there is none in time."""

        def ready(i: int) -> bool:
            task = self.tasks[i]
            return task in self.missing and self.missing[task] <= self.compiled

        tasks = list(tasks)
        with self.changed:
            self.changed.wait_for(
                lambda: not tasks or any(map(ready, tasks)), max(until - time.monotonic(), 0)
            )
            in_time = time.monotonic() < until
            return next(filter(ready, tasks), None) if in_time else None

    def _submit(self) -> None:
        """Of a task first what it launches, then that."""
        while self.waiting and self.idle:
            i, _, work = heapq.heappop(self.waiting)
            if isinstance(work, Task):
                future = self.workers.submit(jobs.needed, work, self.gpu)
            else:
                future = self.workers.submit(Kernel.compile, work, self.gpu[0])
            self.idle -= 1
            future.add_done_callback(partial(self._finish, i, work))

    def _finish(self, i: int, work: Task | Kernel, future: Future) -> None:
        if future.cancelled():
            return
        with self.changed:
            self.idle += 1
            if isinstance(work, Task):
                needed = [] if future.exception() else future.result()
                self.missing[work] = {kernel.key for kernel in needed}
                for kernel in needed:
                    if kernel.key not in self.seen:
                        self.seen.add(kernel.key)
                        self.push(i, kernel)
            else:
                self.compiled.add(work.key)
            with contextlib.suppress(RuntimeError):  # the workers have ended
                self._submit()
            self.changed.notify_all()
