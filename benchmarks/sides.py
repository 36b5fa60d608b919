"""The calls that are compared: ours, torch's, and torch's compiled.

Each side turns a row and its tensors into a call without arguments that runs that row's pass and
nothing else, on the current stream, so that a CUDA graph can capture it.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
import tritonconv
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.nn import functional as F

from .cases import DTYPES, Row

Call = Callable[[], Tensor | tuple[Tensor, ...]]
ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, None: lambda y: y}


class Tensors(NamedTuple):
    x: Tensor
    w: Tensor | None
    b: Tensor | None
    dy: Tensor
    mean: Tensor | None  # this and the next three: of what is normalised
    var: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    residual: Tensor | None

    @property
    def norm(self) -> tuple[Tensor | None, ...]:
        return self.mean, self.var, self.scale, self.shift


Forward = Callable[[Tensors], Tensor]


def inputs(row: Row, device: str, filled: bool = True) -> Tensors:
    """Random normal inputs, the same in every run; a batch norm's in float32, as under autocast.

    filled: or with nothing in them, for who only wants to know what is launched.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = DTYPES[row.dtype]) -> Tensor:
        layout = row.case.layout if len(shape) == 4 else torch.contiguous_format
        made = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
        return made.normal_(generator=generator) if filled else made

    x_shape, w_shape, y_shape = row.case.x_shape, row.case.w_shape, row.case.y_shape
    x = normal(*x_shape)
    w = normal(*w_shape) if w_shape else None
    b = normal(w_shape[0]) if row.case.bias else None
    dy = normal(*y_shape)
    mean = var = scale = shift = None
    if row.case.normalises:
        mean, var, scale, shift = (normal(y_shape[1], dtype=torch.float32) for _ in range(4))
        var = (math.prod(w_shape[1:]) if w_shape else 1) * (0.5 + var.abs())  # near a batch's own
    residual = normal(*y_shape) if row.case.residual else None
    return Tensors(x, w, b, dy, mean, var, scale, shift, residual)


def ours(row: Row, t: Tensors) -> Call:
    return _pass(_operator(tritonconv, row), row, t)


def unfused(row: Row, t: Tensors) -> Call:
    """Our operators one by one, where there is a fused one."""
    return _pass(_composed(tritonconv, row), row, t)


def eager(row: Row, t: Tensors) -> Call:
    return _pass(_torchs(row), row, t)


def compiled(row: Row, t: Tensors) -> Call:
    torch.compiler.reset()  # it would stop compiling after a few of these
    # a backward that runs more than once must leave alone what the forward kept
    with functorch_config.patch(donated_buffer=False):
        call = _pass(torch.compile(_torchs(row), dynamic=False), row, t)
        call()
    return call


MAKE = {"ours": ours, "unfused": unfused, "eager": eager, "compile": compiled}


def expected(row: Row, t: Tensors) -> Tensor | tuple[Tensor, ...]:
    """torch's result in float64, contiguous."""
    exact = Tensors(*(None if a is None else a.double().contiguous() for a in t))
    return eager(row, exact)()


def _torchs(row: Row) -> Forward:
    fused = row.case.operator == "conv_bn_relu"
    return _composed(F, row) if fused else _operator(F, row)


def _operator(library: ModuleType, row: Row) -> Forward:
    """row's operator, library's function of that name."""
    case, training = row.case, row.direction != "inference"
    function, options = getattr(library, case.operator), case.options
    if case.operator == "batch_norm":
        return lambda t: function(t.x, *t.norm, training)
    if case.operator == "conv_bn_relu":
        options = {**options, "training": training, "activation": case.activation}
        return lambda t: function(t.x, t.w, t.b, *t.norm, residual=t.residual, **options)
    if case.w_shape is None:
        return lambda t: function(t.x, **options)
    return lambda t: function(t.x, t.w, t.b, **options)


def _composed(library: ModuleType, row: Row) -> Forward:
    """conv_bn_relu of library's functions."""
    options, training = row.case.options, row.direction != "inference"
    activation = ACTIVATIONS[row.case.activation]

    def forward(t: Tensors) -> Tensor:
        y = library.batch_norm(library.conv2d(t.x, t.w, t.b, **options), *t.norm, training)
        return activation(y if t.residual is None else y + t.residual)

    return forward


def _pass(forward: Forward, row: Row, t: Tensors) -> Call:
    """row's pass of what forward does; of a backward, the nodes of its autograd graph."""
    names = [name for name in _wanted(row) if getattr(t, name) is not None]
    leaves = {name: getattr(t, name).detach().requires_grad_() for name in names}
    t = t._replace(**leaves)
    if row.direction in ("forward", "inference"):
        return lambda: forward(t)
    y = forward(t)
    return lambda: _gradients(y, [*leaves.values()], t.dy)


def _wanted(row: Row) -> tuple[str, ...]:
    """Which tensors have a gradient."""
    if row.case.normalises and row.direction != "inference":
        return "x", "w", "b", "scale", "shift", "residual"
    return {"dgrad": ("x",), "wgrad": ("w",), "backward": ("x",)}.get(row.direction, ())


@torch.no_grad()
def _gradients(y: Tensor, leaves: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    """y's gradients for the leaves, of a graph in which no node's result is used twice.

    autograd's engine would run the nodes on the forward's stream, where no CUDA graph captures
    them.
    """
    found, todo = {}, [(y.grad_fn, dy)]
    while todo:
        node, given = todo.pop()
        if hasattr(node, "variable"):
            found[node.variable] = given
            continue
        run = getattr(node, "apply", node)  # of a Function written in Python, or of torch's own
        results = run(given, *(None for _ in node._input_metadata[1:]))
        results = (results,) if isinstance(results, Tensor) else results
        below = (follows for follows, _ in node.next_functions if follows is not None)
        todo += zip(below, (g for g in results if g is not None), strict=True)
    return tuple(found[leaf] for leaf in leaves)
