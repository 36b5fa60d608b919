"""Convolutions, each with a batch norm and an activation, as one differentiable operation.

A block is units one after another.  Its input x is z_0, and

    c_i = conv_i(z_{i-1}) + bias_i,  z_i = act_i(norm_i(c_i)),  y = act_k(norm_k(c_k) + shortcut)

where the shortcut is nothing, x, a given tensor, or x through a unit of its own without an
activation.  A chain is blocks one after another.  A batch's statistics come from its convolution's
epilogue.  Kept for the backward are x, each c_i with its mean and variance, and the blocks' outputs
(or none of these, if they are to be computed again); each z_i is computed again, by the pass that
takes the sums for norm_i's gradient.

A bare unit has no norm.  Where its result tells the gradient of act_i, the convolution's epilogue
gives z_i, and that is kept in the place of c_i.  The first unit may have no convolution, and c_1 is
x then.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._common import apply, autocast_dtype, layout, nhwc
from ._plan import plannable, planned, written
from ._remembered import Remembered
from ._signature import signature
from .batch_norm import NO_RESIDUAL, batch_norm
from .conv.dbias import conv2d_dbias
from .conv.dgrad import conv2d_dgrad, conv2d_dgrad_fused, conv2d_dgrad_stats
from .conv.dispatch import convolve, depends_on
from .conv.epilogue import Epilogue
from .conv.forward import conv2d_forward, conv2d_fused, conv2d_stats
from .conv.geometry import Formats, Geometry
from .conv.wgrad import conv2d_wgrad
from .conv2d import Conv2dDgradFunction, Conv2dFunction
from .norm.activation import activate, gates, passed_back, told
from .norm.backward import (
    batch_norm_bwd,
    batch_norm_bwd_and_g,
    batch_norm_g,
    batch_norm_sums,
    batch_norm_sums_and_g,
    batch_norm_sums_and_y,
)
from .norm.normalise import batch_norm as normalise
from .norm.stats import Running, batch_norm_stats, statistics

INSIDE = torch.channels_last  # the memory format of everything between a chain's input and output
NO_NORM = (None, None, None, None)  # mean, variance, scale and shift
SEGMENT = 4  # blocks whose outputs are computed again at once


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


class Chain:
    """Blocks one after another; with recompute their outputs are not kept for the backward.

    One that is remembered holds the plans of its passes: all that they depend on was the same when
    it was found, but for the gradients that come.
    """

    def __init__(
        self,
        blocks: tuple[Block, ...],
        values: Sequence[int],  # a channel's, where a unit normalises with the batch's statistics
        recompute: bool = False,
        remembered: bool = False,
        momenta: Sequence[float | None] = (),  # of the same, for what is running
    ) -> None:
        self.inferred = blocks
        # what follows a shortcut and does not gate is apart where there may be gradients
        *before, last = blocks
        *inner, end = main_units(last)
        self.behind = "none"
        if last.shortcut != "none" and not gates(end.activation):
            self.behind = end.activation
            units = *inner, end._replace(activation="none"), *last.units[len(inner) + 1 :]
            blocks = *before, last._replace(units=units)
        self.blocks, self.values, self.momenta = blocks, values, momenta
        self.recompute = recompute and all(u.norm != "none" for b in blocks for u in b.units)
        self.units = [unit for block in blocks for unit in block.units]
        self.of_batch = any(unit.of_batch for unit in self.units)
        self.plans = Remembered(MOST_PLANS) if remembered else None

    def run(
        self,
        name: str,
        x: Tensor,
        residual: Tensor | None,
        tensors: Sequence[Tensors],
        running: Sequence[Tensor | None] = (),
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The last block's output, and [mean, var] of each unit that normalises with the batch's.

        running: of each of these what it moves, mean, variance and number of batches; or nothing.

        Convolutions' tensors may have another dtype than x: it is x's that they are used in.  Where
        nothing needs a gradient and all statistics are given, each convolution is one kernel.
        """
        flat = [t for unit in tensors for t in unit]
        if self.of_batch or needs_gradient(x, residual, *flat):
            y, *stats = apply(name, ChainFunction, self, running, x, residual, *flat)
            return activate(y, self.behind), tuple(stats)
        (y,) = self.passed("infer", functools.partial(_infer, self), x, residual, *flat)
        return y, ()

    def running(self, moved: Sequence[Tensor | None]) -> list[Running | None]:
        """Of each unit what it moves, if anything."""
        left = iter(_threes(moved))
        momenta = iter(self.momenta)
        return [
            Running(*next(left), next(momenta)) if moved and unit.of_batch else None
            for unit in self.units
        ]

    def passed(self, key: Any, function: Callable, *tensors: Tensor | None) -> tuple:
        """function(*tensors), by its plan if there is one under this key."""
        if self.plans is None or key is None or not plannable():
            return function(*tensors)
        return planned(self.plans, key, function, tensors)


