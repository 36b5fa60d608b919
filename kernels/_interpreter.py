"""Running a kernel in Triton's interpreter, where there is no GPU.

What the interpreter gets wrong, or does slowly, is put right here, so that no kernel knows of it:
bfloat16, library functions that were compiled before the interpreter was on, threads, integer
overflow checks, and memory access, which here is quick and checked against the tensors' bounds.
"""

import contextlib
import ctypes
import dataclasses
import functools
import sys
import threading
from typing import Any

import numpy as np
import torch
import triton
import triton.runtime.interpreter as interpreter
from torch import Tensor
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

# The interpreter keeps the running program's id in a global, so that one kernel runs at a time.
# Kernels that are not ours do not wait: threads that interpret them beside others get wrong
# results, as they do without us.
_lock = threading.RLock()


def run(kernel, programs: int, args: tuple, outs: tuple[Tensor, ...], meta: dict) -> None:
    """kernel[(programs,)](*args, **meta), where outs names the tensors in args that it writes."""
    with _lock:
        _prepare()
        known = {}  # what is given twice stays one
        host = [_hosted(a, known) for a in args]
        bases = [a.base if isinstance(a, TensorDescriptor) else a for a in host]
        tensors = [a for a in bases if isinstance(a, Tensor)]
        with _arranged_for(tensors), np.errstate(all="ignore"):
            kernel[(programs,)](*host, **meta)
        for arg, result in zip(args, host, strict=True):
            if result is not arg and any(arg is out for out in outs):
                arg.copy_(result)


def _hosted(x: Any, known: dict[int, Tensor]) -> Any:
    """A kernel's argument: a tensor, or a descriptor's, on the CPU, bfloat16 as float32.

    The interpreter's bfloat16 arithmetic is wrong and its rounding truncates; float32 holds every
    bfloat16, and copying back rounds once.
    """
    if isinstance(x, TensorDescriptor):
        return dataclasses.replace(x, base=_hosted(x.base, known))
    if not isinstance(x, Tensor):
        return x
    if id(x) not in known:
        known[id(x)] = x.to("cpu", torch.float32 if x.dtype == torch.bfloat16 else x.dtype)
    return known[id(x)]


class _Memory:
    """Triton's loads and stores, restricted to the tensors of one launch; five times as fast."""

    def __init__(self, triton_memory, tensors: list[Tensor]) -> None:
        self.triton_memory = triton_memory
        self.spans = [(x.data_ptr(), _span(x) * x.itemsize) for x in tensors if x.numel() > 0]

    def __getattr__(self, name: str):
        return getattr(self.triton_memory, name)

    def load(self, pointers, mask, other, dtype) -> np.ndarray:
        mask = np.asarray(mask, dtype=bool)  # a descriptor's comes as a buffer
        if not mask.any():
            return np.broadcast_to(other, pointers.shape).astype(dtype)
        memory, index = self._locate(pointers, pointers.flat[mask.argmax()], dtype)
        index *= mask
        _require_inside(index, memory)
        values = memory.take(index.view(np.int64), mode="wrap")  # quicker than the default mode
        np.copyto(values, other, where=~mask)
        return values

    def store(self, pointers, values, mask) -> None:
        mask = np.asarray(mask, dtype=bool)
        pointers = pointers[mask]
        if pointers.size:
            memory, index = self._locate(pointers, pointers[0], values.dtype)
            _require_inside(index, memory)
            memory[index.view(np.int64)] = values[mask]

    def _locate(self, pointers, first, dtype) -> tuple[np.ndarray, np.ndarray]:
        """The tensor that `first` points into, as a flat array, and the pointers' indices in it."""
        for start, size in self.spans:
            if start <= first < start + size:
                memory = np.frombuffer((ctypes.c_char * size).from_address(start), dtype)
                return memory, (pointers.astype(np.uint64) - np.uint64(start)) // np.uint64(
                    memory.itemsize
                )
        raise IndexError(f"address {first:#x} lies in none of the kernel's tensors")


def _span(x: Tensor) -> int:
    """Elements from x's first to its last, both included."""
    return 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))


def _require_inside(index: np.ndarray, memory: np.ndarray) -> None:
    # an index before the start wrapped around, and is large
    if index.max() >= memory.size:
        raise IndexError(
            f"index {index.max().view(np.int64)} of a tensor of {memory.size} elements"
        )


@contextlib.contextmanager
def _arranged_for(tensors: list[Tensor]):
    """Checks loads and stores, but not integer overflow, which makes indexing eight times dearer.

    triton prepares its language anew at every call of a helper function: once a launch is enough.
    """
    builder = interpreter.interpreter_builder
    changes = (
        (interpreter, "_interpreter", _Memory(interpreter._interpreter, tensors)),
        (interpreter, "_patch_lang", functools.cache(interpreter._patch_lang)),
        (builder, "options", interpreter.InterpreterOptions(sanitize_overflow=False)),
    )
    before = [getattr(owner, name) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(changes, before, strict=True):
            setattr(owner, name, value)


@functools.cache
def _prepare() -> None:
    """Once a process: versions agree, triton's own functions are interpreted, the user knows."""
    if _version(triton) < (3, 7) and _version(np) >= (2, 4):
        raise RuntimeError(
            f"tritonconv: the interpreter of triton {triton.__version__} cannot run with numpy "
            f"{np.__version__}; install triton >= 3.7 or numpy < 2.4"
        )
    _interpret_triton_library()
    print(
        "tritonconv: the kernels run in Triton's interpreter on the CPU: right, but slow",
        file=sys.stderr,
    )


def _version(module) -> tuple[int, int]:
    major, minor = module.__version__.split(".")[:2]
    return int(major), int(minor)


def _interpret_triton_library() -> None:
    """Makes triton's library functions (tl.sum, tl.zeros) interpreted.

    They are compiled functions where triton was imported before the interpreter was switched on,
    as building a torch optimizer does.
    """
    for name, module in list(sys.modules.items()):
        if name == "triton.language" or name.startswith("triton.language."):
            for attribute, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    setattr(module, attribute, interpreter.InterpretedFunction(value.fn))
