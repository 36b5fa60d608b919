"""A chain's blocks as operators one after another, each with its own gradients.

For second gradients, and for modules that have to be called one by one.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._block import INSIDE, Block, by_unit, cast, main_units
from .batch_norm import batch_norm
from .conv.geometry import Formats
from .conv2d import Conv2dDgradFunction, Conv2dFunction
from .norm.activation import activate, passed_back


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


def differentiable(
    blocks: tuple[Block, ...], needs: Sequence[bool], dy: Tensor, x: Tensor, *saved
) -> tuple:
    """The gradients of a chain as functions that have gradients again.

    From operators that have second gradients; where a shortcut was given, dy is the gradient of
    what it was added to.
    """
    needs_dx, needs_dresidual, *needs = needs
    flat = saved[: len(needs)]
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
    tensors = cast(by_unit(flat), x)

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