CHAINS = Remembered(1024)  # by chain_key; None where modules have to be called one by one


def remembered(key: tuple | None, make: Callable[[], Chain | None]) -> Chain | None:
    """The chain of this key, made where there is none; without a key made for this call alone."""
    if key is None:
        return make()
    chain = CHAINS.get(key, CHAINS)
    return CHAINS.add(key, make()) if chain is CHAINS else chain


def chain_key(options: tuple, x: Tensor, *others: Tensor | None) -> tuple | None:
    """All that a chain of these options and tensors, and its passes, depend on; None if on more."""
    found = signature(x.shape, (x, *others))
    if found is None:
        return None
    cast = autocast_dtype(x)
    key = *options, found, *depends_on(x), cast, torch.is_grad_enabled()
    try:
        hash(key)
    except TypeError:  # an option that is a list, say
        return None
    return key


MOST_PLANS = 16  # of a chain: one forward, and a backward for each set of gradients wanted


def needs_gradient(*given: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)


def _cast(tensors: Sequence[Tensors], x: Tensor) -> list[Tensors]:
    """With convolutions' tensors in x's dtype; as they are, where they have it."""
    others = [t for unit in tensors for t in unit[:2] if t is not None and t.dtype != x.dtype]
    if not others:
        return list(tensors)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        cast = [t.to(x.dtype) for t in others]
    else:  # all in one launch
        cast = [torch.empty_like(t, dtype=x.dtype) for t in others]
        torch._foreach_copy_(cast, others)
    made = dict(zip(map(id, others), cast, strict=True))
    return [
        t._replace(w=made.get(id(t.w), t.w), bias=made.get(id(t.bias), t.bias)) for t in tensors
    ]


def _by_block(blocks: tuple[Block, ...], per_unit: Sequence) -> list[tuple[Block, list]]:
    """Each block, with its own share of what there is one of for each unit."""
    per_unit = list(per_unit)
    shares = []
    for block in blocks:
        shares.append((block, per_unit[: len(block.units)]))
        per_unit = per_unit[len(block.units) :]
    return shares


def _infer(chain: Chain, x: Tensor, residual: Tensor | None, *flat: Tensor | None) -> tuple:
    for block, tensors in _by_block(chain.inferred, _cast(_tensors(flat), x)):
        x = _infer_block(block, x, residual, tensors)
    return (x,)


def _infer_block(
    block: Block, x: Tensor, residual: Tensor | None, tensors: list[Tensors]
) -> Tensor:
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


def _x_gradient(
    kept: Kept, dc, x_shape, memory_format, residual=None, gate=None, activation="none"
) -> Tensor:
    """Of kept's convolution: plus residual, or all of it, as activation passes back by gate."""
    unit, w = kept.unit, kept.tensors.w
    end = (None, *NO_NORM, residual, gate, 0.0, activation)
    if unit.size is not None:
        return conv2d_fused(dc, w, *end, memory_format, unit.geometry.flat)
    return conv2d_dgrad_fused(dc, w, *end, x_shape, memory_format, unit.geometry.flat)


def _w_gradient(kept: Kept, dc: Tensor, x: Tensor) -> Tensor:
    unit, w = kept.unit, kept.given.w
    dy, x = (dc, x) if unit.size is None else (x, dc)
    return conv2d_wgrad(dy, x, w.shape, unit.w_format, unit.geometry.flat, w.dtype)


