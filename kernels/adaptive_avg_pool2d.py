"""Average pooling to a given output size, in 2-D, and 1-D: of images with a single row.

    y[n, c, oh, ow] = mean of x[n, c, h, w],
        h in [floor(oh*H/OH), ceil((oh+1)*H/OH)), w in [floor(ow*W/OW), ceil((ow+1)*W/OW))

Sums run in float32 (float64 for float64).  A program owns a tile of pixels by channels of its
result.  The backward gathers (each pixel asks the windows that cover it), so it needs no atomics
and repeats bit for bit; being linear, it has the forward as its own derivative.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    accumulator,
    empty_in,
    empty_nhwc,
    index_type,
    layout,
    leave,
    nhwc,
    op,
    pixel_blocks,
    pixel_tile,
    public,
    units,
)
from ._launch import launch
from ._pool import as_applied, as_row, bounds, check_pool_input, longest, output_size
from ._recall import Applied, recalled


@triton.jit
def _adaptive_avg_pool2d_fwd_kernel(
    x_ptr, y_ptr, pixels, C, H, W, OH, OW, MOST_H, MOST_W,  # x [N, H, W, C], y [N, OH, OW, C]
    ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    n, oh, ow, c, dst, inside = pixel_tile(pixels, C, OH, OW, INDEX, BLOCK_P, BLOCK_C)
    from_h, to_h = bounds(tl.cast(oh, INDEX), H, OH)
    from_w, to_w = bounds(tl.cast(ow, INDEX), W, OW)
    acc = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for i in range(MOST_H):
        for j in range(MOST_W):
            h, w = from_h + i, from_w + j
            x = tl.load(
                x_ptr + (((n * H + h) * W + w) * C + c),
                mask=inside & (h < to_h) & (w < to_w),
                other=0.0,
            )
            acc += x.to(ACC)
    tl.store(y_ptr + dst, acc / ((to_h - from_h) * (to_w - from_w)).to(ACC), mask=inside)


@triton.jit
def _adaptive_avg_pool2d_bwd_kernel(
    dy_ptr, dx_ptr, pixels, C, H, W, OH, OW, MOST_H, MOST_W,  # dy [N, OH, OW, C], dx [N, H, W, C]
    ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    n, h, w, c, dst, inside = pixel_tile(pixels, C, H, W, INDEX, BLOCK_P, BLOCK_C)
    first_oh, last_oh = bounds(tl.cast(h, INDEX), OH, H)
    first_ow, last_ow = bounds(tl.cast(w, INDEX), OW, W)
    acc = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for i in range(MOST_H):
        for j in range(MOST_W):
            oh, ow = first_oh + i, first_ow + j
            covers = inside & (oh < last_oh) & (ow < last_ow)
            from_h, to_h = bounds(tl.cast(oh, INDEX), H, OH)
            from_w, to_w = bounds(tl.cast(ow, INDEX), W, OW)
            dy = tl.load(dy_ptr + (((n * OH + oh) * OW + ow) * C + c), mask=covers, other=0.0)
            acc += dy.to(ACC) * (1 / ((to_h - from_h) * (to_w - from_w)).to(ACC))
    tl.store(dx_ptr + dst, acc, mask=inside)


def _fake(x, size):
    return empty_in((*x.shape[:2], *size), x, layout(x))


@op("adaptive_avg_pool2d(Tensor x, SymInt[] size) -> Tensor", _fake)
def _adaptive_avg_pool2d(x, size):
    N, C, H, W = x.shape
    y = empty_nhwc((N, C, *size), x, layout(x))
    OH, OW = size
    H, W = as_row(H, W, OH, OW)
    programs, blocks = pixel_blocks(N * OH * OW, C)
    launch(
        _adaptive_avg_pool2d_fwd_kernel, programs,
        nhwc(x), y, N * OH * OW, C, H, W, OH, OW,
        longest(H, OH), longest(W, OW),
        accumulator(x.dtype), index_type(x, y, most=max(H * OH, W * OW)), out=y, **blocks,
    )  # fmt: skip
    return leave(y, layout(x))


@op(
    "adaptive_avg_pool2d_bwd(Tensor dy, SymInt[] x_shape, MemoryFormat memory_format) -> Tensor",
    lambda dy, x_shape, memory_format: empty_in(x_shape, dy, memory_format),
)
def _adaptive_avg_pool2d_bwd(dy, x_shape, memory_format):
    N, C, H, W = x_shape
    OH, OW = dy.shape[2:]
    H, W = as_row(H, W, OH, OW)
    dx = empty_nhwc(x_shape, dy, memory_format)
    programs, blocks = pixel_blocks(N * H * W, C, 4096 // dx.element_size())
    launch(
        _adaptive_avg_pool2d_bwd_kernel, programs,
        nhwc(dy), dx, N * H * W, C, H, W, OH, OW, longest(OH, H), longest(OW, W),
        accumulator(dy.dtype), index_type(dx, dy, most=max(H * OH, W * OW)), out=dx, **blocks,
    )  # fmt: skip
    return leave(dx, memory_format)


class AdaptiveAvgPool2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, size):
        ctx.x_like = x.shape, layout(x)
        return _adaptive_avg_pool2d(x, size)

    @staticmethod
    def backward(ctx, dy):
        return AdaptiveAvgPool2dBackwardFunction.apply(dy, *ctx.x_like), None


class AdaptiveAvgPool2dBackwardFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, x_shape, memory_format):
        ctx.size = dy.shape[2:]
        return _adaptive_avg_pool2d_bwd(dy, x_shape, memory_format)

    @staticmethod
    def backward(ctx, ddx):
        return AdaptiveAvgPool2dFunction.apply(ddx, ctx.size), None, None


@public
def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """As torch.nn.functional.adaptive_avg_pool2d.

    input [N, C, H, W] or [C, H, W] -> [N, C, OH, OW] or [C, OH, OW], in input's memory format.
    output_size is OH = OW or (OH, OW); None in its place keeps input's size.  float32, float16,
    bfloat16 or float64.  Raises RuntimeError for shapes and sizes that do not fit,
    NotImplementedError for other dtypes.
    """
    return adaptive_avg_pool("adaptive_avg_pool2d", (input,), 2, output_size)


@public
def adaptive_avg_pool1d(input: Tensor, output_size: int | Sequence[int]) -> Tensor:
    """As torch.nn.functional.adaptive_avg_pool1d.

    input [N, C, L] or [C, L] -> [N, C, output_size] or [C, output_size].  Otherwise as
    adaptive_avg_pool2d.
    """
    return adaptive_avg_pool("adaptive_avg_pool1d", (input,), 1, output_size)


@recalled()
def adaptive_avg_pool(name, given, dims, size) -> Applied:
    (input,) = given
    check_pool_input(name, dims, input, channels=False)
    size = output_size(name, dims, input, size)
    return as_applied(AdaptiveAvgPool2dFunction, dims, input, (size,))
