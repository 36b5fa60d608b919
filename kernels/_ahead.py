"""Kernels compiled ahead of their launches, in processes that need no GPU, into Triton's cache.

CPU tensors, of which nothing is read, stand for the GPU's: launches of them are caught, told apart
as Triton tells them apart, and compiled for a compute capability.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.tools.tensor_descriptor import TensorDescriptor

from . import _launch
from .conv import problem

# of a process that compiles: no GPU is its business, and no kernel is interpreted
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}

Capability = tuple[int, int]


class Target:
    """As much of Triton's driver as compiling takes."""

    def __init__(self, capability: Capability) -> None:
        self.number = 10 * capability[0] + capability[1]

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.number, 32)

    def get_current_device(self) -> int:
        return self.number  # Triton keeps its compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def stubbed_launches(run: Callable, capability: Capability, gpu: str = "") -> Iterator[None]:
    """run(kernel, programs, args, outs, meta) in place of launches, in all threads; CPU tensors
    pass for those of a GPU of that capability and name."""
    with (
        mock.patch.object(_launch, "_run", run),
        mock.patch.object(problem, "device_capability", return_value=capability),
        mock.patch.object(problem, "device_name", return_value=gpu),
    ):
        yield


class Kernel(NamedTuple):
    """What is compiled as one; pickled, it needs no memory."""

    key: str  # what Triton tells it by
    module: str
    name: str
    args: tuple
    meta: dict[str, Any]

    def compile(self, capability: Capability) -> None:
        triton.runtime.driver.set_active(Target(capability))
        kernel = vars(__import__(self.module, fromlist=[self.name]))[self.name]
        kernel.warmup(*self.args, grid=(1,), **self.meta, **_launch.COMPILED)


def kernels(call: Callable[[], object], capability: Capability, gpu: str = "") -> list[Kernel]:
    """Those that call launches; nothing runs."""
    caught = []
    with stubbed_launches(lambda *launch: caught.append(launch), capability, gpu):
        call()
    found = {}
    with mock.patch("triton.runtime.jit.driver", mock.Mock(active=Target(capability))):
        for kernel, _, args, _, meta in caught:
            *_, binder = kernel.create_binder()
            _, specialization, options = binder(*args, **meta)
            key = f"{kernel.__name__} {specialization} {options}"
            if key not in found:
                empty = tuple(map(_emptied, args))
                found[key] = Kernel(key, kernel.fn.__module__, kernel.__name__, empty, meta)
    return list(found.values())


def _emptied(arg: Any) -> Any:
    """What Triton needs to know of arg, without its memory."""
    if isinstance(arg, Tensor):
        return arg.dtype
    if isinstance(arg, TensorDescriptor):
        made = object.__new__(TensorDescriptor)
        made.__dict__.update(vars(arg), base=torch.empty(0, dtype=arg.base.dtype))
        return made
    return arg
