"""One side of a row: made, checked, and only then timed."""

import contextlib
import functools
import statistics
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from . import device, networks, sides
from .cases import Row
from .gate import poisoned_memory, require_as_close, require_right, require_same_problem
from .networks import NetworkRow

SECONDS = 0.3  # of launches for a figure
MOST_ROUNDS, LEAST_ROUNDS = 100, 10
STEPS = 5  # of a network, for the host's time


class Problem(NamedTuple):
    inputs: Any
    expected: list[Tensor]
    torchs: list[Tensor] | None  # torch's own results, where theirs is the error to measure by


@functools.lru_cache(maxsize=1)  # the sides of a row follow one another
def problem(row: Row | NetworkRow) -> Problem:
    use_backends(row, search=False)
    of = calls(row)
    made = of.inputs(row, device.DEVICE)
    expected = listed(of.expected(row, made))
    use_backends(row, search=True)  # as when it is timed
    return Problem(made, expected, None if row.exact else listed(of.eager(row, made)()))


Timer = Callable[[sides.Call], list[float]]  # seconds of the device, of each of several calls


def measure(row: Row | NetworkRow, side: str, timer: Timer) -> dict:
    """The side's figures; raises WrongResultError, and times nothing, where it is wrong."""
    return figures(row, checked(row, side), timer)


def checked(row: Row | NetworkRow, side: str) -> sides.Call:
    """The side's call, whose result is right."""
    given = problem(row)
    use_backends(row, search=True)
    call = calls(row).MAKE[side](row, given.inputs)
    is_ours = side in ("ours", "unfused")
    with poisoned_memory() if is_ours else contextlib.nullcontext():
        results = listed(call())
    require(row, f"{row}-{side}", results, given, is_ours)
    return call


def figures(row: Row | NetworkRow, call: sides.Call, timer: Timer) -> dict:
    peak = device.peak_bytes(call)
    if row.graphed:
        call = device.captured(call)
    seconds = timer(call)
    half = len(seconds) // 2
    first, second = statistics.median(seconds[:half]), statistics.median(seconds[half:])
    host = {"host_ms": 1e3 * device.host_seconds(call, STEPS)}
    return {
        "us": 1e6 * statistics.median(seconds),
        "spread": abs(first - second) / second,
        "rounds": len(seconds),
        "peak_MB": peak / 1e6,
        "graph": row.graphed,
    } | (host if isinstance(row, NetworkRow) else {})


def calls(row: Row | NetworkRow) -> ModuleType:
    """What makes inputs, expected and every side's call for rows of this kind."""
    return networks if isinstance(row, NetworkRow) else sides


def listed(returned: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """What a call returned, without its history."""
    returned = returned if isinstance(returned, tuple) else (returned,)
    return [result.detach() for result in returned]


def use_backends(row: Row | NetworkRow, search: bool) -> None:
    torch.backends.cudnn.benchmark = search
    torch.backends.cudnn.allow_tf32 = row.dtype == "tf32"


def check_statistics(name: str, y: Tensor, found: Tensor) -> None:
    """found: mean and variance of y's channels."""
    var, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    require_same_problem(f"{name}: mean", found[0], mean)
    require_same_problem(f"{name}: variance", found[1], var)


def require(
    row: Row | NetworkRow, name: str, results: list[Tensor], given: Problem, is_ours: bool
) -> None:
    if not row.exact:
        require_as_close(name, results, given.expected, given.torchs)
        return
    for actual, expected in zip(results, given.expected, strict=True):
        if is_ours:
            require_right(name, actual, expected, tf32=row.dtype == "tf32")
        else:
            require_same_problem(name, actual, expected)


def by_pytest(call: sides.Call, benchmark: BenchmarkFixture) -> list[float]:
    """A timer: the L2 cache is cold before each call."""
    device.flush()
    start = device.now()
    call()
    estimate = device.now() - start
    rounds = min(max(int(SECONDS / estimate), LEAST_ROUNDS), MOST_ROUNDS)
    benchmark.pedantic(call, setup=device.flush, rounds=rounds, warmup_rounds=3)
    return benchmark.stats.stats.data
