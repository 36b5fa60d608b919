"""The GPU: its time, its cold cache, its graphs, its memory, and its name."""

import datetime
import functools
import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable

import torch
import triton
from torch.profiler import ProfilerActivity, profile

DEVICE = "cuda"
NO_GPU = "device times are taken on a GPU, and this machine has none"
COMMIT = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
FLUSHED = 2**30  # bytes


def gpu() -> tuple[tuple[int, int], str]:
    """Its capability and its name."""
    return torch.cuda.get_device_capability(), torch.cuda.get_device_name()


class Moment:
    """A point in the stream's work; the difference of two is seconds of the device's time."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: "Moment") -> float:
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1e3


def now() -> Moment:
    """pytest-benchmark's timer."""
    return Moment()


@functools.cache
def _flushed() -> torch.Tensor:
    return torch.empty(FLUSHED, dtype=torch.int8, device=DEVICE)


def flush() -> None:
    """Empties the L2 cache, and keeps the device busy while the host prepares the next launch."""
    _flushed().zero_()


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """call as the replay of a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def graphed_callables(model: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """model, whose forward and backward are replays of CUDA graphs for inputs like x."""
    return torch.cuda.make_graphed_callables(model, (x,))


def times(call: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of the device, one a round, the L2 cache cold before each, after two that warm up."""
    for _ in range(2):
        call()
    moments = []
    for _ in range(rounds):
        flush()
        start = now()
        call()
        moments.append((start, now()))
    return [end - start for start, end in moments]


def host_seconds(call: Callable[[], object], rounds: int) -> float:
    """Of the CPU, until a call returns."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    seconds = (time.perf_counter() - start) / rounds
    torch.cuda.synchronize()
    return seconds


def kernels(call: Callable[[], object]) -> dict[str, tuple[int, float]]:
    """How often each kernel runs in a call, and for how many microseconds; the longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    found = {event.key: (event.count, event.device_time_total) for event in profiler.key_averages()}
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def free_memory() -> None:
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that call holds at a time, result and workspaces, its inputs not counted."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def machine() -> dict[str, str]:
    """What a results file says of where it was made."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU",
        "capability": "{}.{}".format(*torch.cuda.get_device_capability()) if gpu else "none",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cudnn": str(torch.backends.cudnn.version()),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "commit": os.environ.get("COMMIT") or _output(*COMMIT),
    }


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip().partition("\n")[0]