def _forward(
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
    z = x
    for unit, t, r in inner:
        if unit.direct:
            c, stats = _fused(unit, z, t, None, INSIDE), None
        else:
            c, stats = _convolve(unit, z, t, r)
        kept.append(Kept(unit, t, t, Tensors(), c, stats))
        z = kept[-1].z()
    unit, t, r = last
    if unit.direct and (not side or side[0].unit.norm == "none"):
        shortcut = side[0].c if side else x if block.shortcut == "identity" else residual
        kept.append(Kept(unit, t, t, Tensors(), None, None))
        return _fused(unit, z, t, shortcut, block.y_format), kept + side
    kept.append(Kept(unit, t, t, Tensors(), *_convolve(unit, z, t, r)))
    kept += side
    return _output(block, kept, x, residual), kept


def _output(block: Block, kept: list[Kept], x: Tensor, residual: Tensor | None) -> Tensor:
    """The block's output, from what its convolutions gave."""
    last, shortcut = kept[len(main_units(block)) - 1], NO_RESIDUAL
    if block.shortcut == "unit":
        shortcut = kept[-1].c, *kept[-1].norm
    elif block.shortcut != "none":
        shortcut = (x if block.shortcut == "identity" else residual), *NO_RESIDUAL[1:]
    return normalise(last.c, *last.norm, *shortcut, last.unit.activation, block.y_format)


def _norm_backward(
    kept: Kept,
    dz: Tensor,
    activation: str,
    gate: Tensor | None,
    needs_dc: bool,
    needs_z: bool = False,
    needs_g: bool = False,
) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None, Tensor | None]:
    """From the gradient of act(norm(c) + ...): those of scale and shift, of c, and z if wanted; and
    the gradient of what is added, where that is wanted and a gate given."""
    norm = *kept.norm, activation
    needs_scale, needs_shift = kept.needs.scale, kept.needs.shift
    sums = z = dc = g = None
    if needs_scale or needs_shift or (needs_dc and kept.unit.of_batch):
        if needs_z:
            sums, z = batch_norm_sums_and_y(dz, kept.c, *norm)
        elif needs_g:
            sums, g = batch_norm_sums_and_g(dz, kept.c, *norm, gate)
            dz, norm, gate = g, (*kept.norm, "none"), None
        else:
            sums = batch_norm_sums(dz, kept.c, *norm, gate)
    elif needs_z:
        z = kept.z()
    if needs_dc and needs_g and g is None:
        dc, g = batch_norm_bwd_and_g(dz, kept.c, *norm, gate)
    elif needs_dc:
        of_c = sums if kept.unit.of_batch else None
        dc = batch_norm_bwd(dz, kept.c, *norm, gate, of_c, INSIDE)
    gradients = {}
    if needs_scale:
        gradients["scale"] = sums[1].to(kept.given.scale.dtype)
    if needs_shift:
        gradients["shift"] = sums[0].to(kept.given.shift.dtype)
    return gradients, dc, z, g


def _bare_backward(
    kept: Kept, dz: Tensor, activation: str, result: Tensor | None
) -> tuple[dict[str, Tensor], Tensor]:
    """From the gradient of act(c + ...): those of the bias and of c, as whose result there may be
    one that tells."""
    needs_bias = kept.needs.bias
    # where the result tells, the argument is not read for anything that is used
    how = (kept.c if result is None else dz), *NO_NORM, 0.0, activation, result
    if activation == "none":
        dc, dbias = dz, conv2d_dbias(dz) if needs_bias else None
    elif needs_bias:
        sums, dc = batch_norm_sums_and_g(dz, *how)
        dbias = sums[0]
    else:
        dc = batch_norm_bwd(dz, *how, None, INSIDE)
    return ({"bias": dbias.to(kept.given.bias.dtype)} if needs_bias else {}), dc


