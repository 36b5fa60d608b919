"""What a convolution does with its accumulator before it stores it.

    y = act(normalised (acc + bias) + residual)

each step where it is asked for.  Or y = acc + bias, with the statistics of y's channels, as batch
norm in training wants them.  Or y = acc + the residual as act passes it back, told by the gate, its
result: the gradient of a block that adds its input to its output.  Or, without a residual, acc as
act passes it back.  Or, acc being the gradient of z = act(normalised c), all that goes back to c:

    g = acc as act passes it back, told by c, with sum(g) and sum(g * c^) of each channel, and z
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .._common import nhwc
from ..norm.activation import activated, passed
from ..norm.normalise import coefficients, vector
from ..norm.stats import add_block, block_statistics, mean_if_first, store_statistics


@triton.jit
def _in_two(acc):
    return acc.reshape(acc.shape[0], 2, acc.shape[1] // 2).permute(0, 2, 1).split()


@triton.jit
def pieces(acc, PIECES: tl.constexpr):
    """acc [A, B] in 1, 2, 4 or 8, of [A, B / PIECES] each: what follows takes as few registers."""
    if PIECES == 1:
        return acc, acc
    else:
        first, second = _in_two(acc)
        if PIECES == 2:
            return first, second
        else:
            one, two = _in_two(first)
            three, four = _in_two(second)
            if PIECES == 4:
                return one, two, three, four
            else:
                return _in_two(one) + _in_two(two) + _in_two(three) + _in_two(four)


@triton.jit
def channel_terms(
    bias_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, c, channels,
    EPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What the epilogue adds and multiplies in channels c [N]; channels tells which there are."""
    bias = vector(bias_ptr, c, channels, 0.0, ACC)
    if mean_ptr is None:
        return bias, bias, bias, bias  # of which only the first is read
    else:
        mean, _, scale, shift = coefficients(
            mean_ptr, var_ptr, scale_ptr, shift_ptr, c, channels, EPS, ACC
        )
        return bias, mean, scale, shift


