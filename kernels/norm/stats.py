"""Mean and variance of each channel of a batch.

Each block of values gives how many they are, their mean and their variance, and Chan's formula
combines them in fixed order: nothing cancels however far the mean is from zero.  A mean is the sum
of two numbers, of which the second is what rounding leaves of the first: what the means of blocks
differ by may be smaller than that.  Sums are of shares of the whole, so that nothing overflows
before the variance does.
"""

from typing import NamedTuple

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _split
from .._common import accumulator, index_type, nhwc, op, unit, units
from .._launch import INTERPRETED, launch
from .._split import pixel_share, sum_dtype

# partial statistics of so many channels that a program of the combining kernel adds in one step
BLOCK_PARTS, BLOCK_CHANNELS = 256, 8


STAGES = {2: 4, 4: 3, 8: 1}  # by element size: how many blocks a program has under way, and one


@triton.jit
def combine(n, mean, rest, var, more_n, more_mean, more_rest, more_var):
    """Count, mean and variance of two sets of values, of which either may be empty (Chan, 1983)."""
    total = n + more_n
    kept, share = n / tl.maximum(total, 1.0), more_n / tl.maximum(total, 1.0)
    delta = (more_mean - mean) + (more_rest - rest)
    var = var * kept + more_var * share + (delta * kept) * (delta * share)
    rest += delta * share
    whole = mean + rest
    return total, whole, rest - (whole - mean), var


@triton.jit
def about_mean(squares, rest):
    """Variance, from the mean square about a value that lies `rest` beside the mean."""
    var = squares - rest * rest
    # rounding may leave less than nothing; what overflowed is infinite, and NaN stays
    return tl.where(var > 0, var, tl.where(squares < float("inf"), 0.0, squares))


@triton.jit
def block_statistics(x, inside, n):
    """Mean, its rest and variance along axis 0 of x's n rows that are inside, [P, 1]; or zeros."""
    x, share = tl.where(inside, x, 0.0), tl.where(inside, 1.0 / tl.maximum(n, 1.0), 0.0)
    near = tl.sum(x * share, axis=0)
    offset = x - near[None, :]
    rest = tl.sum(offset * share, axis=0)
    return near, rest, about_mean(tl.sum(offset * (offset * share), axis=0), rest)


@triton.jit
def mean_if_first(near, count, x, inside, more):
    """The mean of x's `more` columns inside, [C, P], if no value was counted before; else near."""
    if count == 0:
        near = tl.sum(tl.where(inside, x, 0.0), axis=1) / tl.maximum(more, 1).to(near.dtype)
    return near


@triton.jit
def add_block(near, total, squares, count, x, inside, more, share):
    """Adds x's `more` columns inside, [C, P], to sums about near of `count` values before.

    total and squares are of a share of each value, which is to be about 1 over their number.
    """
    offset = tl.where(inside, x - near[:, None], 0.0)
    total += tl.sum(offset, axis=1) * share
    squares += tl.sum(offset * offset, axis=1) * share
    return total, squares, count + more


@triton.jit
def store_sums(partial_ptr, part, c, C, inside, near, total, squares, count, share):
    """Row `part` of partial statistics, from sums as add_block makes them."""
    n = count.to(near.dtype)
    scale = 1.0 / (tl.maximum(n, 1.0) * share)
    rest = total * scale
    var = about_mean(squares * scale, rest)
    store_statistics(partial_ptr, part, c, C, inside, n, near, rest, var)


@triton.jit
def merged(part_n, part_mean, part_rest, part_var):
    """Count, mean, its rest and variance of all that parts [P, C] tell of, along axis 0."""
    n = tl.sum(part_n, axis=0)
    share = part_n * (1.0 / tl.maximum(n, 1.0))[None, :]
    # about one of the means: the mean of all may be far larger than their differences
    near = tl.max(tl.where(part_n > 0, part_mean, float("-inf")), axis=0)
    near = tl.where(n > 0, near, 0.0)
    offset = tl.where(part_n > 0, (part_mean - near[None, :]) + part_rest, 0.0)
    rest = tl.sum(share * offset, axis=0)
    offset -= rest[None, :]
    return n, near, rest, tl.sum(share * part_var + (share * offset) * offset, axis=0)


