"""Starting a kernel: on a GPU, or in Triton's interpreter where there is none.

The interpreter is on when TRITON_INTERPRET=1 was set before triton decorated our kernels; importing
tritonconv sets it where there is no CUDA device, and an explicit value wins.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.knobs import compilation, runtime
from triton.tools.tensor_descriptor import TensorDescriptor

from . import _interpreter

INTERPRETED = triton.knobs.runtime.interpret

# One operation of the interpreter costs about 0.1 ms however large it is, and a block may hold 2^20
# elements: interpreted blocks are as large as stays quick.
INTERPRETED_BLOCK = 2**19

# Multiply-adds round once: triton 3.9 warns where that is not asked for, 3.10 is to leave it.
COMPILED = {"enable_fp_fusion": True}

# of one context each: what other threads launch runs
_record: ContextVar[Callable | None] = ContextVar("_record", default=None)
_watch: ContextVar[Callable | None] = ContextVar("_watch", default=None)


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


@contextlib.contextmanager
def watching(watch: Callable) -> Iterator[None]:
    """Calls watch(kernel, programs, args, outs, meta, choice), which is to run it, for a launch."""
    before = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(before)


def watched() -> bool:
    return _watch.get() is not None


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
        elif watch := _watch.get():
            watch(kernel, programs, args, outs, meta, choice)
        else:
            _run(kernel, programs, args, outs, meta)


def run(kernel, programs: int, args: tuple, outs: tuple[Tensor, ...], meta: dict) -> None:
    """Past who records and watches."""
    _run(kernel, programs, args, outs, meta)


recorded = _record.get  # who records launches of this context instead of running them, if anybody


def _run_on_gpu(kernel, programs: int, args: tuple, outs: tuple[Tensor, ...], meta: dict) -> None:
    """kernel[(programs,)](*args, **meta); what was launched before starts as it was compiled then.

    Triton's own way there costs more than all else: it binds the arguments, prints the options to
    search for what it compiled, and asks the driver about each pointer.
    """
    stream = stream_of(outs[0].get_device())
    found = None if stream is None else _told_apart(kernel, programs, args, outs, meta)
    if found is None:
        _run_by_triton(kernel, programs, args, outs, meta)
        return
    key, values = found
    prepared = _prepared.get(key)
    if prepared is None:
        if len(_prepared) >= MOST_PREPARED:
            _prepared.clear()
        compiled = _run_by_triton(kernel, programs, args, outs, meta)
        if compiled is not None:  # as a hook of Triton's compiler may have it
            _prepared[key] = Prepared.of(compiled, kernel, args, meta)
    elif prepared.run is None:
        _run_by_triton(kernel, programs, args, outs, meta)
    else:
        run, function, metadata, constants, *_ = prepared
        run(programs, 1, 1, stream, function, metadata, None, None, None, *values, *constants)


def find_prepared(
    kernel, programs: int, args: tuple, outs: tuple[Tensor, ...], meta: dict
) -> "Prepared | None":
    """What a launch that ran left prepared, if anything."""
    found = _told_apart(kernel, programs, args, outs, meta)
    return None if found is None else _prepared.get(found[0])


def _run_by_triton(kernel, programs: int, args: tuple, outs: tuple[Tensor, ...], meta: dict):
    """The compiled kernel, which it launched."""
    device_capability(outs[0].device)
    with torch.cuda.device_of(outs[0]):  # Triton launches on the current device
        return kernel[(programs,)](*args, **meta, **COMPILED)


def stream_of(index: int) -> int | None:
    """The current stream of GPU `index`; None where a launch needs more than to be started.

    That is where another GPU is current, or where somebody hooks, debugs or instruments launches.
    """
    if index < 0 or index != torch._C._cuda_getDevice():
        return None
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    # a chain of hooks, or one in its place
    if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
        return None
    if runtime.debug or runtime.add_stages_inspection_hook or compilation.instrumentation_mode:
        return None
    return torch._C._cuda_getCurrentRawStream(index)


MOST_PREPARED = 4096  # launches: a ResNet-50's training step makes 200 different ones
ALIGNED = 16  # bytes
BY_VALUE = {int, float, bool, str, type(None)}  # told apart so, all else by identity


class Prepared(NamedTuple):
    """What CompiledKernel.run takes, but for the grid, the stream and the arguments of a call.

    Its order is the same in triton 3.6 to 3.9, and torch's Inductor relies on it, too.
    """

    run: Callable | None  # None where each launch needs memory, or a grid of another kind
    function: Any
    metadata: Any
    constants: tuple  # what follows the arguments, in the kernel's order
    descriptors: tuple  # Triton's, of those among the arguments
    held: tuple  # what was told apart by identity stays alive

    @classmethod
    def of(cls, compiled, kernel, args: tuple, meta: dict) -> "Prepared":
        given = tuple(a for a in args if not isinstance(a, Tensor | TensorDescriptor))
        held = kernel, given, meta
        if any(getattr(compiled.metadata, name, False) for name in SPECIAL):
            return cls(None, None, None, (), (), held)
        parameters = kernel.signature.parameters
        constants = tuple(
            meta[name] if name in meta else parameters[name].default
            for name in kernel.arg_names[len(args) :]
        )
        described = tuple(getattr(compiled.metadata, "tensordesc_meta", None) or ())
        return cls(
            compiled.run, compiled.function, compiled.packed_metadata, constants, described, held
        )


SPECIAL = (
    "global_scratch_size",
    "profile_scratch_size",
    "launch_cooperative_grid",
    "launch_pdl",
)
_prepared: dict[tuple, Prepared] = {}


def _told_apart(
    kernel, programs: int, args: tuple, outs: tuple[Tensor, ...], meta: dict
) -> tuple[tuple, list] | None:
    """All that Triton compiles a kernel for, and the arguments themselves, pointers as integers.

    None where a tensor is not on the first result's GPU, whose pointers Triton checks one by one,
    or where somebody hooks the kernel.
    """
    if kernel.pre_run_hooks:
        return None
    index = outs[0].get_device()
    key, values, pointers = [id(kernel), programs, index], [], 0
    for a in args:
        if isinstance(a, Tensor):
            if a.get_device() != index:
                return None
            pointer = a.data_ptr()
            pointers |= pointer
            key.append(a.dtype)
            values.append(pointer)
            continue
        values.append(a)
        if a.__class__ in BY_VALUE:
            key += a.__class__, a
        elif a.__class__ is TensorDescriptor:
            if a.base.get_device() != index or a.base.data_ptr() % ALIGNED:
                return None
            fields = (value for name, value in vars(a).items() if name != "base")
            key += (tuple(f) if isinstance(f, list) else f for f in fields)
            key.append(a.base.dtype)
        else:
            key.append(id(a))
    if pointers % ALIGNED:  # Triton compiles for which of them are
        given = zip(args, values, strict=True)
        key += (v % ALIGNED == 0 for a, v in given if isinstance(a, Tensor))
    key += meta
    key += (v if v.__class__ in BY_VALUE else id(v) for v in meta.values())
    return tuple(key), values


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
