"""A measurement without a GPU: its clock and its counters."""

from collections import Counter
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from benchmarks import device, measure


class Benchmark:
    """pytest-benchmark's fixture, as far as a measurement uses it."""

    def __init__(self) -> None:
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, call, setup, rounds, warmup_rounds):
        for _ in range(rounds):
            setup()
            start = device.now()
            call()
            self.stats.stats.data.append(device.now() - start)


@pytest.fixture
def new_benchmark() -> type[Benchmark]:
    return Benchmark


@pytest.fixture
def done(monkeypatch, request) -> Iterator[Counter]:
    """How often each of the device's functions was called; every moment is a millisecond later."""
    calls, milliseconds = Counter(), count()

    def stand_in(name, result):
        def call(*args):
            calls[name] += 1
            return result(*args)

        monkeypatch.setattr(device, name, call)

    monkeypatch.setattr(device, "DEVICE", request.getfixturevalue("device"))
    stand_in("now", lambda: next(milliseconds) / 1e3)
    stand_in("flush", lambda: None)
    stand_in("captured", lambda call: call)
    stand_in("graphed_callables", lambda model, x: model)
    stand_in("peak_bytes", lambda call: 5_000_000)
    measure.problem.cache_clear()
    yield calls
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True  # the defaults
