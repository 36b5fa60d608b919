"""Max pooling to a given output size, in 2-D, and 1-D: of images with a single row.

    y[n, c, oh, ow] = max of x[n, c, h, w],
        h in [floor(oh*H/OH), ceil((oh+1)*H/OH)), w in [floor(ow*W/OW), ceil((ow+1)*W/OW))

NaN wins (the last of several), the first of equal values wins.  A program owns a tile of pixels by
channels of its result.  The forward keeps where the maximum lies, h * W + w; the backward gathers
(each pixel asks the windows that cover it), so it needs no atomics and repeats bit for bit.
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
    reshaped,
    units,
)
from ._launch import launch
from ._pool import (
    as_applied,
    as_row,
    bounds,
    check_pool_input,
    longest,
    output_size,
    with_winner,
)
from ._recall import Applied, recalled


@triton.jit
def _adaptive_max_pool2d_fwd_kernel(
    x_ptr, y_ptr, at_ptr, pixels, C, H, W, OH, OW,  # x [N, H, W, C]; y, at [N, OH, OW, C]
    MOST_H, MOST_W,
    WITH_AT: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    n, oh, ow, c, dst, inside = pixel_tile(pixels, C, OH, OW, INDEX, BLOCK_P, BLOCK_C)
    from_h, to_h = bounds(tl.cast(oh, INDEX), H, OH)
    from_w, to_w = bounds(tl.cast(ow, INDEX), W, OW)
    best = tl.full((BLOCK_P, BLOCK_C), float("-inf"), ACC)
    best_at = (from_h * W + from_w) + tl.zeros((BLOCK_P, BLOCK_C), INDEX)
    for i in range(MOST_H):
        for j in range(MOST_W):
            h, w = from_h + i, from_w + j
            valid = inside & (h < to_h) & (w < to_w)
            x = tl.load(
                x_ptr + (((n * H + h) * W + w) * C + c), mask=valid, other=float("-inf")
            ).to(ACC)
            wins = (x > best) | (x != x)
            best = tl.where(wins, x, best)
            best_at = tl.where(wins, h * W + w, best_at)
    tl.store(y_ptr + dst, best, mask=inside)
    if WITH_AT:
        tl.store(at_ptr + dst, best_at, mask=inside)


@triton.jit
def _adaptive_max_pool2d_scatter_kernel(
    dy_ptr, at_ptr, dx_ptr, pixels, C, H, W, OH, OW,  # dy, at [N, OH, OW, C], dx [N, H, W, C]
    MOST_H, MOST_W,
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
            src = ((n * OH + oh) * OW + ow) * C + c
            at = tl.load(at_ptr + src, mask=covers, other=0)
            dy = tl.load(dy_ptr + src, mask=covers, other=0.0).to(ACC)
            acc += tl.where(at == h * W + w, dy, 0.0)
    tl.store(dx_ptr + dst, acc, mask=inside)


def _at_dtype(H: int, W: int) -> torch.dtype:
    return torch.int32 if H * W < 2**31 else torch.int64


def _fake(x, size, with_at):
    shape = (*x.shape[:2], *size)
    at = torch.empty(
        shape, dtype=_at_dtype(*x.shape[2:]), device=x.device, memory_format=torch.channels_last
    )
    return empty_in(shape, x, layout(x)), at if with_at else at.new_empty(0)


@op("adaptive_max_pool2d(Tensor x, SymInt[] size, bool with_at) -> (Tensor, Tensor)", _fake)
def _adaptive_max_pool2d(x, size, with_at):
    N, C, H, W = x.shape
    OH, OW = size
    y = empty_nhwc((N, C, OH, OW), x, layout(x))
    dtype = _at_dtype(H, W)
    at = empty_nhwc(y.shape, x, dtype=dtype) if with_at else x.new_empty(0, dtype=dtype)
    H, W = as_row(H, W, OH, OW)
    programs, blocks = pixel_blocks(N * OH * OW, C)
    launch(
        _adaptive_max_pool2d_fwd_kernel, programs,
        nhwc(x), y, at, N * OH * OW, C, H, W, OH, OW, longest(H, OH), longest(W, OW),
        with_at, accumulator(x.dtype), index_type(x, y, most=max(H * OH, W * OW)),
        out=(y, at), **blocks,
    )  # fmt: skip
    return leave(y, layout(x)), at


@op(
    "adaptive_max_pool2d_scatter(Tensor dy, Tensor at, SymInt[] x_shape, "
    "MemoryFormat memory_format) -> Tensor",
    lambda dy, at, x_shape, memory_format: empty_in(x_shape, dy, memory_format),
)
def _adaptive_max_pool2d_scatter(dy, at, x_shape, memory_format):
    N, C, H, W = x_shape
    OH, OW = dy.shape[2:]
    H, W = as_row(H, W, OH, OW)
    dx = empty_nhwc(x_shape, dy, memory_format)
    programs, blocks = pixel_blocks(N * H * W, C)
    launch(
        _adaptive_max_pool2d_scatter_kernel, programs,
        nhwc(dy), at, dx, N * H * W, C, H, W, OH, OW, longest(OH, H), longest(OW, W),
        accumulator(dy.dtype), index_type(dx, dy, most=max(H * OH, W * OW)), out=dx, **blocks,
    )  # fmt: skip
    return leave(dx, memory_format)


class AdaptiveMaxPool2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, size, with_at, gives_at):
        y, at = _adaptive_max_pool2d(x, size, with_at)
        ctx.save_for_backward(at)
        ctx.x_like = x.shape, layout(x)
        if not gives_at:
            return y
        ctx.mark_non_differentiable(at)
        ctx.set_materialize_grads(False)
        return y, at

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 4
        (at,) = ctx.saved_tensors
        return AdaptiveMaxPool2dScatterFunction.apply(dy, at, *ctx.x_like), None, None, None


class AdaptiveMaxPool2dScatterFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, at, x_shape, memory_format):
        ctx.save_for_backward(at)
        return _adaptive_max_pool2d_scatter(dy, at, x_shape, memory_format)

    @staticmethod
    def backward(ctx, ddx):
        (at,) = ctx.saved_tensors
        return AdaptiveMaxPool2dGatherFunction.apply(ddx, at), None, None, None


class AdaptiveMaxPool2dGatherFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, at):
        ctx.save_for_backward(at)
        ctx.x_like = x.shape, layout(x)
        y = x.flatten(2).gather(2, at.flatten(2).long())
        return leave(reshaped(y, at.shape), layout(x))

    @staticmethod
    def backward(ctx, dy):
        (at,) = ctx.saved_tensors
        return AdaptiveMaxPool2dScatterFunction.apply(dy, at, *ctx.x_like), None


@public
def adaptive_max_pool2d(
    input: Tensor, output_size: int | Sequence[int | None], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """As torch.nn.functional.adaptive_max_pool2d.

    input [N, C, H, W] or [C, H, W] -> [N, C, OH, OW] or [C, OH, OW], in input's memory format, and
    with return_indices also where each maximum lies, int64 h * W + w.  output_size is OH = OW or
    (OH, OW); None in its place keeps input's size.  float32, float16, bfloat16 or float64.  Raises
    RuntimeError for shapes and sizes that do not fit, NotImplementedError for other dtypes.
    """
    return adaptive_max_pool("adaptive_max_pool2d", (input,), 2, output_size, return_indices)


@public
def adaptive_max_pool1d(
    input: Tensor, output_size: int | Sequence[int], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """As torch.nn.functional.adaptive_max_pool1d.

    input [N, C, L] or [C, L] -> [N, C, output_size] or [C, output_size]; indices are positions
    along L.  Otherwise as adaptive_max_pool2d.
    """
    return adaptive_max_pool("adaptive_max_pool1d", (input,), 1, output_size, return_indices)


@recalled()
def adaptive_max_pool(name, given, dims, size, return_indices) -> Applied:
    (input,) = given
    check_pool_input(name, dims, input)
    size = output_size(name, dims, input, size)
    indices = Tensor.long if return_indices else None
    options = size, with_winner(input, return_indices), indices is not None
    return as_applied(AdaptiveMaxPool2dFunction, dims, input, options, indices)