@triton.jit
def store_tile(
    acc, terms, y_ptr, offs, inside, bias_ptr, mean_ptr, residual_ptr, gate_ptr,
    ACTIVATION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores a tile of y, acc [M, N] at offs, and gives what it stored."""
    bias, mean, scale, shift = terms
    if bias_ptr is not None:
        acc += bias[None, :]
    if mean_ptr is not None:
        acc = (acc - mean[None, :]) * scale[None, :] + shift[None, :]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offs, mask=inside, other=0.0).to(ACC)
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + offs, mask=inside, other=0.0)
            residual = passed(residual, gate, ACTIVATION, True)
        acc += residual
    elif gate_ptr is not None:
        gate = tl.load(gate_ptr + offs, mask=inside, other=0.0).to(ACC)
        acc = passed(acc, gate, ACTIVATION, True)
    if gate_ptr is None:
        acc = activated(acc, ACTIVATION)
    tl.store(y_ptr + offs, acc, mask=inside)
    return acc.to(y_ptr.dtype.element_ty).to(ACC)


@triton.jit
def store_and_add(
    acc, bias, y_ptr, offs, rows, channels, bias_ptr,
    near, total, squares, count, more, share, MAY_BE_FIRST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores one of a program's tiles, acc [N, M] at offs [M, N], and gives sums with it added.

    These are about the first tile's mean, or what near was given for it.  They are taken before it
    is stored, while a warp holds all of a channel's pixels.
    """
    if bias_ptr is not None:
        acc += bias[:, None]
    y = acc.to(y_ptr.dtype.element_ty)
    x, inside = y.to(ACC), rows[None, :]
    if MAY_BE_FIRST:
        near = mean_if_first(near, count, x, inside, more)
    total, squares, count = add_block(near, total, squares, count, x, inside, more, share)
    tl.store(y_ptr + offs, y.T, mask=rows[:, None] & channels[None, :])
    return near, total, squares, count


@triton.jit
def store_undone(
    acc, mean, scale, shift, g_ptr, c_ptr, z_ptr, offs, inside, sum_g, sum_g_c,
    ACTIVATION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores g and z of a tile, acc [M, N] at offs, and gives sums [M, N] with g and g * (c - mean)
    added; mean, scale and shift [N] are batch norm's coefficients."""
    c = tl.load(c_ptr + offs, mask=inside, other=0.0).to(ACC) - mean[None, :]
    y = c * scale[None, :] + shift[None, :]
    tl.store(z_ptr + offs, activated(y, ACTIVATION), mask=inside)
    g = passed(acc, y, ACTIVATION, False).to(g_ptr.dtype.element_ty)
    tl.store(g_ptr + offs, g, mask=inside)
    g = tl.where(inside, g.to(ACC), 0.0)
    return sum_g + g, sum_g_c + g * c


@triton.jit
def add_to_sums(
    sums_ptr, first, sum_g, sum_g_c, c, channels, C, var_ptr, EPS: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Adds store_undone's sums of a tile to sum(g) and sum(g * c^) of channels c [N], in sums
    [2, C]; or, if it is the first, to nothing.

    They lie in memory, for between its tiles a program has no registers for them.
    """
    rstd = tl.rsqrt(vector(var_ptr, c, channels, 1.0, ACC) + EPS)
    more, more_c = tl.sum(sum_g, axis=0), tl.sum(sum_g_c, axis=0) * rstd
    sums_ptr += c
    there = channels & (first == 0)
    more += tl.load(sums_ptr, mask=there, other=0.0)
    more_c += tl.load(sums_ptr + C, mask=there, other=0.0)
    tl.store(sums_ptr, more, mask=channels)
    tl.store(sums_ptr + C, more_c, mask=channels)


@triton.jit
def finish(
    acc, y_ptr, offs, rows, n, c, C, channels, part,
    bias_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Stores a program's only tile of y: acc [M, N] at offs, of channels c [N] of all C.

    rows [M], which are n, and channels [N] tell what is inside y; the tile's statistics go to row
    `part` of partial [parts, 4, C].
    """
    terms = channel_terms(bias_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, c, channels, EPS, ACC)
    stored = store_tile(
        acc, terms, y_ptr, offs, rows[:, None] & channels[None, :],
        bias_ptr, mean_ptr, residual_ptr, gate_ptr, ACTIVATION, ACC,
    )  # fmt: skip
    if partial_ptr is not None:
        mean, rest, var = block_statistics(stored, rows[:, None], n.to(ACC))
        store_statistics(partial_ptr, part, c, C, channels, n.to(ACC), mean, rest, var)


def room(tile, statistics: bool) -> dict[str, int]:
    """Constants by which the epilogue leaves room for two programs in a multiprocessor's registers.

    It takes a tile in pieces where a thread has many sums, and 8 warps may have half of all.
    """
    sums = tile.m * tile.n // (32 * tile.warps)
    count = min(max(sums // (16 if statistics else 32), 1), 4)
    return {"PIECES": count, **({"maxnreg": 128} if (sums, tile.warps) == (64, 8) else {})}


class Epilogue(NamedTuple):
    """The tensors that finish() reads, where given, and how."""

    bias: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    gate: Tensor | None = None
    eps: float = 0.0
    activation: str = "none"

    @property
    def is_plain(self) -> bool:
        """Whether it stores sums as they are."""
        given = self.bias, self.mean, self.residual, self.gate
        return all(t is None for t in given) and self.activation == "none"

    def arguments(self, partial: Tensor | None) -> tuple:
        bias, mean, var, scale, shift, residual, gate, eps, activation = self
        if mean is None and residual is None and gate is None:
            bias = None if bias is None else bias.contiguous()
            return bias, None, None, None, None, None, None, partial, eps, activation
        residual = None if residual is None else nhwc(residual)
        gate = None if gate is None else nhwc(gate)
        vectors = [None if t is None else t.contiguous() for t in (bias, mean, var, scale, shift)]
        return *vectors, residual, gate, partial, eps, activation


SCHEMA = (
    "Tensor? bias, Tensor? mean, Tensor? var, Tensor? scale, Tensor? shift, Tensor? residual, "
    "Tensor? gate, float eps, str activation"
)
