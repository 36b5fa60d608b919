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
from unittest import mock

import triton
import triton.language as tl
from triton.compiler import CompiledKernel
from tritonconv import _ahead, _launch
from tritonconv.conv import dispatch
from tritonconv.conv.problem import Problem

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
    limited: bool  # in registers
    narrow_offsets: int  # of matrices' elements, in 32 bits where they should have 64
    cubin: bytes


class CompilationError(Exception):
    pass


def launches(call: Callable[[], None], capability: int, family: str) -> list[Launch]:
    """What call launches on sm_<capability>, served by family, in each of its configurations.

    Of the general family only in the first: what a problem needs decides which of its tiles can be.
    """
    caught = []
    triton.runtime.driver.set_active(_ahead.Target(divmod(capability, 10)))

    def catch(kernel, programs, args, outs, meta) -> None:
        caught.append((kernel, args, meta))

    with _ahead.stubbed_launches(catch, divmod(capability, 10)):
        with dispatch.force_family(family):
            choices = _chosen(call, {})
        for p, guess in choices.items():
            if guess.family.name == family != "general":
                for config in guess.family.configs(p)[1:]:
                    other = guess._replace(config=config, call=guess.family.prepare(p, config))
                    _chosen(call, choices | {p: other})
    return list(dict.fromkeys(_compile(*launch) for launch in caught))


Choices = dict[Problem, dispatch.Choice]


def _chosen(call: Callable[[], None], given: Choices) -> Choices:
    """What serves each problem of call: what is given for it, or else the dispatcher's choice."""
    choices = {}

    def choose(p):
        choices[p] = given.get(p) or right(p)
        return choices[p]

    right = dispatch.choose
    dispatch.forget()
    with mock.patch.object(dispatch, "choose", choose):
        call()
    return choices


_logs: dict[CompiledKernel, str] = {}  # ptxas's, for a process compiles each kernel once


def _compile(kernel: triton.JITFunction, args: tuple, meta: dict) -> Launch:
    """What the library would run for this launch."""
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            binary = kernel.warmup(*args, grid=(1,), **meta, **_launch.COMPILED)
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
        limited="maxnreg" in meta,
        narrow_offsets=_narrow_offsets(binary) if arguments.get("INDEX") == tl.int64 else 0,
        cubin=binary.asm["cubin"],
    )


def _narrow_offsets(binary: CompiledKernel) -> int:
    return len(re.findall(r"tt\.addptr .*, tensor<\d+x\d+xi32", binary.asm["ttir"]))


def _tile(arguments: dict) -> str:
    blocks = [value for name, value in arguments.items() if name.startswith(("ROWS", "BLOCK"))]
    if "BLOCK_M" not in arguments and "BOX_N" in arguments:
        blocks.insert(0, math.prod(arguments.get(f"BOX_{axis}", 1) for axis in "NHW"))
    stages = f" s{arguments['STAGES']}" if "STAGES" in arguments else ""
    return f"{'x'.join(map(str, blocks))} w{arguments.get('num_warps', 4)}{stages}"