def _backward(
    block: Block,
    kept: list[Kept],
    x: Tensor,
    y: Tensor | None,
    dy: Tensor,
    needs_dx: bool,
    needs_g: bool,
) -> tuple[Tensor | None, list[Tensors], Tensor | None]:
    """dx and the gradients of each unit's tensors; y is given where it is the gate.  Last dy where
    that is open, if wanted: the gradient of a given residual."""
    main = kept[: len(main_units(block))]
    activation = main[-1].unit.activation
    found = [{} for _ in kept]
    # the first unit that something needs a gradient of, or through
    first = 0 if needs_dx else next((i for i, k in enumerate(main) if any(k.needs)), len(main))

    dz, dc, gate, g = dy, None, y, None
    for i in reversed(range(first, len(main))):
        this, above = main[i], main[i + 1] if i + 1 < len(main) else None
        needs_dc = i > first or needs_dx or bool(this.needs.w or this.needs.bias)
        needs_z = above is not None and bool(above.needs.w)
        if this.unit.norm == "none":
            if needs_z:
                found[i + 1]["w"] = _w_gradient(above, dc, this.z())
            # of what is not the last one's, what this one's result tells was part of dgrad
            done = above is not None and this.unit.direct
            how = "none" if done else this.unit.activation, gate if above is None else None
            found[i], dc = _bare_backward(this, dz, *how)
            if above is None and gate is not None:
                dy, gate = dc, None
                g = dc if needs_g else None
        else:
            norm, this_dc, z, opened = _norm_backward(
                this, dz, this.unit.activation, gate if above is None else None, needs_dc, needs_z,
                needs_g and above is None,
            )  # fmt: skip
            g = g if opened is None else opened
            found[i] |= norm
            if needs_z:
                found[i + 1]["w"] = _w_gradient(above, dc, z)
            dc = this_dc
            if this.needs.bias:
                found[i]["bias"] = conv2d_dbias(dc).to(this.given.bias.dtype)
        if i > first:
            below = main[i - 1]
            act = below.unit.activation if below.unit.direct else "none"
            how = (None if act == "none" else below.c), act
            dz = _x_gradient(this, dc, below.c.shape, INSIDE, None, *how)
    if first < len(main) and main[first].needs.w:
        found[first]["w"] = _w_gradient(main[first], dc, x if first == 0 else main[first - 1].z())

    residual = None
    if block.shortcut == "identity":
        residual = dy
    elif block.shortcut == "unit" and (needs_dx or any(kept[-1].needs)):
        side = kept[-1]
        needs_dc = needs_dx or bool(side.needs.w or side.needs.bias)
        if side.unit.norm == "none":
            found[-1], dc_side = _bare_backward(
                side, dy, "none" if gate is None else activation, gate
            )
        else:
            norm, dc_side, *_ = _norm_backward(side, dy, activation, gate, needs_dc)
            found[-1] |= norm
            if side.needs.bias:
                found[-1]["bias"] = conv2d_dbias(dc_side).to(side.given.bias.dtype)
        if side.needs.w:
            found[-1]["w"] = _w_gradient(side, dc_side, x)
        if needs_dx:
            residual = _x_gradient(side, dc_side, x.shape, INSIDE)
    dx = None
    if needs_dx and main[0].unit.geometry is None:
        if block.shortcut == "identity" and gate is not None:
            residual = batch_norm_g(dy, gate, activation)
        dx = dc if residual is None else dc + residual
        dx = dx.contiguous(memory_format=block.x_format)
    elif needs_dx:
        gated = block.shortcut == "identity" and gate is not None
        how = (gate, activation) if gated else (None, "none")
        dx = _x_gradient(main[0], dc, x.shape, block.x_format, residual, *how)
    if needs_g and g is None:
        g = batch_norm_g(dy, gate, activation)
    return dx, [Tensors(**gradients) for gradients in found], g


