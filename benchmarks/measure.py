"""One side of a row: made, checked, and only then timed."""

import functools
import statistics
from typing import NamedTuple

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from . import device, sides
from .cases import Row
from .gate import poisoned_memory, require_right, require_same_problem

SECONDS = 0.3  # of launches for a figure
MOST_ROUNDS, LEAST_ROUNDS = 100, 10
MAKE = {"ours": sides.ours, "eager": sides.eager, "compile": sides.compiled}


class Problem(NamedTuple):
    tensors: sides.Tensors
    expected: Tensor


@functools.lru_cache(maxsize=1)  # the sides of a row follow one another
def problem(row: Row) -> Problem:
    torch.backends.cudnn.benchmark = False
    made = sides.tensors(row, device.DEVICE)
    return Problem(made, sides.expected(row, made))


def measure(row: Row, side: str, benchmark: BenchmarkFixture) -> dict:
    """The side's figures; raises WrongResultError, and times nothing, where it is wrong."""
    made, expected = problem(row)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = row.dtype == "tf32"
    call, name = MAKE[side](row, made), f"{row}-{side}"
    if side == "ours":
        with poisoned_memory():
            require_right(name, call(), expected, tf32=row.dtype == "tf32")
    else:
        require_same_problem(name, call(), expected)
    peak = device.peak_bytes(call)
    seconds = _time(device.captured(call) if row.graphed else call, benchmark)
    half = len(seconds) // 2
    first, second = statistics.median(seconds[:half]), statistics.median(seconds[half:])
    return {
        "us": 1e6 * statistics.median(seconds),
        "spread": abs(first - second) / second,
        "rounds": len(seconds),
        "peak_MB": peak / 1e6,
        "graph": row.graphed,
    }


def _time(call: sides.Call, benchmark: BenchmarkFixture) -> list[float]:
    """Seconds of the device, one a launch, the L2 cache cold before each."""
    device.flush()
    start = device.now()
    call()
    estimate = device.now() - start
    rounds = min(max(int(SECONDS / estimate), LEAST_ROUNDS), MOST_ROUNDS)
    benchmark.pedantic(call, setup=device.flush, rounds=rounds, warmup_rounds=3)
    return benchmark.stats.stats.data
