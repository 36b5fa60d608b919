"""Device time of whole networks: a test for each side, a group for each row."""

import gc

import pytest
import torch

from . import device
from .measure import measure
from .networks import network_rows


def _marks(row, side):
    yield pytest.mark.full
    if row.quick(side):
        yield pytest.mark.networks
    if side != "ours":
        yield pytest.mark.baseline


def _sides():
    """torch.compile's last: it takes minutes, which the others shall not wait for."""
    sides = [(row, side) for row in network_rows() for side in row.sides]
    return sorted(sides, key=lambda pair: pair[1] == "compile")


@pytest.fixture(autouse=True)
def freed_memory():
    yield
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.skipif(not torch.cuda.is_available(), reason=device.NO_GPU)
@pytest.mark.benchmark(timer=device.now)
@pytest.mark.parametrize(
    ("row", "side"),
    [
        pytest.param(row, side, id=f"{row}-{side}", marks=tuple(_marks(row, side)))
        for row, side in _sides()
    ],
)
def test_device_time(row, side, benchmark, results):
    if benchmark.disabled:
        pytest.skip("benchmarks are disabled")
    benchmark.group = str(row)
    benchmark.extra_info |= results.add(row, side, measure(row, side, benchmark))