def composed(
    blocks: Sequence,
    x: Tensor,
    residual: Tensor | None,
    normalised: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """What blocks give for x, normalised(i, z) being what the i-th of all their units gives for z.

    Blocks and units are those above, or what has their shortcuts and activations.
    """
    i = 0
    for block in blocks:
        *inner, last = main_units(block)
        y = x
        for unit in inner:
            y = activate(normalised(i, y), unit.activation)
            i += 1
        y, added = normalised(i, y), None
        if block.shortcut == "identity":
            added = x
        elif block.shortcut == "given":
            added = residual
        elif block.shortcut == "unit":
            i += 1
            added = normalised(i, x)
        if added is not None:
            y = block.add(y, added)
        i += 1
        x = activate(y, last.activation)
    return x


def _threes(flat: Sequence) -> list[Sequence]:
    return [flat[i : i + 3] for i in range(0, len(flat), 3)]


def _tensors(flat: Sequence) -> list[Tensors]:
    """What there is six of for each unit, by unit."""
    width = len(Tensors._fields)
    return [Tensors(*flat[i : i + width]) for i in range(0, len(flat), width)]


def _backwards(parts: list, x: Tensor, outputs: Sequence[Tensor]):
    """Each block with what was kept of it, its input, and its output if that is needed; last first.

    outputs are the blocks', without the last one's if that is not needed.
    """
    inputs = (x, *outputs)
    for i in reversed(range(len(parts))):
        block, kept = parts[i]
        yield block, kept, inputs[i], outputs[i] if block.gated else None


def _backwards_again(parts: list, x: Tensor):
    """The same, with the outputs computed again, a segment at a time."""
    starts = [x]
    for i in range(0, len(parts) - SEGMENT, SEGMENT):
        starts.append(_outputs(parts[i : i + SEGMENT], starts[-1])[-1])
    for i in reversed(range(0, len(parts), SEGMENT)):
        segment, x = parts[i : i + SEGMENT], starts.pop()
        yield from _backwards(segment, x, _outputs(segment, x))


def _outputs(parts: list, x: Tensor) -> list[Tensor]:
    outputs = []
    for block, kept in parts:
        x = _output(block, kept, x, None)
        outputs.append(x)
    return outputs


class ChainFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, chain, running, x, residual, *flat):
        function = functools.partial(_forward_pass, chain, len(running))
        y, *kept = chain.passed("forward", function, x, residual, *running, *flat)
        ctx.chain = chain
        ctx.residual_format = None if residual is None else layout(residual)
        ctx.save_for_backward(x, *flat, *kept)
        ctx.set_materialize_grads(False)
        stats = [t for t in kept[: len(KEPT) * len(chain.units) : len(KEPT)] if t is not None]
        ctx.mark_non_differentiable(*stats)
        return y, *stats

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        chain, needs = ctx.chain, tuple(ctx.needs_input_grad[2:])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return None, None, *_differentiable(chain, needs, dy, *ctx.saved_tensors)
        function = functools.partial(_backward_pass, chain, needs, ctx.residual_format)
        tensors = dy, *ctx.saved_tensors
        key = None if chain.plans is None else signature(chain, tensors)
        if key is not None:
            key = needs, key, *depends_on(dy)
        return None, None, *chain.passed(key, function, *tensors)


KEPT = ("stats", "c", "w", "bias")  # of each unit; w and bias where they had to be cast


def _forward_pass(chain: Chain, moved: int, *tensors: Tensor | None) -> tuple:
    """The output; of each unit what KEPT names; and the blocks' outputs that the backward reads.

    The tensors: the input, the residual, so many that are running, and the units'.
    """
    x, residual, *tensors = tensors
    moving, tensors = tensors[:moved], tensors[moved:]
    running, given = chain.running(moving), _tensors(tensors)
    y, kept, outputs = x, [], []
    running = [of for _, of in _by_block(chain.blocks, running)]
    for (block, of), r in zip(_by_block(chain.blocks, _cast(given, x)), running, strict=True):
        y, of_block = _forward(block, y, residual, of, r)
        kept += of_block
        outputs.append(y)
    written(*moving)
    kept = [
        t
        for k, g in zip(kept, given, strict=True)
        for t in (
            k.stats,
            None if k.c is x else k.c,
            None if k.tensors.w is g.w else k.tensors.w,
            None if k.tensors.bias is g.bias else k.tensors.bias,
        )
    ]
    if chain.recompute:
        outputs = []
    elif not chain.blocks[-1].gated:
        outputs.pop()
    return y, *kept, *outputs


