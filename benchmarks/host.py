"""What needs no GPU: launches stubbed before the device, and the kernels they would compile."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest import mock

from torch import Tensor
from triton.backends.compiler import GPUTarget
from tritonconv import _launch
from tritonconv.conv import problem

INTERPRETED = "tritonconv is interpreted here; host costs are those of a GPU's user"
CAPABILITY = (9, 0)


@contextlib.contextmanager
def stubbed_launches(stub: Callable[..., None]) -> Iterator[None]:
    """stub(kernel, programs, args, outs, meta) stands in for every launch: no result is written."""
    with (
        mock.patch.object(_launch, "_run", stub),
        mock.patch.object(problem, "device_capability", _capability),
    ):
        yield


def launches(call: Callable[[], object]) -> list[tuple]:
    """What call launches, none of which runs."""
    caught = []
    with stubbed_launches(lambda *launch: caught.append(launch)):
        call()
    return caught


def _capability(x: Tensor) -> tuple[int, int]:
    return CAPABILITY


class Driver:
    """As much of Triton's driver as telling kernels apart takes."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)


def kernels(caught: list[tuple]) -> Counter[str]:
    """How many kernels Triton would compile for these launches, by name."""
    compiled = set()
    with mock.patch("triton.runtime.jit.driver", SimpleNamespace(active=Driver())):
        for kernel, _, args, _, meta in caught:
            *_, binder = kernel.create_binder()
            _, specialization, options = binder(*args, **meta)
            compiled.add((kernel.__name__, f"{specialization} {options}"))
    return Counter(name for name, _ in compiled)


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