@triton.jit
def store_statistics(partial_ptr, part, c, C, inside, n, mean, rest, var):
    """Row `part` of partial statistics [parts, 4, C]; n is one for all channels, or one each."""
    partial_ptr += part * 4 * C + c
    tl.store(partial_ptr, tl.zeros_like(mean) + n, mask=inside)
    tl.store(partial_ptr + C, mean, mask=inside)
    tl.store(partial_ptr + 2 * C, rest, mask=inside)
    tl.store(partial_ptr + 3 * C, var, mask=inside)


@triton.jit
def _load_pixels(x_ptr, start, last, c, C, ACC: tl.constexpr, BLOCK_P: tl.constexpr):
    """x [BLOCK_P, BLOCK_C] from pixel `start` on, zero from pixel `last` on; and what is inside."""
    p = start + tl.arange(0, BLOCK_P)
    inside = (p < last)[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + (p[:, None] * C + c[None, :]), mask=inside, other=0.0)
    return x.to(ACC), inside


@triton.jit(do_not_specialize=("pixels", "pixels_a_split"))
def _batch_norm_stats_kernel(
    x_ptr, partial_ptr, pixels, C, pixels_a_split,  # x [pixels, C], partial [splits, 4, C]
    ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    c, split, first, last = pixel_share(pixels, C, pixels_a_split, INDEX, BLOCK_C)
    # sums about the first block's mean: it is as close to the mean of all as that block's share
    # of them tells, (near - mean)^2 <= variance * pixels / BLOCK_P, so that little cancels
    x, inside = _load_pixels(x_ptr, first, last, c, C, ACC, BLOCK_P)
    share = 1.0 / tl.minimum(last - first, BLOCK_P).to(ACC)
    near = tl.sum(x * share, axis=0)
    # once more, so that no rounding is left where all values are one
    near += tl.sum(tl.where(inside, x - near[None, :], 0.0) * share, axis=0)
    n = (last - first).to(ACC)
    share = 1.0 / n
    total, squares = tl.zeros((BLOCK_P, BLOCK_C), ACC), tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for start in tl.range(first, last, BLOCK_P, num_stages=STAGES):
        x, inside = _load_pixels(x_ptr, start, last, c, C, ACC, BLOCK_P)
        offset = tl.where(inside, x - near[None, :], 0.0)
        total += offset * share
        squares += offset * (offset * share)
    rest = tl.sum(total, axis=0)
    var = about_mean(tl.sum(squares, axis=0), rest)
    store_statistics(partial_ptr, split, c, C, c < C, n, near, rest, var)


@triton.jit
def move(ptr, value, rate, inside):
    """What is at ptr, by rate towards value; as a sum, for a difference makes NaN of infinity."""
    old = tl.load(ptr, mask=inside, other=0.0).to(value.dtype)
    tl.store(ptr, old * (1 - rate) + value * rate, mask=inside)


@triton.jit(do_not_specialize=("parts", "parts_a_share"))
def _batch_norm_combine_kernel(
    partial_ptr, out_ptr, mean_ptr, var_ptr, batches_ptr,  # running mean and variance [C]
    parts, C, parts_a_share, momentum, momentum_rest,  # [parts, 4, C] -> [shares, 4, C], or [2, C]
    LAST: tl.constexpr, AVERAGE: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The last one moves what is running: by momentum, or to the average of all batches.

    By momentum it counts the batch; for the average it was counted before, since all programs read
    the number.
    """
    c, own, first, last = pixel_share(parts, C, parts_a_share, INDEX, BLOCK_C)
    n = tl.zeros((BLOCK_C,), ACC)
    mean, rest, var = n, n, n
    for start in range(first, last, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        inside = (part < last)[:, None] & (c < C)[None, :]
        offs = part[:, None] * (4 * C) + c[None, :]
        part_n = tl.load(partial_ptr + offs, mask=inside, other=0.0)
        part_mean = tl.load(partial_ptr + (offs + C), mask=inside, other=0.0)
        part_rest = tl.load(partial_ptr + (offs + 2 * C), mask=inside, other=0.0)
        part_var = tl.load(partial_ptr + (offs + 3 * C), mask=inside, other=0.0)
        block_n, near, block_rest, block_var = merged(part_n, part_mean, part_rest, part_var)
        n, mean, rest, var = combine(n, mean, rest, var, block_n, near, block_rest, block_var)
    if LAST:
        tl.store(out_ptr + c, mean + rest, mask=c < C)
        tl.store(out_ptr + C + c, var, mask=c < C)
        rate = tl.zeros((BLOCK_C,), ACC)
        if AVERAGE:
            rate += 1.0 / tl.load(batches_ptr).to(ACC)
        else:
            rate += momentum
            rate += momentum_rest
            if batches_ptr is not None:
                tl.store(batches_ptr, tl.load(batches_ptr) + 1, mask=tl.program_id(0) == 0)
        if mean_ptr is not None:
            move(mean_ptr + c, mean + rest, rate, c < C)
        if var_ptr is not None:
            move(var_ptr + c, var * (n / (n - 1)), rate, c < C)
    else:
        store_statistics(out_ptr, own, c, C, c < C, n, mean, rest, var)


def shares(pixels: int, C: int, rows: int = 64) -> tuple[int, int, int, dict[str, int]]:
    """For a reduction over pixels, `rows` a step: programs, splits, pixels in each, block sizes."""
    block_c = min(triton.next_power_of_2(C), 64)
    block_p = min(4096 if INTERPRETED else rows, triton.next_power_of_2(pixels))
    tiles_c = triton.cdiv(C, block_c)
    splits, pixels_a_split = _split.shares(tiles_c, pixels, triton.cdiv(pixels, block_p))
    blocks = {"UNIT": unit(C), "BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": 8}
    return tiles_c * splits, splits, pixels_a_split, blocks


def partial_statistics(parts: int, C: int, x: Tensor) -> Tensor:
    """Room for count, mean, its rest and variance of `parts` parts of x's values."""
    return torch.empty((parts, 4, C), dtype=sum_dtype(x.dtype), device=x.device)


class Running(NamedTuple):
    """What a batch's statistics move: running mean and unbiased variance, and the batches' number.

    By momentum; or, where that is None, to the average of all batches.
    """

    mean: Tensor | None = None
    var: Tensor | None = None
    batches: Tensor | None = None
    momentum: float | None = 0.0


def combined(partial: Tensor, running: Running | None = None) -> Tensor:
    """[mean, var] of each channel from partial statistics [parts, 4, C]; running is moved."""
    parts, _, C = partial.shape
    share = parts if parts <= 8 * BLOCK_PARTS else BLOCK_PARTS
    left = triton.cdiv(parts, share)
    out = partial.new_empty((2, C) if left == 1 else (left, 4, C))
    block_c = min(triton.next_power_of_2(C), BLOCK_CHANNELS)
    mean, var, batches, momentum = Running() if running is None or left > 1 else running
    average = momentum is None and batches is not None
    if average:
        batches.add_(1)
    # Triton passes floats in 32 bits
    momentum = momentum or 0.0
    near = float(numpy.float32(momentum))
    moved = tuple(t for t in (mean, var, batches) if t is not None)
    launch(
        _batch_norm_combine_kernel, left * triton.cdiv(C, block_c),
        partial, out, mean, var, batches, parts, C, share, near, momentum - near,
        left == 1, average, accumulator(partial.dtype), index_type(partial), BLOCK_PARTS, block_c,
        num_warps=8, out=(out, *moved),
    )  # fmt: skip
    return out if left == 1 else combined(out, running)


@op(
    "batch_norm_stats(Tensor x) -> Tensor",
    lambda x: x.new_empty((2, x.shape[1]), dtype=sum_dtype(x.dtype)),
)
def batch_norm_stats(x):
    """[mean, var] of each channel."""
    return statistics(x)


def statistics(x: Tensor, running: Running | None = None) -> Tensor:
    """As batch_norm_stats; running is moved."""
    N, C, H, W = x.shape
    if x.numel() == 0:
        return x.new_full((2, C), float("nan"), dtype=sum_dtype(x.dtype))
    programs, splits, pixels_a_split, blocks = shares(N * H * W, C)
    partial = partial_statistics(splits, C, x)
    launch(
        _batch_norm_stats_kernel, programs,
        nhwc(x), partial, N * H * W, C, pixels_a_split,
        accumulator(x.dtype), index_type(x), out=partial, STAGES=STAGES[x.element_size()], **blocks,
    )  # fmt: skip
    return combined(partial, running)
