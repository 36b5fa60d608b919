"""Convolutions, each with a batch norm and an activation, as one differentiable operation.

A chain is blocks one after another.  Kept for the backward are x, what its units keep, and the
blocks' outputs (or none of these, if they are to be computed again).
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ._block import Block, Kept, Tensors, by_unit, cast, forward, infer, main_units, output
from ._block_backward import backward
from ._common import apply, autocast_dtype, layout, nhwc
from ._composed import differentiable
from ._plan import plannable, planned, written
from ._remembered import Remembered
from ._signature import signature
from ._split import together
from .conv.dispatch import depends_on
from .norm.activation import activate, gates
from .norm.stats import Running

SEGMENT = 4  # blocks whose outputs are computed again at once


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
    key = *options, found, *depends_on(x), autocast_dtype(x), torch.is_grad_enabled()
    try:
        hash(key)
    except TypeError:  # an option that is a list, say
        return None
    return key


MOST_PLANS = 16  # of a chain: one forward, and a backward for each set of gradients wanted


def needs_gradient(*given: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)


def _by_block(blocks: tuple[Block, ...], per_unit: Sequence) -> list[tuple[Block, list]]:
    """Each block, with its own share of what there is one of for each unit."""
    per_unit = list(per_unit)
    shares = []
    for block in blocks:
        shares.append((block, per_unit[: len(block.units)]))
        per_unit = per_unit[len(block.units) :]
    return shares


def _infer(chain: Chain, x: Tensor, residual: Tensor | None, *flat: Tensor | None) -> tuple:
    for block, tensors in _by_block(chain.inferred, cast(by_unit(flat), x)):
        x = infer(block, x, residual, tensors)
    return (x,)


def _threes(flat: Sequence) -> list[Sequence]:
    return [flat[i : i + 3] for i in range(0, len(flat), 3)]


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
        x = output(block, kept, x, None)
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
            return None, None, *differentiable(chain.blocks, needs, dy, *ctx.saved_tensors)
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
    running, given = chain.running(moving), by_unit(tensors)
    y, kept, outputs = x, [], []
    running = [of for _, of in _by_block(chain.blocks, running)]
    for (block, of), r in zip(_by_block(chain.blocks, cast(given, x)), running, strict=True):
        y, of_block = forward(block, y, residual, of, r)
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
        zip(chain.units, by_unit(flat), by_unit(needs), strict=True)
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
    # nothing here reads gradients of weights
    with nullcontext() if torch.compiler.is_compiling() else together():
        for block, of_block, x, y in order:
            left -= len(of_block) * len(Tensors._fields)
            below = needs_dx or any(needs[:left])
            dy, of_units, g = backward(block, of_block, x, y, dy, below, needs_g)
            if needs_g:
                dresidual, needs_g = g.contiguous(memory_format=residual_format), False
            gradients = (*(g for unit in of_units for g in unit), *gradients)
            if not below:
                break
    missing = (None,) * (len(needs) - len(gradients))
    return dy if needs_dx else None, dresidual, *missing, *gradients
