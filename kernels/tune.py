"""python -m tritonconv.tune: finds the fastest kernels for a model's convolutions on this GPU.

Every convolution of the model, forward and backward, is timed in each configuration of each family
that serves it; each winner goes at once to a file in the user's cache folder, which all later runs
read.  An interrupted run keeps what it has found.
Convolutions alike in all but small differences of size are tuned as one.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable

import torch
import triton
from torch import nn
from triton.runtime.errors import OutOfResources

from ._common import empty_nhwc
from .conv import tuned
from .conv.dispatch import FAMILIES, convolve, force_family, forget, reduce
from .conv.epilogue import Epilogue
from .conv.problem import Problem
from .conv.tuned import Tuned
from .explain import explain

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def problems(function: Callable | nn.Module, *args) -> dict[str, Problem]:
    """The convolutions of function(*args) and its backward: of each key, the largest."""
    largest = {}
    choices = [launch.choice for launch in explain(function, *args) if launch.choice]
    for p in sorted((choice.problem for choice in choices), key=lambda p: (p.x, p.y)):
        largest[tuned.key(p)] = p
    return largest


def candidates(p: Problem) -> list[Tuned]:
    """All that may serve p, the heuristics' choice first."""
    return [
        Tuned(family.name, config)
        for family in FAMILIES[p.work]
        if family.declines(p) is None
        for config in family.configs(p)
    ]


def fastest(p: Problem, time: Callable[[Problem], float]) -> tuple[Tuned, dict[Tuned, float]]:
    """The candidate of least time, and the time of each; a tie keeps the heuristics' order."""
    times = {}
    for candidate in candidates(p):
        try:
            with force_family(*candidate):
                times[candidate] = time(p)
        except OutOfResources:
            continue  # made for GPUs with more shared memory
    return min(times, key=times.get), times


def milliseconds(p: Problem) -> float:
    """Median time on the GPU, from a cold cache."""
    x, w, y = (_random(shape, p.dtype) for shape in (p.x, p.w, p.y))
    how = torch.channels_last, p.geometry.flat
    calls = {
        "forward": lambda: convolve("forward", x, w, p.x, Epilogue(), False, *how),
        "dgrad": lambda: convolve("dgrad", y, w, p.x, Epilogue(), False, *how),
        "wgrad": lambda: reduce(y, x, p.w, *how),
    }
    return triton.testing.do_bench(calls[p.work], return_mode="median")


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    like = torch.empty(0, dtype=dtype, device="cuda")
    return empty_nhwc(shape, like).normal_()


def tune(
    function: Callable | nn.Module, *args, time: Callable[[Problem], float] = milliseconds
) -> dict[str, Tuned]:
    """Tunes the convolutions of function(*args) and its backward; writes and returns the winners.

    function: a module or an operator of tritonconv, as for explain(); its tensors are on the GPU.
    time: a problem's time under the family and configuration that are forced.
    """
    from tqdm import tqdm  # only who tunes needs it

    found = {}
    todo = problems(function, *args)
    with tqdm(todo.items(), unit="convolution", file=sys.stderr) as progress:
        for key, p in progress:
            progress.set_description(key)
            found[key], times = fastest(p, time)
            winner, first = found[key], next(iter(times))
            gain = times[first] / times[winner]
            tuned.add(p.gpu, {key: winner})
            progress.write(f"{key}: {winner.family} {winner.config}, {gain:.2f}x", sys.stdout)
    forget()
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tritonconv.tune", description=__doc__)
    parser.add_argument(
        "model",
        nargs="?",
        default="tritonconv.nets:resnet50",
        help="module:callable that makes it, without arguments",
    )
    parser.add_argument("--input", default="256,3,224,224", help="sizes of a batch of images")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--inference", action="store_true", help="leave the gradients out")
    parser.add_argument("--folder", help=f"where to write (default: {tuned.path().parent})")
    given = parser.parse_args(arguments)
    if given.folder:
        os.environ["TRITONCONV_CACHE"] = given.folder
    if not torch.cuda.is_available():
        print("tritonconv.tune: no CUDA device: there is nothing to tune", file=sys.stderr)
        return 1
    module, _, name = given.model.partition(":")
    if not name:
        parser.error(f"model must be module:callable, got {given.model!r}")
    model = getattr(importlib.import_module(module), name)()
    model = model.cuda().to(memory_format=torch.channels_last).train(not given.inference)
    x = torch.randn([int(size) for size in given.input.split(",")], device="cuda")
    x = x.contiguous(memory_format=torch.channels_last)
    dtype = DTYPES[given.dtype]
    with (
        torch.autocast("cuda", dtype, enabled=dtype != torch.float32),
        torch.set_grad_enabled(not given.inference),
    ):
        tune(model, x)
    print(f"written to {tuned.path()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
