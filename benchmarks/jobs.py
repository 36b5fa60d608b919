"""What a sweep's processes do, each a call of one of these."""

from functools import partial
from statistics import median

import torch
from tritonconv import _ahead, tune
from tritonconv._ahead import Kernel
from tritonconv.conv.dispatch import Choice
from tritonconv.conv.tuned import Tuned

from . import device, measure, sides
from .cases import Row
from .configurations import Named, configured, problem_of
from .gate import poisoned_memory
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
    for named in configured(row) if task.configurations else ():
        for choice in candidates(named, gpu):
            tensors = tune.operands(choice.problem, "cpu")
            found += _ahead.kernels(partial(tune.run, choice, *tensors), *gpu)
    return found


def without_graph(task: Task) -> Task:
    """A task that launches the same."""
    return task._replace(row=task.row.plain) if isinstance(task.row, NetworkRow) else task


def candidates(named: Named, gpu: Gpu) -> list[Choice]:
    return tune.candidates(problem_of(named, *gpu))


_last: sides.Call | None = None  # whose kernels may be asked for next


def figures(row: Row | NetworkRow, side: str) -> dict:
    global _last
    _last = measure.checked(row, side)
    return measure.figures(row, _last, partial(device.times, rounds=ROUNDS))


def kernels(row: NetworkRow) -> dict[str, tuple[int, float]]:
    """Of the side whose figures were the last."""
    return device.kernels(_last)


def microseconds(row: Row, statistics: bool, configuration: Tuned) -> float:
    """The time of a configuration whose results are right."""
    given, named = measure.problem(row), Named(row, statistics)
    (choice,) = (c for c in candidates(named, device.gpu()) if c.tuned == configuration)
    run = partial(tune.run, choice, given.inputs.x, given.inputs.w, given.inputs.dy)
    with poisoned_memory():
        y, found = run()
    measure.require(row, f"{named} {configuration}", [y], given, is_ours=True)
    if statistics:
        measure.check_statistics(f"{named} {configuration}", y, found)
    call = device.captured(run) if row.graphed else run
    return 1e6 * median(device.times(call, ROUNDS))


def prepare(row: Row | NetworkRow) -> None:
    """Before a task's other calls: frees what others left, makes inputs and expected results."""
    global _last
    _last = None
    measure.problem.cache_clear()
    device.free_memory()
    measure.problem(row)


def require_health() -> None:
    """Raises where an error before this one has left the GPU, or torch, unusable."""
    torch.randn(1, device=device.DEVICE).sum().item()
