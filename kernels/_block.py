"""The units and blocks of a chain, and what they give.

A block is units one after another.  Its input x is z_0, and

    c_i = conv_i(z_{i-1}) + bias_i,  z_i = act_i(norm_i(c_i)),  y = act_k(norm_k(c_k) + shortcut)

where the shortcut is nothing, x, a given tensor, or x through a unit of its own without an
activation.  A batch's statistics come from its convolution's epilogue.  Kept for the backward are
each c_i with its mean and variance; each z_i is computed again.

A bare unit has no norm.  Where its result tells the gradient of act_i, the convolution's epilogue
gives z_i, and that is kept in the place of c_i.  The first unit may have no convolution, and c_1 is
x then.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._common import nhwc
from .conv.dgrad import conv2d_dgrad, conv2d_dgrad_fused, conv2d_dgrad_stats
from .conv.dispatch import convolve, convolve_normalised
from .conv.epilogue import Epilogue
from .conv.forward import (
    conv2d_forward,
    conv2d_fused,
    conv2d_normalised_stats,
    conv2d_stats,
)
from .conv.geometry import Geometry
from .norm.activation import told
from .norm.normalise import NO_RESIDUAL
from .norm.normalise import batch_norm as normalise
from .norm.stats import Running, batch_norm_stats, statistics

INSIDE = torch.channels_last  # the memory format of everything between a chain's input and output


class Unit(NamedTuple):
    """How a convolution moves, and what becomes of its result."""

    geometry: Geometry | None  # None without a convolution
    size: tuple[int, int] | None  # [OH, OW] of a transposed convolution
    w_format: torch.memory_format
    norm: str  # none; given: with statistics that are; batch: with the batch's own
    eps: float
    activation: str

    @property
    def of_batch(self) -> bool:
        return self.norm == "batch"

    @property
    def direct(self) -> bool:
        """Whether the convolution's epilogue gives what the activation does."""
        return self.norm == "none" and told(self.activation)

    def y_shape(self, x_shape: Sequence[int], w_shape: Sequence[int]) -> Sequence[int]:
        if self.geometry is None:
            return x_shape
        if self.size is None:
            return self.geometry.y_shape(x_shape, w_shape)
        return [x_shape[0], w_shape[1] * self.geometry.groups, *self.size]


class Block(NamedTuple):
    units: tuple[Unit, ...]
    shortcut: str  # none, identity, given or unit: then the last of units is it
    x_format: torch.memory_format
    y_format: torch.memory_format

    add = staticmethod(operator.add)

    @property
    def gated(self) -> bool:
        """Whether it is y that tells the last activation's gradient."""
        last = main_units(self)[-1]
        return last.activation != "none" and (self.shortcut != "none" or last.direct)


def main_units(block) -> tuple:
    """The units of a block that follow one another: all but its shortcut's."""
    return block.units[:-1] if block.shortcut == "unit" else block.units


class Tensors(NamedTuple):
    """Of a unit; mean and var are those to normalise with, unless they are the batch's."""

    w: Any = None
    bias: Any = None
    scale: Any = None
    shift: Any = None
    mean: Any = None
    var: Any = None


def by_unit(flat: Sequence) -> list[Tensors]:
    """What there is six of for each unit, by unit."""
    width = len(Tensors._fields)
    return [Tensors(*flat[i : i + width]) for i in range(0, len(flat), width)]


def cast(tensors: Sequence[Tensors], x: Tensor) -> list[Tensors]:
    """With convolutions' tensors in x's dtype; as they are, where they have it."""
    others = [t for unit in tensors for t in unit[:2] if t is not None and t.dtype != x.dtype]
    if not others:
        return list(tensors)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        found = [t.to(x.dtype) for t in others]
    else:  # all in one launch
        found = [torch.empty_like(t, dtype=x.dtype) for t in others]
        torch._foreach_copy_(found, others)
    made = dict(zip(map(id, others), found, strict=True))
    return [
        t._replace(w=made.get(id(t.w), t.w), bias=made.get(id(t.bias), t.bias)) for t in tensors
    ]


class Kept(NamedTuple):
    """A unit, and what its backward needs."""

    unit: Unit
    tensors: Tensors
    given: Tensors  # the same as they were given, whose gradients have their dtypes
    needs: Tensors  # which of them need one
    c: Tensor | None  # None where the block's output stands for it
    stats: Tensor | None  # [mean, var] of the batch

    @property
    def norm(self) -> tuple:
        """mean, variance, scale, shift and eps."""
        _, _, scale, shift, mean, var = self.tensors
        if self.stats is not None:
            mean, var = self.stats.unbind()
        return mean, var, scale, shift, self.unit.eps

    def z(self) -> Tensor:
        if self.unit.direct:
            return self.c
        return normalise(self.c, *self.norm, *NO_RESIDUAL, self.unit.activation, INSIDE)


