"""The calls that are compared: ours, torch's, and torch's compiled.

Each side turns a row and its tensors into a call without arguments that runs that row's pass and
nothing else, on the current stream, so that a CUDA graph can capture it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import tritonconv
from torch import Tensor
from torch.nn import functional as F

from .cases import DTYPES, Row

aten = torch.ops.aten
Call = Callable[[], Tensor]


class Tensors(NamedTuple):
    x: Tensor
    w: Tensor | None
    b: Tensor | None
    dy: Tensor


def tensors(row: Row, device: str) -> Tensors:
    """Random normal inputs, the same in every run."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator, dtype=DTYPES[row.dtype], device=device)
        return made.contiguous(memory_format=row.case.layout) if len(shape) == 4 else made

    x_shape, w_shape = row.case.x_shape, row.case.w_shape
    return Tensors(
        x=normal(*x_shape),
        w=normal(*w_shape) if w_shape else None,
        b=normal(w_shape[0]) if row.case.bias else None,
        dy=normal(*row.case.y_shape),
    )


def ours(row: Row, t: Tensors) -> Call:
    """The public function; for a backward, its node in the autograd graph, run by itself."""
    function = getattr(tritonconv, row.case.operator)
    if row.direction == "forward":
        return _forward(function, row, t)
    name = "w" if row.direction == "wgrad" else "x"
    leaf = getattr(t, name).detach().requires_grad_()
    node = _forward(function, row, t._replace(**{name: leaf}))().grad_fn
    dys = (t.dy, None) if row.case.operator == "max_pool2d" else (t.dy,)
    return lambda: next(gradient for gradient in node.apply(*dys) if gradient is not None)


def eager(row: Row, t: Tensors) -> Call:
    """torch's operator; for a backward, the one that its autograd would call."""
    if row.direction == "forward":
        return _forward(getattr(F, row.case.operator), row, t)
    (x, w, _, dy), options = t, row.case.options
    if row.case.operator == "conv2d":
        wanted = [row.direction == "dgrad", row.direction == "wgrad", False]
        moves = options["stride"], options["padding"], options["dilation"]
        rest = (False, [0, 0], options["groups"], wanted)
        at = wanted.index(True)
        return lambda: aten.convolution_backward(dy, x, w, None, *moves, *rest)[at]
    if row.case.operator == "adaptive_avg_pool2d":
        if options["output_size"] == 1:  # torch takes the mean
            return lambda: dy.expand(x.shape) / (x.shape[2] * x.shape[3])
        return lambda: aten._adaptive_avg_pool2d_backward(dy, x)
    size = options["kernel_size"]
    window = [[n, n] for n in (size, options.get("stride", size), options.get("padding", 0))]
    if row.case.operator == "avg_pool2d":
        return lambda: aten.avg_pool2d_backward(dy, x, *window, False, True, None)
    _, indices = F.max_pool2d(x, **options, return_indices=True)
    return lambda: aten.max_pool2d_with_indices_backward(dy, x, *window, [1, 1], False, indices)


def compiled(row: Row, t: Tensors) -> Call:
    torch.compiler.reset()  # it would stop compiling after a few of these
    return torch.compile(eager(row, t), dynamic=False)


def expected(row: Row, t: Tensors) -> Tensor:
    """torch's result in float64, contiguous."""
    exact = Tensors(*(None if a is None else a.double().contiguous() for a in t))
    return eager(row, exact)()


def _forward(function: Callable, row: Row, t: Tensors) -> Call:
    (x, w, b, _), options = t, row.case.options
    if w is None:
        return lambda: function(x, **options)
    return lambda: function(x, w, b, **options)
