"""Compiling what the public operators launch, for a GPU that need not be there.

A launch is caught where the library starts its kernels, and compiled with the arguments, flags and
integer specialisations of the real call; nothing runs.
"""

import contextlib
import io
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import triton
import triton.language as tl
import tritonconv._launch
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from tritonconv.conv import tiles

# ptxas tells in its log alone what it spilled and serialised, and does not run for a cached kernel.
triton.knobs.nvidia.dump_ptxas_log = True
triton.knobs.compilation.always_compile = True


class Launch(NamedTuple):
    """A kernel and what the compiler made of it."""

    kernel: str
    tile: str  # 128x128x64 w8 s3
    warps: int
    registers: int
    spilled: int  # bytes
    shared: int  # bytes
    serialised: bool
    narrow_offsets: int  # of matrices' elements, in 32 bits where they should have 64
    cubin: bytes


class CompilationError(Exception):
    pass


class Target:
    """Triton's driver, as far as compiling needs one."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps its compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


def launches(call: Callable[[], None], capability: int) -> list[Launch]:
    """What call launches on sm_<capability>."""
    caught = []
    triton.runtime.driver.set_active(Target(capability))
    tiles.device_capability = lambda x: divmod(capability, 10)
    tritonconv._launch._run = lambda kernel, programs, args, outs, meta: caught.append(
        (kernel, args, meta)
    )
    call()
    return [_compile(*launch) for launch in caught]


_logs: dict[CompiledKernel, str] = {}  # ptxas's, for a process compiles each kernel once


def _compile(kernel: triton.JITFunction, args: tuple, meta: dict) -> Launch:
    """What kernel[grid](*args, **meta) would run."""
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            binary = kernel.warmup(*args, grid=(1,), **meta)
    except Exception as error:  # whatever the compiler raises is a finding
        raise CompilationError(f"{kernel.__name__}: {error}") from error
    ptxas = _logs.setdefault(binary, log.getvalue())
    arguments = dict(zip(kernel.arg_names, args, strict=False)) | meta
    return Launch(
        kernel=kernel.__name__,
        tile=_tile(arguments),
        warps=binary.metadata.num_warps,
        registers=int(re.search(r"Used (\d+) registers", ptxas)[1]),
        spilled=sum(map(int, re.findall(r"(\d+) bytes spill", ptxas))),
        shared=binary.metadata.shared,
        serialised="C7510" in ptxas or "C7515" in ptxas,
        narrow_offsets=_narrow_offsets(binary) if arguments.get("INDEX") == tl.int64 else 0,
        cubin=binary.asm["cubin"],
    )


def _narrow_offsets(binary: CompiledKernel) -> int:
    return len(re.findall(r"tt\.addptr .*, tensor<\d+x\d+xi32", binary.asm["ttir"]))


def _tile(arguments: dict) -> str:
    blocks = [value for name, value in arguments.items() if name.startswith("BLOCK")]
    if box := [value for name, value in arguments.items() if name.startswith("BOX")]:
        blocks.append(math.prod(box))
    stages = f" s{arguments['STAGES']}" if "STAGES" in arguments else ""
    return f"{'x'.join(map(str, blocks))} w{arguments.get('num_warps', 4)}{stages}"