def infer(block: Block, x: Tensor, residual: Tensor | None, tensors: list[Tensors]) -> Tensor:
    if block.shortcut == "identity":
        residual = x
    elif block.shortcut == "unit":
        residual = _fused(block.units[-1], x, tensors[-1], None, INSIDE)
    *inner, (last, last_tensors) = zip(main_units(block), tensors, strict=False)
    for unit, t in inner:
        x = _fused(unit, x, t, None, INSIDE)
    return _fused(last, x, last_tensors, residual, block.y_format)


def _fused(unit: Unit, x: Tensor, t: Tensors, residual: Tensor | None, memory_format) -> Tensor:
    if unit.geometry is None:
        shortcut = residual, *NO_RESIDUAL[1:]
        norm = t.mean, t.var, t.scale, t.shift, unit.eps
        return normalise(x, *norm, *shortcut, unit.activation, memory_format)
    end = (t.bias, t.mean, t.var, t.scale, t.shift, residual, None, unit.eps, unit.activation)
    if unit.size is None:
        return conv2d_fused(x, t.w, *end, memory_format, unit.geometry.flat)
    shape = unit.y_shape(x.shape, t.w.shape)
    return conv2d_dgrad_fused(x, t.w, *end, shape, memory_format, unit.geometry.flat)


def _convolve(
    unit: Unit, x: Tensor, t: Tensors, running: Running | None
) -> tuple[Tensor, Tensor | None]:
    """The convolution and, where they are to be the batch's, its statistics, which move running."""
    if unit.geometry is None:
        x = nhwc(x)
        if not unit.of_batch:
            return x, None
        return x, batch_norm_stats(x) if running is None else statistics(x, running)
    shape = x.shape if unit.size is None else unit.y_shape(x.shape, t.w.shape)
    if running is not None:  # past the ops, which have no part in what is running
        work = "forward" if unit.size is None else "dgrad"
        end = Epilogue(t.bias)
        return convolve(work, x, t.w, shape, end, True, INSIDE, unit.geometry.flat, running)
    if unit.size is None:
        if unit.of_batch:
            return conv2d_stats(x, t.w, t.bias, INSIDE, unit.geometry.flat)
        return conv2d_forward(x, t.w, t.bias, INSIDE, unit.geometry.flat), None
    if unit.of_batch:
        return conv2d_dgrad_stats(x, t.w, t.bias, shape, INSIDE, unit.geometry.flat)
    return conv2d_dgrad(x, t.w, t.bias, shape, INSIDE, unit.geometry.flat), None


def _follow(
    unit: Unit, x: Tensor, below: Kept | None, t: Tensors, running: Running | None
) -> tuple[Tensor, Tensor | None]:
    """_convolve of x, or of what the unit below gives; where it may be, that is made on the way."""
    if below is None:
        return _convolve(unit, x, t, running)
    on_the_way = (
        unit.of_batch
        and below.unit.norm != "none"
        and unit.geometry is not None
        and unit.size is None
        and t.w.shape[2:] == (1, 1)
    )
    if not on_the_way:
        return _convolve(unit, below.z(), t, running)
    given = below.c, *below.norm, below.unit.activation
    if running is None:
        return conv2d_normalised_stats(*given, t.w, t.bias, INSIDE, unit.geometry.flat)
    c, *norm, activation = given
    how = t.w, t.bias, INSIDE, unit.geometry.flat, running
    return convolve_normalised(c, norm, activation, *how)


def forward(
    block: Block,
    x: Tensor,
    residual: Tensor | None,
    tensors: list[Tensors],
    running: list[Running | None],
) -> tuple[Tensor, list[Kept]]:
    kept, side = [], []
    if block.shortcut == "unit":
        unit, t = block.units[-1], tensors[-1]
        side.append(Kept(unit, t, t, Tensors(), *_convolve(unit, x, t, running[-1])))
    *inner, last = zip(main_units(block), tensors, running, strict=False)
    below = None
    for unit, t, r in inner:
        if unit.direct:
            c, stats = _fused(unit, x if below is None else below.z(), t, None, INSIDE), None
        else:
            c, stats = _follow(unit, x, below, t, r)
        below = Kept(unit, t, t, Tensors(), c, stats)
        kept.append(below)
    unit, t, r = last
    if unit.direct and (not side or side[0].unit.norm == "none"):
        z = x if below is None else below.z()
        shortcut = side[0].c if side else x if block.shortcut == "identity" else residual
        kept.append(Kept(unit, t, t, Tensors(), None, None))
        return _fused(unit, z, t, shortcut, block.y_format), kept + side
    kept.append(Kept(unit, t, t, Tensors(), *_follow(unit, x, below, t, r)))
    kept += side
    return output(block, kept, x, residual), kept


def output(block: Block, kept: list[Kept], x: Tensor, residual: Tensor | None) -> Tensor:
    """The block's output, from what its convolutions gave."""
    last, shortcut = kept[len(main_units(block)) - 1], NO_RESIDUAL
    if block.shortcut == "unit":
        shortcut = kept[-1].c, *kept[-1].norm
    elif block.shortcut != "none":
        shortcut = (x if block.shortcut == "identity" else residual), *NO_RESIDUAL[1:]
    return normalise(last.c, *last.norm, *shortcut, last.unit.activation, block.y_format)
