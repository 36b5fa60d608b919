"""The test that every file of device times has: one for each side, a group for each row."""

from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from . import device
from .cases import Row
from .measure import by_pytest, measure
from .networks import NetworkRow
from .results import Results


def timed(pairs: Iterable[tuple[Row | NetworkRow, str]]) -> Callable:
    """Marks a test of `row` and `side`; of operators those that are quick, too."""

    def marks(row: Row | NetworkRow, side: str) -> Iterable[pytest.MarkDecorator]:
        yield pytest.mark.full
        if isinstance(row, Row) and row.quick(side):
            yield pytest.mark.quick
        if side != "ours":
            yield pytest.mark.baseline

    parameters = [
        pytest.param(row, side, id=f"{row}-{side}", marks=tuple(marks(row, side)))
        for row, side in pairs
    ]

    def decorate(test: Callable) -> Callable:
        test = pytest.mark.parametrize(("row", "side"), parameters)(test)
        test = pytest.mark.benchmark(timer=device.now)(test)
        return pytest.mark.skipif(not torch.cuda.is_available(), reason=device.NO_GPU)(test)

    return decorate


def take(row: Row | NetworkRow, side: str, benchmark: BenchmarkFixture, results: Results) -> None:
    if benchmark.disabled:
        pytest.skip("benchmarks are disabled")
    benchmark.group = str(row)
    figures = measure(row, side, partial(by_pytest, benchmark=benchmark))
    benchmark.extra_info |= results.add(row, side, figures)
