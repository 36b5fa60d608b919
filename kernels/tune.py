"""python -m tritonconv.tune: finds the fastest kernels for a model's convolutions on this GPU.

Every convolution of the model, forward and backward, is timed in each configuration of each family
that serves it, while other processes compile those that follow; each winner goes at once to a file
in the user's cache folder, which all later runs read.  An interrupted run keeps what it has found.
Convolutions alike in all but small differences of size are tuned as one.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import wait

import torch
import triton
from torch import nn
from triton.runtime.errors import OutOfResources

from ._ahead import ENVIRONMENT, kernels
from ._common import empty_nhwc
from ._launch import INTERPRETED
from ._workers import Workers
from .conv import tuned
from .conv.dispatch import FAMILIES, Choice, convolved, forget, reduced
from .conv.epilogue import Epilogue
from .conv.problem import Problem
from .conv.tuned import Tuned
from .explain import explain

MOST_PROCESSES = 32
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
        Choice(p, family, config, family.prepare(p, config))
        for family in FAMILIES[p.work]
        if family.declines(p) is None
        for config in family.configs(p)
    ]


def fastest(
    choices: list[Choice], time: Callable[[Choice], float]
) -> tuple[Tuned, dict[Tuned, float]]:
    """That of least time, and the time of each; a tie keeps their order."""
    times = {}
    for choice in choices:
        try:
            times[choice.tuned] = time(choice)
        except OutOfResources:
            continue  # made for GPUs with more shared memory
    return min(times, key=times.get), times


def milliseconds(choice: Choice) -> float:
    """Median time on the GPU, from a cold cache."""
    p = choice.problem
    x, w, y = (tensor.normal_() for tensor in operands(p, "cuda"))
    return triton.testing.do_bench(lambda: run(choice, x, w, y), return_mode="median")


def operands(p: Problem, device: str) -> list[torch.Tensor]:
    """x, w and y, or their gradients, with nothing in them."""
    like = torch.empty(0, dtype=p.dtype, device=device)
    return [empty_nhwc(shape, like) for shape in (p.x, p.w, p.y)]


def run(
    choice: Choice, x: torch.Tensor, w: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The choice's pass of these: y, or of a gradient dy; and its statistics if they are wanted."""
    p = choice.problem
    if p.work == "wgrad":
        return reduced(choice, y, x, torch.channels_last), None
    source = x if p.work == "forward" else y
    return convolved(choice, source, w, Epilogue(), p.statistics, torch.channels_last)


def processes() -> int:
    """How many compile beside this one: one for each other core that it may use."""
    return min(max(len(os.sched_getaffinity(0)) - 1, 1), MOST_PROCESSES)


def compile_choice(p: Problem, candidate: Tuned) -> None:
    """For a process that compiles ahead of launches."""
    (choice,) = (choice for choice in candidates(p) if choice.tuned == candidate)
    for kernel in kernels(lambda: run(choice, *operands(p, "cpu")), p.capability, p.gpu):
        kernel.compile(p.capability)


def tune(
    function: Callable | nn.Module, *args, time: Callable[[Choice], float] = milliseconds
) -> dict[str, Tuned]:
    """Tunes the convolutions of function(*args) and its backward; writes and returns the winners.

    function: a module or an operator of tritonconv, as for explain(); its tensors are on the GPU.
    time: that of a kernel, as chosen for its problem.
    """
    from tqdm import tqdm  # only who tunes needs it

    found = {}
    todo = {key: candidates(p) for key, p in problems(function, *args).items()}
    with (
        Workers(processes(), **ENVIRONMENT) as workers,
        tqdm(todo.items(), unit="convolution", file=sys.stderr) as progress,
    ):
        # what does not compile there does not here, where it is told
        compiled = {
            key: [workers.submit(compile_choice, c.problem, c.tuned) for c in choices]
            for key, choices in todo.items()
            if not INTERPRETED
        }
        for key, choices in progress:
            progress.set_description(key)
            wait(compiled.get(key, ()))
            found[key], times = fastest(choices, time)
            p, winner, first = choices[0].problem, found[key], next(iter(times))
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
