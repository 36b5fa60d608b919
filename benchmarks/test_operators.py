"""Device time of every operator, pass and dtype."""

from .cases import rows
from .timing import take, timed


@timed((row, side) for row in rows() for side in row.sides)
def test_device_time(row, side, benchmark, results):
    take(row, side, benchmark, results)
