"""What needs no GPU: launches stubbed before the device, and the kernels they would compile."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable

from tritonconv import _ahead

INTERPRETED = "tritonconv is interpreted here; host costs are those of a GPU's user"
CAPABILITY = (9, 0)


def stubbed_launches(stub: Callable[..., None]) -> contextlib.AbstractContextManager[None]:
    """stub(kernel, programs, args, outs, meta) stands in for every launch: no result is written."""
    return _ahead.stubbed_launches(stub, CAPABILITY)


def kernels(call: Callable[[], object]) -> Counter[str]:
    """How many kernels Triton would compile for call, by name."""
    return Counter(kernel.name for kernel in _ahead.kernels(call, CAPABILITY))


def microseconds(*calls: Callable[[], object], rounds: int = 300, loops: int = 20) -> list[float]:
    """Host time of each call, taken in turn; the least, since others' work on the CPU only adds."""
    times = [[] for _ in calls]
    for _ in range(rounds):
        for call, measured in zip(calls, times, strict=True):
            start = time.perf_counter()
            for _ in range(loops):
                call()
            measured.append(1e6 * (time.perf_counter() - start) / loops)
    return [min(measured) for measured in times]
