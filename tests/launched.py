"""What Triton launched on the stub GPU (tests/stub), kernel by kernel and byte by byte."""

import ctypes
import functools
import gc
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import tritonconv
from triton.runtime.jit import JITFunction
from tritonconv import _launch, _plan

LOGGED, PARAMETERS, BYTES = 4096, 64, 2048  # as in cuda.c
SIZES = {"i1": 1, "i8": 1, "i32": 4, "i64": 8, "u64": 8, "fp32": 4, "fp64": 8}


class Logged(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_ulong),
        *((name, ctypes.c_uint) for name in ("grid", "block", "shared", "attributes")),
        ("stream", ctypes.c_ulong),
        ("bytes", ctypes.c_uint),
        ("parameters", ctypes.c_ubyte * BYTES),
    )


class Launched(NamedTuple):
    function: int
    grid: int
    block: int
    shared: int
    attributes: int
    stream: int
    parameters: bytes


@functools.cache
def stub() -> ctypes.CDLL | None:
    """The stub driver, if that is this process's."""
    if _launch.INTERPRETED or "(stub)" not in torch.cuda.get_device_name(0):
        return None
    return ctypes.CDLL("libcuda.so.1")


on_gpu = pytest.mark.skipif(_launch.INTERPRETED, reason="the interpreter prepares no launches")
on_stub = pytest.mark.skipif(
    stub() is None, reason="only the stub GPU logs launches: make test-stub"
)
of_numbers = pytest.mark.skipif(stub() is not None, reason="the stub computes nothing")


def launched(call: Callable[[], object]) -> list[Launched]:
    """What call launches; the parameters of kernels that are known when it starts.

    Memory is allocated at the same addresses in a second call.
    """
    _describe_kernels()
    gc.collect()
    count = ctypes.c_ulong.in_dll(stub(), "stub_launches")
    log = (Logged * LOGGED).in_dll(stub(), "stub_log")
    first = count.value
    call()
    entries = [log[i % LOGGED] for i in range(first, count.value)]
    assert len(entries) <= LOGGED
    return [
        Launched(
            *(getattr(e, name) for name in Launched._fields[:-1]), bytes(e.parameters[: e.bytes])
        )
        for e in entries
    ]


def torchs() -> tuple[int, int]:
    """How many kernels and copies torch has started so far."""
    runtime = ctypes.CDLL("libcudart.so.13")
    kernels, copies = (
        ctypes.c_ulong.in_dll(runtime, name).value for name in ("stub_kernels", "stub_copies")
    )
    return kernels, copies


def jit_functions() -> list[JITFunction]:
    modules = [m for name, m in sys.modules.items() if name.startswith(tritonconv.__name__)]
    return [f for m in modules for f in vars(m).values() if isinstance(f, JITFunction)]


def _describe_kernels() -> None:
    layouts = (ctypes.c_uint * PARAMETERS * 4096).in_dll(stub(), "stub_layouts")
    for kernel in jit_functions():
        for cached in list(kernel.device_caches.values()):
            for compiled in cached[0].values():
                if compiled.function is not None:
                    sizes = _sizes(compiled.src.signature.values())
                    layouts[compiled.function][: len(sizes)] = sizes


def _sizes(signature) -> list[int]:
    sizes = []
    for kind in signature:
        if kind[0] == "*":
            sizes.append(8)
        elif kind.startswith("tensordesc"):  # the map, sizes and strides
            rank = re.search(r"\[(.*?)\]", kind)[1].count(",") + 1
            sizes += [128, *(4,) * rank, *(8,) * rank]
        elif kind != "constexpr":
            sizes.append(SIZES[kind])
    return sizes


def triton_runs(monkeypatch) -> list[JITFunction]:
    """The kernels that Triton itself starts from here on, in order."""
    seen, run = [], JITFunction.run

    def counted(kernel, *args, **kwargs):
        seen.append(kernel)
        return run(kernel, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "run", counted)
    return seen


def repeats(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether they are equal; the stub's numbers are nobody's."""
    return torch.equal(a, b) or stub() is not None


def by_triton(monkeypatch) -> None:
    """Every launch goes Triton's own way."""
    for module in (_launch, _plan):
        monkeypatch.setattr(module, "stream_of", lambda index: None)
