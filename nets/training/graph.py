"""A training step as a CUDA graph: recorded once, and replayed as one launch."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[..., Any]  # of tensors


def graph_step(step: Step, warmup: int = 3, stream: torch.cuda.Stream | None = None) -> Step:
    """A function that does what step does, by a CUDA graph once it has been called warmup times.

    step is a whole training step: forward, loss, backward, optimizer, autocast and GradScaler.  It
    takes CUDA tensors alone, and waits for nothing on the device.  It has to clear gradients to
    None; a learning rate that changes has to be a tensor, and the optimizer fused or capturable.

    The first shapes, dtypes and strides that come warmup times are recorded; others are run as
    ever.  What a replay returns is overwritten by the next.  All runs on one stream of its own, or
    on the one that is given, which the caller's waits for.  RuntimeError names what cannot be
    recorded.
    """
    return _GraphStep(step, warmup, stream or torch.cuda.Stream())


class _GraphStep:
    def __init__(self, step: Step, warmup: int, stream: torch.cuda.Stream) -> None:
        self.step, self.warmup, self.stream = step, warmup, stream
        self.seen: Counter[tuple] = Counter()
        self.recorded: tuple | None = None  # the kind of inputs that replay is for

    def __call__(self, *inputs: Tensor) -> Any:
        kind = tuple((x.shape, x.dtype, x.stride()) for x in inputs)
        self.seen[kind] += 1
        if self.recorded is None and self.seen[kind] > self.warmup:
            self.inputs = [x.clone() for x in inputs]
            try:
                self.replay, self.result = captured(self.step, self.inputs, self.stream)
            except RuntimeError as error:
                raise RuntimeError(
                    f"graph_step: the step cannot be recorded: {error}; run it without a graph"
                ) from error
            self.recorded = kind
        if kind != self.recorded:
            return on(self.stream, self.step, *inputs)
        for ours, given in zip(self.inputs, inputs, strict=True):
            ours.copy_(given)
        self.replay()
        return self.result


def captured(
    step: Step, inputs: list[Tensor], stream: torch.cuda.Stream
) -> tuple[Callable[[], None], Any]:
    """What replays step(*inputs), which does not run now, and what it will have returned."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = step(*inputs)
    return graph.replay, result


def on(stream: torch.cuda.Stream | None, step: Step, *inputs: Any) -> Any:
    """step(*inputs) on stream, if one is given, between what the current one did and will do."""
    if stream is None:
        return step(*inputs)
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = step(*inputs)
    current.wait_stream(stream)
    return result
