"""Mean and variance of each channel of a batch.

Each block of values gives how many they are, their mean and their sum of squares about it (m2), and
Chan's formula combines them in fixed order: nothing cancels however far the mean is from zero.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _split
from .._common import accumulator, index_type, nhwc, op, unit, units
from .._launch import INTERPRETED, launch
from .._split import pixel_share, sum_dtype

BLOCK_PARTS = 64  # partial statistics that a program of the combining kernel adds in one step


@triton.jit
def combine(n, mean, m2, more_n, more_mean, more_m2):
    """Count, mean and m2 of two sets of values, of which the second may be empty (Chan, 1983)."""
    total = n + more_n
    share = more_n / tl.maximum(total, 1.0)
    delta = more_mean - mean
    return total, mean + delta * share, m2 + more_m2 + delta * delta * n * share


@triton.jit
def block_statistics(x, inside, n):
    """Mean and m2 along axis 0 of x's n rows that are inside, [P, 1]; zeros if there are none."""
    x, n = tl.where(inside, x, 0.0), tl.maximum(n, 1.0)
    rough = tl.sum(x, axis=0) / n
    offset = tl.where(inside, x - rough[None, :], 0.0)
    rest = tl.sum(offset, axis=0) / n  # what rounding left of the mean
    return rough + rest, tl.sum(offset * offset, axis=0) - n * rest * rest


@triton.jit
def store_statistics(partial_ptr, part, c, C, inside, n, mean, m2):
    """Row `part` of partial statistics [parts, 3, C]; n is one for all channels, or one each."""
    partial_ptr += part * 3 * C + c
    tl.store(partial_ptr, tl.zeros_like(mean) + n, mask=inside)
    tl.store(partial_ptr + C, mean, mask=inside)
    tl.store(partial_ptr + 2 * C, m2, mask=inside)


@triton.jit
def _load_pixels(x_ptr, start, last, c, C, ACC: tl.constexpr, BLOCK_P: tl.constexpr):
    """x [BLOCK_P, BLOCK_C] from pixel `start` on, zero from pixel `last` on; and what is inside."""
    p = start + tl.arange(0, BLOCK_P)
    inside = (p < last)[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + (p[:, None] * C + c[None, :]), mask=inside, other=0.0)
    return x.to(ACC), inside


