"""Starting a kernel: on a GPU, or in Triton's interpreter where there is none.

The interpreter is on when TRITON_INTERPRET=1 was set before triton decorated our kernels; importing
tritonconv sets it where there is no CUDA device, and an explicit value wins.  What the interpreter
gets wrong or does slowly is put right here, so that no kernel needs to know of it.
"""

import contextlib
import functools
import sys
import threading

import numpy
import torch
import triton
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret

# One operation of the interpreter costs about 0.1 ms however large it is, and a block may hold 2^20
# elements: interpreted blocks are as large as stays quick.
INTERPRETED_BLOCK = 2**18

_interpreter_lock = threading.RLock()  # the interpreter keeps the running program's id in a global


def launch(kernel, programs: int, *args, out: Tensor | tuple[Tensor, ...], **meta) -> None:
    """Runs `programs` programs of kernel; out names the tensors in args that it writes."""
    if programs > 0:
        _run(kernel, programs, args, out if isinstance(out, tuple) else (out,), meta)


def _run_on_gpu(kernel, programs: int, args: tuple, outs: tuple[Tensor, ...], meta: dict) -> None:
    if outs[0].device.type != "cuda":
        raise RuntimeError(
            f"tritonconv: expected CUDA tensors, got a tensor on {outs[0].device}, where the kernels "
            "run only in Triton's interpreter; move the tensors to a CUDA device, or set "
            "TRITON_INTERPRET=1 before importing tritonconv"
        )
    _require_supported(outs[0].device.index)
    with torch.cuda.device_of(outs[0]):  # Triton launches on the current device
        kernel[(programs,)](*args, **meta)


@functools.cache
def _require_supported(index: int) -> None:
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip or capability < (8, 0):
        raise RuntimeError(
            "tritonconv: expected an NVIDIA GPU of compute capability 8.0 or newer, got "
            f"{torch.cuda.get_device_name(index)} ({capability[0]}.{capability[1]}); use a newer GPU, "
            "or CPU tensors with TRITON_INTERPRET=1 set before importing tritonconv"
        )


def _run_interpreted(
    kernel, programs: int, args: tuple, outs: tuple[Tensor, ...], meta: dict
) -> None:
    with _interpreter_lock:
        _prepare_interpreter()
        # bfloat16 arithmetic is wrong in the interpreter and its rounding truncates: run in float32,
        # which holds every bfloat16, and let torch round the result once
        wide = [a.float() if isinstance(a, Tensor) and a.dtype == torch.bfloat16 else a for a in args]
        with _quick_integers(), numpy.errstate(all="ignore"):
            kernel[(programs,)](*wide, **meta)
        for narrow, result in zip(args, wide, strict=True):
            if result is not narrow and any(narrow is out for out in outs):
                narrow.copy_(result)


@contextlib.contextmanager
def _quick_integers():
    """Integer overflow checks off: they make the interpreter's index arithmetic eight times slower."""
    from triton.runtime.interpreter import InterpreterOptions, interpreter_builder

    options = interpreter_builder.options
    interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)
    try:
        yield
    finally:
        interpreter_builder.options = options


@functools.cache
def _prepare_interpreter() -> None:
    """Once a process: the versions agree, triton's own functions are interpreted, the user knows."""
    if _version(triton) < (3, 7) and _version(numpy) >= (2, 4):
        raise RuntimeError(
            f"tritonconv: the interpreter of triton {triton.__version__} cannot run with numpy "
            f"{numpy.__version__}; install triton >= 3.7 or numpy < 2.4"
        )
    _interpret_triton_library()
    print(
        "tritonconv: the kernels run in Triton's interpreter on the CPU: right, but slow"
        if not torch.cuda.is_available()
        else "tritonconv: TRITON_INTERPRET is set: the kernels run in Triton's interpreter",
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
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    for name, module in list(sys.modules.items()):
        if name == "triton.language" or name.startswith("triton.language."):
            for attribute, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    setattr(module, attribute, InterpretedFunction(value.fn))


_run = _run_interpreted if INTERPRETED else _run_on_gpu
