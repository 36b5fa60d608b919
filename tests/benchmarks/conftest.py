"""A measurement without a GPU: its clock and its counters."""

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from benchmarks import device, measure
from benchmarks.rehearsal import stand_ins


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
def benchmark() -> Benchmark:
    return Benchmark()


@pytest.fixture
def done(monkeypatch, request) -> Iterator[Counter]:
    """How often each of the device's functions was called; every moment is a millisecond later."""
    calls = Counter()

    def counted(name, result):
        def call(*args):
            calls[name] += 1
            return result(*args)

        return call

    monkeypatch.setattr(device, "DEVICE", request.getfixturevalue("device"))
    for name, result in stand_ins().items():
        monkeypatch.setattr(device, name, counted(name, result))
    measure.problem.cache_clear()
    yield calls
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True  # the defaults