def _backward_pass(
    chain: Chain, needs: Sequence[bool], residual_format, dy: Tensor, x: Tensor, *saved
) -> tuple:
    """The gradients of x, of the residual and of the units' tensors."""
    needs_dx, needs_dresidual, *needs = needs
    flat, saved = saved[: len(needs)], saved[len(needs) :]
    outputs = saved[len(KEPT) * len(chain.units) :]
    last = chain.blocks[-1]
    dresidual = dy if needs_dresidual else None  # but for what its gate shuts
    needs_g, dy = needs_dresidual and last.gated, nhwc(dy)
    kept = []
    for i, (unit, given, of) in enumerate(
        zip(chain.units, _tensors(flat), _tensors(needs), strict=True)
    ):
        stats, c, w, bias = saved[len(KEPT) * i : len(KEPT) * (i + 1)]
        if c is None and unit.geometry is None:
            c = x
        used = given._replace(
            w=given.w if w is None else w, bias=given.bias if bias is None else bias
        )
        kept.append(Kept(unit, used, given, of, c, stats))
    parts = _by_block(chain.blocks, kept)
    order = _backwards_again(parts, x) if chain.recompute else _backwards(parts, x, outputs)
    gradients, left = (), len(needs)
    for block, of_block, x, y in order:
        left -= len(of_block) * len(Tensors._fields)
        below = needs_dx or any(needs[:left])
        dy, of_units, g = _backward(block, of_block, x, y, dy, below, needs_g)
        if needs_g:
            dresidual, needs_g = g.contiguous(memory_format=residual_format), False
        gradients = (*(g for unit in of_units for g in unit), *gradients)
        if not below:
            break
    missing = (None,) * (len(needs) - len(gradients))
    return dy if needs_dx else None, dresidual, *missing, *gradients


def _differentiable(chain: Chain, needs: Sequence[bool], dy: Tensor, x: Tensor, *saved) -> tuple:
    """The gradients of _backward_pass as functions that have gradients again.

    From operators that have second gradients; where a shortcut was given, dy is the gradient of
    what it was added to.
    """
    needs_dx, needs_dresidual, *needs = needs
    flat, blocks = saved[: len(needs)], chain.blocks
    *others, last = blocks
    if last.shortcut == "given":
        if last.gated:
            dy = passed_back(dy, saved[-1], main_units(last)[-1].activation)
        *inner, unit = last.units
        plain = (*inner, unit._replace(activation="none"))
        blocks = (*others, last._replace(units=plain, shortcut="none"))
    units = [unit for block in blocks for unit in block.units]
    # views, lest the search for gradients goes on through the tensors' own history
    x, *flat = (t if t is None else t.view_as(t) for t in (x, *flat))
    tensors = _cast(_tensors(flat), x)

    def normalised(i: int, z: Tensor) -> Tensor:
        unit, t = units[i], tensors[i]
        z_format = blocks[0].x_format if z is x else INSIDE
        if unit.geometry is None:
            c = z
        elif unit.size is None:
            formats = Formats(z_format, unit.w_format, INSIDE)
            c = Conv2dFunction.apply(z, t.w, t.bias, formats, unit.geometry)
        else:
            formats = Formats(INSIDE, unit.w_format, z_format)  # what comes out is dgrad's x
            shape = unit.y_shape(z.shape, t.w.shape)
            c = Conv2dDgradFunction.apply(z, t.w, t.bias, shape, formats, unit.geometry)
        if unit.norm == "none":
            return c
        running = (None, None) if unit.of_batch else (t.mean, t.var)
        return batch_norm(c, *running, t.scale, t.shift, unit.of_batch, 0.0, unit.eps)

    y = composed(blocks, x, None, normalised)
    wanted = (needs_dx, *needs)
    needed = [t for t, needs_it in zip((x, *flat), wanted, strict=True) if needs_it]
    found = iter(torch.autograd.grad(y, needed, dy, create_graph=True, allow_unused=True))
    dx, *gradients = (next(found) if needs_it else None for needs_it in wanted)
    return dx, dy if needs_dresidual else None, *gradients
