"""A device that does nothing, so that every step of a run is walked where there is no GPU.

Our kernels are launched on it and leave their results unwritten, which nobody checks; torch's own
operators run on the CPU, for a batch of two; the clock is a stand-in.
"""

import contextlib
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from unittest import mock

from tritonconv._ahead import stubbed_launches

from . import device, measure
from .cases import Row
from .networks import NetworkRow

NAME, CAPABILITY = "a rehearsal", (9, 0)
BATCH = 2


def stand_ins() -> dict[str, Callable]:
    """By name, for what device has; every moment is a millisecond later."""
    milliseconds = count()
    return {
        "now": lambda: next(milliseconds) / 1e3,
        "flush": lambda: None,
        "captured": lambda call: call,
        "graphed_callables": lambda model, x: model,
        "peak_bytes": lambda call: 5_000_000,
        "host_seconds": lambda call, rounds: 1e-3,
        "kernels": lambda call: {"a kernel": (1, 1000.0)},
        "free_memory": lambda: None,
        "gpu": lambda: (CAPABILITY, NAME),
    }


@contextlib.contextmanager
def standing_in() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(device, DEVICE="cpu", **stand_ins()))
        stack.enter_context(mock.patch.multiple(measure, require=_pass, check_statistics=_pass))
        stack.enter_context(mock.patch.object(device, "times", _times))
        stack.enter_context(stubbed_launches(lambda *launch: None, CAPABILITY, NAME))
        yield


def _pass(*result: Any, **named: Any) -> None:
    """Nobody wrote it."""


def _times(call: Callable, rounds: int) -> list[float]:
    call()
    return rounds * [1e-3]


def rehearse(function: Callable, row: Row | NetworkRow, *args: Any) -> Any:
    """function(row, *args), there."""
    with standing_in():
        return function(_small(row), *args)


def _small(row: Row | NetworkRow) -> Row | NetworkRow:
    if isinstance(row, NetworkRow):
        return row._replace(batch=min(row.batch, BATCH))
    N, *image = row.case.x_shape
    return row._replace(case=row.case._replace(x_shape=(min(N, BATCH), *image)))
