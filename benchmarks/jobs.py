"""What a sweep's processes do, each a call of one of these."""

import statistics
from functools import partial

from tritonconv import _ahead, tune
from tritonconv._ahead import Kernel
from tritonconv.conv.dispatch import Choice
from tritonconv.conv.tuned import Tuned

from . import device, measure
from .cases import Row
from .configurations import problem_of
from .networks import NetworkRow
from .plan import Task

ROUNDS = 11

Gpu = tuple[tuple[int, int], str]  # its capability and name


def needed(task: Task, gpu: Gpu) -> list[Kernel]:
    """The kernels that a task launches, found without a GPU.

    Of what is unfused none: torch's operators between ours would run for minutes on a CPU.
    """
    row, found = task.row, []
    if "ours" in task.sides:
        of = measure.calls(row)
        given = of.inputs(row, "cpu", filled=False)
        found += _ahead.kernels(lambda: of.MAKE["ours"](row, given)(), *gpu)
    if task.configurations:
        for choice in candidates(row, gpu):
            tensors = tune.operands(choice.problem, "cpu")
            found += _ahead.kernels(partial(tune.run, choice, *tensors), *gpu)
    return found


def without_graph(task: Task) -> Task:
    """A task that launches the same."""
    row = task.row
    if isinstance(row, NetworkRow):
        row = row._replace(direction="training" if row.how.training else "inference")
    return task._replace(row=row)


def candidates(row: Row, gpu: Gpu) -> list[Choice]:
    return tune.candidates(problem_of(row, *gpu))


def figures(row: Row | NetworkRow, side: str) -> dict:
    return measure.measure(row, side, partial(device.times, rounds=ROUNDS))


def microseconds(row: Row, configuration: Tuned) -> float:
    """The time of a configuration whose result is right."""
    given = measure.problem(row)
    (choice,) = (c for c in candidates(row, device.gpu()) if c.tuned == configuration)
    call = partial(tune.run, choice, given.inputs.x, given.inputs.w, given.inputs.dy)
    measure.check(row, f"{row} {configuration}", call, given, ours=True)
    if row.graphed:
        call = device.captured(call)
    return 1e6 * statistics.median(device.times(call, ROUNDS))


def free_memory(row: Row | NetworkRow) -> None:
    """Before row's task: all that others left."""
    measure.problem.cache_clear()
    device.free_memory()
