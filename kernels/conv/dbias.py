"""Gradient of a convolution with respect to its bias.

    db[o] = sum_{n, oh, ow} dy[n, oh, ow, o]

A program owns BLOCK_C channels of a share of the pixels; the shares are added in fixed order.
"""

import triton
import triton.language as tl

from .. import _split
from .._common import accumulator, index_type, nhwc, op
from .._launch import INTERPRETED, INTERPRETED_BLOCK, launch
from .._split import pixel_share

BYTES = 16384  # of a block: with two programs on a multiprocessor enough are under way


@triton.jit(do_not_specialize=("pixels", "pixels_a_split"))
def _conv2d_dbias_kernel(
    dy_ptr, db_ptr, pixels, C, pixels_a_split,  # dy [pixels, C], db [splits, C]
    ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    c, split, first, last = pixel_share(pixels, C, pixels_a_split, INDEX, BLOCK_C)
    acc = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for start in range(first, last, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (p < last)[:, None] & (c < C)[None, :]
        acc += tl.load(dy_ptr + (p[:, None] * C + c[None, :]), mask=inside, other=0.0).to(ACC)
    tl.store(db_ptr + (split * C + c), tl.sum(acc, axis=0), mask=c < C)


@op("conv2d_dbias(Tensor dy) -> Tensor", lambda dy: dy.new_empty((dy.shape[1],)))
def conv2d_dbias(dy):
    N, C, H, W = dy.shape
    if dy.numel() == 0:
        return dy.new_zeros(C)
    dy, pixels = nhwc(dy), N * H * W
    block_c = min(triton.next_power_of_2(C), 64)
    elements = INTERPRETED_BLOCK if INTERPRETED else BYTES // dy.element_size()
    block_p = min(elements // block_c, triton.next_power_of_2(pixels))
    tiles_c = triton.cdiv(C, block_c)
    splits, pixels_a_split = _split.shares(tiles_c, pixels, triton.cdiv(pixels, block_p))
    db = dy.new_empty(C)
    partial = _split.partial_sums(splits, db)
    launch(
        _conv2d_dbias_kernel, tiles_c * splits,
        dy, partial, pixels, C, pixels_a_split,
        accumulator(dy.dtype), index_type(dy), block_p, block_c,
        num_warps=8, out=partial,
    )  # fmt: skip
    return _split.add_splits(partial, db)
