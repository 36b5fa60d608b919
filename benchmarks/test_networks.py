"""Device time of whole networks."""

import pytest

from . import device
from .networks import network_rows
from .timing import take, timed


def _sides():
    """torch.compile's last: it takes minutes, which the others shall not wait for."""
    sides = [(row, side) for row in network_rows() for side in row.sides]
    return sorted(sides, key=lambda pair: pair[1] == "compile")


@pytest.fixture(autouse=True)
def freed_memory():
    yield
    device.free_memory()


@timed(_sides())
def test_device_time(row, side, benchmark, results):
    take(row, side, benchmark, results)
