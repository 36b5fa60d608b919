"""The gradients of a block.

What follows c_i is undone in two passes: one takes the sums for norm_i's gradient, and stores z_i,
which the weights' gradient above reads; the next gives the gradient of c_i.  The first may be part
of the epilogue of the dgrad above.  Of a bare unit they are one pass, or part of that epilogue.
"""

from collections.abc import Sequence

from torch import Tensor

from ._block import INSIDE, Block, Kept, Tensors, main_units
from .conv.dbias import conv2d_dbias
from .conv.dgrad import conv2d_dgrad_fused, conv2d_dgrad_undone
from .conv.forward import conv2d_fused
from .conv.wgrad import conv2d_wgrad
from .norm.activation import passes_once
from .norm.backward import (
    batch_norm_bwd,
    batch_norm_bwd_and_g,
    batch_norm_g,
    batch_norm_sums,
    batch_norm_sums_and_g,
    batch_norm_sums_and_y,
)
from .norm.pair import batch_norm_pair_bwd, batch_norm_pair_sums

NO_NORM = (None, None, None, None)  # mean, variance, scale and shift


def backward(
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

    side = kept[-1] if block.shortcut == "unit" else None
    dz, dc, dc_side, gate, g, taken = dy, None, None, y, None, None
    for i in reversed(range(first, len(main))):
        this, above = main[i], main[i + 1] if i + 1 < len(main) else None
        needs_dc = i > first or needs_dx or bool(this.needs.w or this.needs.bias)
        needs_z = above is not None and bool(above.needs.w)
        if above is None and side is not None and _pair(this, side, needs_dc, needs_dx):
            found[i], found[-1], dc, dc_side = _pair_undone(this, side, dy, activation, gate)
        elif above is None:
            found[i], dc, _, g = _undone(this, dz, activation, gate, needs_dc, False, needs_g)
            if this.unit.norm == "none" and gate is not None:
                dy, gate = dc, None
        else:
            # what a direct one's result tells was part of the dgrad above
            act = "none" if this.unit.direct else this.unit.activation
            found[i], this_dc, z, _ = _undone(this, dz, act, None, needs_dc, needs_z, taken=taken)
            if needs_z:
                found[i + 1]["w"] = _w_gradient(above, dc, z)
            dc = this_dc
        if i > first:
            below = main[i - 1]
            taken = None
            if _takes_sums(this, below, i - 1 > first or needs_dx):
                norm, geometry = below.norm, this.unit.geometry.flat
                dz, *taken = conv2d_dgrad_undone(
                    dc, this.tensors.w, below.c, *norm, below.unit.activation, geometry
                )
                continue
            act = below.unit.activation if below.unit.direct else "none"
            how = (None if act == "none" else below.c), act
            dz = _x_gradient(this, dc, below.c.shape, INSIDE, None, *how)
    if first < len(main) and main[first].needs.w:
        found[first]["w"] = _w_gradient(main[first], dc, x if first == 0 else main[first - 1].z())

    residual = None
    if block.shortcut == "identity":
        residual = dy
    elif side is not None and (needs_dx or any(side.needs)):
        if dc_side is None:
            needs_dc = needs_dx or bool(side.needs.w or side.needs.bias)
            act = "none" if gate is None else activation
            found[-1], dc_side, *_ = _undone(side, dy, act, gate, needs_dc)
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


def _takes_sums(kept: Kept, below: Kept, deeper: bool) -> bool:
    """Whether z and the sums of the unit below are wanted, and dgrad may take them; deeper: whether
    something below that one needs a gradient."""
    needs, unit = below.needs, below.unit
    wanted = needs.scale or needs.shift or (unit.of_batch and (deeper or needs.w or needs.bias))
    return bool(
        wanted
        and kept.needs.w
        and kept.unit.size is None
        and unit.norm != "none"
        and passes_once(unit.activation)
    )


def _pair(kept: Kept, side: Kept, needs_dc: bool, needs_dx: bool) -> bool:
    """Whether the last unit and the shortcut's are undone together: both by the batch's statistics,
    and to the ends of both."""
    both = kept.unit.of_batch and side.unit.of_batch
    return both and needs_dc and (needs_dx or bool(side.needs.w or side.needs.bias))


def _pair_undone(
    kept: Kept, side: Kept, dy: Tensor, activation: str, gate: Tensor | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
    """From the gradient of act(norm(c) + norm(c of side)): as _undone, of both, but g and z."""
    (mean, var, w, _, eps), (r_mean, r_var, r_w, _, r_eps) = kept.norm, side.norm
    activation = "none" if gate is None else activation
    x, r = kept.c, side.c
    sums = batch_norm_pair_sums(dy, gate, x, mean, var, eps, r, r_mean, r_var, r_eps, activation)
    dcs = batch_norm_pair_bwd(
        dy, gate, x, mean, var, w, eps, r, r_mean, r_var, r_w, r_eps, activation, sums
    )
    dc, dc_side = dcs
    return _gradients(kept, sums[:2], dc), _gradients(side, sums[2:], dc_side), dc, dc_side


def _gradients(kept: Kept, sums: Tensor | None, dc: Tensor | None) -> dict[str, Tensor]:
    """Those of scale, shift and bias that are wanted, in their dtypes."""
    gradients = {}
    if kept.needs.scale:
        gradients["scale"] = sums[1].to(kept.given.scale.dtype)
    if kept.needs.shift:
        gradients["shift"] = sums[0].to(kept.given.shift.dtype)
    if kept.needs.bias:
        gradients["bias"] = conv2d_dbias(dc).to(kept.given.bias.dtype)
    return gradients


def _undone(
    kept: Kept,
    dz: Tensor,
    activation: str,
    gate: Tensor | None,
    needs_dc: bool,
    needs_z: bool = False,
    needs_g: bool = False,
    taken: Sequence[Tensor] | None = None,
) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None, Tensor | None]:
    """From the gradient of act(norm(c) + ...): those of scale, shift and bias, of c, z if wanted;
    and the gradient of what is added, where that is wanted and a gate given.

    taken: z and the sums, if dgrad took them.
    """
    if kept.unit.norm == "none":
        gradients, dc = _bare_backward(kept, dz, activation, gate)
        return gradients, dc, kept.z() if needs_z else None, dc if needs_g else None
    return _norm_backward(kept, dz, activation, gate, needs_dc, needs_z, needs_g, taken)


def _norm_backward(
    kept: Kept,
    dz: Tensor,
    activation: str,
    gate: Tensor | None,
    needs_dc: bool,
    needs_z: bool,
    needs_g: bool,
    taken: Sequence[Tensor] | None,
) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None, Tensor | None]:
    """As _undone, of a unit that normalises."""
    norm = *kept.norm, activation
    needs_scale, needs_shift = kept.needs.scale, kept.needs.shift
    sums = z = dc = g = None
    if taken is not None:
        z, sums = taken
    elif needs_scale or needs_shift or (needs_dc and kept.unit.of_batch):
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
    return _gradients(kept, sums, dc), dc, z, g


def _bare_backward(
    kept: Kept, dz: Tensor, activation: str, result: Tensor | None
) -> tuple[dict[str, Tensor], Tensor]:
    """From the gradient of act(c + ...), whose result is given if it tells: those of bias and c."""
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
