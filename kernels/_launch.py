"""Starting a kernel: on a GPU, or in Triton's interpreter where there is none.

The interpreter is on when TRITON_INTERPRET=1 was set before triton decorated our kernels; importing
tritonconv sets it where there is no CUDA device, and an explicit value wins.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
import triton
from torch import Tensor

from . import _interpreter

INTERPRETED = triton.knobs.runtime.interpret

# One operation of the interpreter costs about 0.1 ms however large it is, and a block may hold 2^20
# elements: interpreted blocks are as large as stays quick.
INTERPRETED_BLOCK = 2**19

# Multiply-adds round once: triton 3.9 warns where that is not asked for, 3.10 is to leave it.
COMPILED = {"enable_fp_fusion": True}

# of one context each: what other threads launch runs
_record: ContextVar[Callable | None] = ContextVar("_record", default=None)


@contextlib.contextmanager
def within(variable: ContextVar, value: Any) -> Iterator[None]:
    """Sets variable in this context, and in the backward passes that it starts.

    On a GPU autograd would run those in threads of its own, which have no part in the context.
    """
    before = variable.set(value)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        variable.reset(before)


def recording(record: Callable) -> contextlib.AbstractContextManager:
    """Calls record(kernel, programs, constants, choice) for every launch; nothing runs."""
    return within(_record, record)


def launch(kernel, programs: int, *args, out: Tensor | tuple[Tensor, ...], **meta) -> None:
    """Runs `programs` programs of kernel; out names the tensors in args that it writes."""
    start(kernel, programs, args, out if isinstance(out, tuple) else (out,), meta)


def start(
    kernel, programs: int, args: tuple, outs: tuple[Tensor, ...], meta: dict, choice: Any = None
) -> None:
    """As launch; choice: why it is this kernel, for who records it."""
    if programs > 0:
        if record := _record.get():
            record(kernel, programs, meta, choice)
        else:
            _run(kernel, programs, args, outs, meta)


def _run_on_gpu(kernel, programs: int, args: tuple, outs: tuple[Tensor, ...], meta: dict) -> None:
    device_capability(outs[0].device)
    with torch.cuda.device_of(outs[0]):  # Triton launches on the current device
        kernel[(programs,)](*args, **meta, **COMPILED)


def device_capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU, which must be one the kernels run on."""
    if device.type != "cuda":
        raise RuntimeError(
            f"tritonconv: expected CUDA tensors, got a tensor on {device}, where the kernels run "
            "only in Triton's interpreter; move the tensors to a CUDA device, or set "
            "TRITON_INTERPRET=1 before importing tritonconv"
        )
    return _supported_capability(device.index)


@functools.cache
def _supported_capability(index: int) -> tuple[int, int]:
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip or capability < (8, 0):
        raise RuntimeError(
            "tritonconv: expected an NVIDIA GPU of compute capability 8.0 or newer, got "
            f"{torch.cuda.get_device_name(index)} ({capability[0]}.{capability[1]}); use a newer "
            "GPU, or CPU tensors with TRITON_INTERPRET=1 set before importing tritonconv"
        )
    return capability


_run = _interpreter.run if INTERPRETED else _run_on_gpu
