"""Device time of every operator, pass and dtype: a test for each side, a group for each row."""

import pytest
import torch

from . import device
from .cases import rows
from .measure import measure


def _marks(row, side):
    yield pytest.mark.full
    if row.quick(side):
        yield pytest.mark.quick
    if side != "ours":
        yield pytest.mark.baseline


@pytest.mark.skipif(not torch.cuda.is_available(), reason=device.NO_GPU)
@pytest.mark.benchmark(timer=device.now)
@pytest.mark.parametrize(
    ("row", "side"),
    [
        pytest.param(row, side, id=f"{row}-{side}", marks=tuple(_marks(row, side)))
        for row in rows()
        for side in row.sides
    ],
)
def test_device_time(row, side, benchmark, results):
    if benchmark.disabled:
        pytest.skip("benchmarks are disabled")
    benchmark.group = str(row)
    benchmark.extra_info |= results.add(row, side, measure(row, side, benchmark))