@triton.jit(do_not_specialize=("pixels", "pixels_a_split"))
def _batch_norm_stats_kernel(
    x_ptr, partial_ptr, pixels, C, pixels_a_split,  # x [pixels, C], partial [splits, 3, C]
    ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    c, split, first, last = pixel_share(pixels, C, pixels_a_split, INDEX, BLOCK_C)
    # sums about the first block's mean: it is as close to the mean of all as that block's share
    # of them tells, (near - mean)^2 <= variance * pixels / BLOCK_P, so that little cancels
    x, _ = _load_pixels(x_ptr, first, last, c, C, ACC, BLOCK_P)
    near = tl.sum(x, axis=0) / tl.minimum(last - first, BLOCK_P).to(ACC)
    total, squares = tl.zeros((BLOCK_P, BLOCK_C), ACC), tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for start in range(first, last, BLOCK_P):
        x, inside = _load_pixels(x_ptr, start, last, c, C, ACC, BLOCK_P)
        offset = tl.where(inside, x - near[None, :], 0.0)
        total += offset
        squares += offset * offset
    n = (last - first).to(ACC)
    rest = tl.sum(total, axis=0) / n
    m2 = tl.sum(squares, axis=0) - n * rest * rest
    store_statistics(partial_ptr, split, c, C, c < C, n, near + rest, m2)


@triton.jit(do_not_specialize=("parts", "parts_a_share"))
def _batch_norm_combine_kernel(
    partial_ptr, out_ptr, parts, C, parts_a_share,  # [parts, 3, C] -> [shares, 3, C], or [2, C]
    LAST: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c, share, first, last = pixel_share(parts, C, parts_a_share, INDEX, BLOCK_C)
    n = tl.zeros((BLOCK_C,), ACC)
    mean, m2 = tl.zeros((BLOCK_C,), ACC), tl.zeros((BLOCK_C,), ACC)
    for start in range(first, last, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        inside = (part < last)[:, None] & (c < C)[None, :]
        offs = part[:, None] * (3 * C) + c[None, :]
        part_n = tl.load(partial_ptr + offs, mask=inside, other=0.0)
        part_mean = tl.load(partial_ptr + (offs + C), mask=inside, other=0.0)
        part_m2 = tl.load(partial_ptr + (offs + 2 * C), mask=inside, other=0.0)
        block_n = tl.sum(part_n, axis=0)
        # about one of the means: the mean of all may be far larger than their differences
        near = tl.max(tl.where(part_n > 0, part_mean, float("-inf")), axis=0)
        near = tl.where(block_n > 0, near, 0.0)
        offset = tl.where(part_n > 0, part_mean - near[None, :], 0.0)
        rest = tl.sum(part_n * offset, axis=0) / tl.maximum(block_n, 1.0)
        offset -= rest[None, :]
        block_m2 = tl.sum(part_m2 + part_n * offset * offset, axis=0)
        n, mean, m2 = combine(n, mean, m2, block_n, near + rest, block_m2)
    if LAST:
        tl.store(out_ptr + c, mean, mask=c < C)
        tl.store(out_ptr + C + c, m2 / n, mask=c < C)
    else:
        store_statistics(out_ptr, share, c, C, c < C, n, mean, m2)


def shares(pixels: int, C: int) -> tuple[int, int, int, dict[str, int]]:
    """For a reduction over pixels: programs, splits, pixels in each, and the block sizes."""
    block_c = min(triton.next_power_of_2(C), 64)
    block_p = min(4096 if INTERPRETED else 64, triton.next_power_of_2(pixels))
    tiles_c = triton.cdiv(C, block_c)
    splits, pixels_a_split = _split.shares(tiles_c, pixels, triton.cdiv(pixels, block_p))
    blocks = {"UNIT": unit(C), "BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": 8}
    return tiles_c * splits, splits, pixels_a_split, blocks


def partial_statistics(parts: int, C: int, x: Tensor) -> Tensor:
    """Room for count, mean and m2 of `parts` parts of x's values."""
    return torch.empty((parts, 3, C), dtype=sum_dtype(x.dtype), device=x.device)


def combined(partial: Tensor) -> Tensor:
    """[mean, var] of each channel from partial statistics [parts, 3, C]."""
    parts, _, C = partial.shape
    share = parts if parts <= 4 * BLOCK_PARTS else BLOCK_PARTS
    left = triton.cdiv(parts, share)
    out = partial.new_empty((2, C) if left == 1 else (left, 3, C))
    block_c = min(triton.next_power_of_2(C), 32)
    launch(
        _batch_norm_combine_kernel, left * triton.cdiv(C, block_c),
        partial, out, parts, C, share,
        left == 1, accumulator(partial.dtype), index_type(partial), BLOCK_PARTS, block_c, out=out,
    )  # fmt: skip
    return out if left == 1 else combined(out)


@op(
    "batch_norm_stats(Tensor x) -> Tensor",
    lambda x: x.new_empty((2, x.shape[1]), dtype=sum_dtype(x.dtype)),
)
def batch_norm_stats(x):
    """[mean, var] of each channel."""
    N, C, H, W = x.shape
    if x.numel() == 0:
        return x.new_full((2, C), float("nan"), dtype=sum_dtype(x.dtype))
    programs, splits, pixels_a_split, blocks = shares(N * H * W, C)
    partial = partial_statistics(splits, C, x)
    launch(
        _batch_norm_stats_kernel, programs,
        nhwc(x), partial, N * H * W, C, pixels_a_split,
        accumulator(x.dtype), index_type(x), out=partial, **blocks,
    )  # fmt: skip
    return combined(partial)
