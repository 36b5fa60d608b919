"""Max pooling over 2-D windows, and 1-D: those of images with a single row.

    y[n, c, oh, ow] = max_{kh, kw} x[n, c, oh*SH - PH + kh*DH, ow*SW - PW + kw*DW]

over the taps inside x.  NaN wins, the first of equal values wins.  A program owns a tile of pixels
by channels of its result.  For the backward the forward keeps the winning tap's number, in one byte
where the window has at most 255 taps; the backward gathers (each pixel asks the windows that cover
it), so it needs no atomics and repeats bit for bit.  Where the taps are few, its pixels are blocks
as large as the stride, which read their windows once for all of their pixels.
"""

import functools
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    Size,
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
from ._pool import (
    SCHEMA,
    Window,
    as_applied,
    covering_window,
    span_tile,
    store_span,
    window,
    with_winner,
)
from ._recall import Applied, recalled


@triton.jit
def _max_pool2d_fwd_kernel(
    x_ptr, y_ptr, tap_ptr, pixels, C, H, W, OH, OW,  # x [N, H, W, C]; y, tap [N, OH, OW, C]
    KH, SH, SW, PH, PW, DH, DW, KW: tl.constexpr,
    WITH_TAP: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    n, oh, ow, c, dst, inside = pixel_tile(pixels, C, OH, OW, INDEX, BLOCK_P, BLOCK_C)
    h0, w0 = oh * SH - PH, ow * SW - PW
    kh0, kw0 = tl.cdiv(tl.maximum(-h0, 0), DH), tl.cdiv(tl.maximum(-w0, 0), DW)
    begins = (h0 + kh0 * DH < H) & (w0 + kw0 * DW < W)
    best = tl.full((BLOCK_P, BLOCK_C), float("-inf"), ACC)
    best_tap = tl.where(begins, kh0 * KW + kw0, -1) + tl.zeros((BLOCK_P, BLOCK_C), tl.int32)
    pixel = tl.cast(C, INDEX)
    x_tile = x_ptr + (((n * H + h0) * W + w0) * pixel + c)
    for kh in range(KH):
        h = h0 + kh * DH
        row = inside & (h >= 0) & (h < H)
        for kw in tl.range(KW, loop_unroll_factor=KW if KW < 8 else 1):
            w = w0 + kw * DW
            x = tl.load(
                x_tile + (kh * DH * W + kw * DW) * pixel,
                mask=row & (w >= 0) & (w < W),
                other=float("-inf"),
            ).to(ACC)
            wins = (x > best) | (x != x)
            best = tl.where(wins, x, best)
            best_tap = tl.where(wins, kh * KW + kw, best_tap)
    tl.store(y_ptr + dst, best, mask=inside)
    if WITH_TAP:
        tl.store(tap_ptr + dst, best_tap, mask=inside)


@triton.jit
def _won(acc, dy, tap, kh: tl.constexpr, kw: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr):
    """acc, and dy where tap (kh, kw) won, if the window has it."""
    if (kh >= 0) & (kh < KH) & (kw >= 0) & (kw < KW):
        acc += tl.where(tap == kh * KW + kw, dy, 0.0)
    return acc


@triton.jit
def _max_pool2d_scatter_kernel(
    dy_ptr, tap_ptr, dx_ptr, spans, C, H, W, OH, OW,  # dy, tap [N, OH, OW, C], dx [N, H, W, C]
    PH, PW, SPANS_H, SPANS_W,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    REACH_H: tl.constexpr, REACH_W: tl.constexpr, SPAN_H: tl.constexpr, SPAN_W: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    n, oh0, ow0, h0, w0, c, inside = span_tile(
        spans, C, SPANS_H, SPANS_W, PH, PW, SH, SW, SPAN_H, SPAN_W, INDEX, BLOCK_P, BLOCK_C
    )  # fmt: skip
    pixel = tl.cast(C, INDEX)
    src = ((n * OH + oh0) * OW + ow0) * pixel + c
    dy_tile, tap_tile = dy_ptr + src, tap_ptr + src
    acc = (tl.zeros((BLOCK_P, BLOCK_C), ACC),) * (SPAN_H * SPAN_W)
    for o_h in tl.static_range(1 - REACH_H, SPAN_H // SH):
        row = inside & (oh0 + o_h >= 0) & (oh0 + o_h < OH)
        for o_w in tl.static_range(1 - REACH_W, SPAN_W // SW):
            there = row & (ow0 + o_w >= 0) & (ow0 + o_w < OW)
            step = (o_h * OW + o_w) * pixel
            tap = tl.load(tap_tile + step, mask=there, other=0).to(tl.int32)
            dy = tl.load(dy_tile + step, mask=there, other=0.0).to(ACC)
            more = ()
            for i in tl.static_range(SPAN_H):
                for j in tl.static_range(SPAN_W):
                    more += (
                        _won(acc[i * SPAN_W + j], dy, tap, i - o_h * SH, j - o_w * SW, KH, KW),
                    )
            acc = more
    store_span(dx_ptr, acc, n, h0, w0, c, inside, H, W, pixel, SPAN_H, SPAN_W)


@triton.jit
def _max_pool2d_scatter_any_kernel(
    dy_ptr, tap_ptr, dx_ptr, pixels, C, H, W, OH, OW,  # dy, tap [N, OH, OW, C], dx [N, H, W, C]
    KH, KW, SH, SW, PH, PW, DH, DW, VISITS_H, VISITS_W,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    n, h, w, c, dst, inside = pixel_tile(pixels, C, H, W, INDEX, BLOCK_P, BLOCK_C)
    acc = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for back_h in range(VISITS_H):
        oh, kh, covers_h = covering_window(h, back_h, OH, KH, SH, PH, DH)
        for back_w in range(VISITS_W):
            ow, kw, covers_w = covering_window(w, back_w, OW, KW, SW, PW, DW)
            src = ((n * OH + oh) * OW + ow) * C + c
            covers = inside & covers_h & covers_w
            tap = tl.load(tap_ptr + src, mask=covers, other=0).to(tl.int32)
            dy = tl.load(dy_ptr + src, mask=covers, other=0.0).to(ACC)
            acc += tl.where(tap == kh * KW + kw, dy, 0.0)
    tl.store(dx_ptr + dst, acc, mask=inside)


@triton.jit
def _max_pool2d_gather_kernel(
    x_ptr, tap_ptr, y_ptr, pixels, C, H, W, OH, OW,  # x [N, H, W, C]; tap, y [N, OH, OW, C]
    KH, KW, SH, SW, PH, PW, DH, DW,
    INDEX: tl.constexpr, UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    n, oh, ow, c, dst, inside = pixel_tile(pixels, C, OH, OW, INDEX, BLOCK_P, BLOCK_C)
    tap = tl.load(tap_ptr + dst, mask=inside, other=0).to(tl.int32)
    h, w = oh * SH - PH + tap // KW * DH, ow * SW - PW + tap % KW * DW
    won = inside & (tap < KH * KW) & (tap >= 0)
    x = tl.load(x_ptr + (((n * H + h) * W + w) * C + c), mask=won, other=0.0)
    tl.store(y_ptr + dst, x, mask=inside)


def _tap_dtype(w: Window) -> torch.dtype:
    return torch.uint8 if w.size[0] * w.size[1] <= 255 else torch.int32


def _fake(x, with_tap, *geometry):
    w = Window(*geometry)
    y = empty_in(w.y_shape(x.shape), x, layout(x))
    tap = torch.empty_like(y, dtype=_tap_dtype(w), memory_format=torch.channels_last)
    return y, tap if with_tap else tap.new_empty(0)


@op(f"max_pool2d(Tensor x, bool with_tap, {SCHEMA}) -> (Tensor, Tensor)", _fake)
def _max_pool2d(x, with_tap, *geometry):
    w = Window(*geometry)
    y = empty_nhwc(w.y_shape(x.shape), x, layout(x))
    dtype = _tap_dtype(w)
    tap = empty_nhwc(y.shape, x, dtype=dtype) if with_tap else x.new_empty(0, dtype=dtype)
    N, C, OH, OW = y.shape
    programs, blocks = pixel_blocks(N * OH * OW, C)
    launch(
        _max_pool2d_fwd_kernel, programs,
        nhwc(x), y, tap, N * OH * OW, C, *x.shape[2:], OH, OW,
        w.size[0], *w.stride, *w.padding, *w.dilation, w.size[1],
        with_tap, accumulator(x.dtype), index_type(x, y), out=(y, tap), **blocks,
    )  # fmt: skip
    return leave(y, layout(x)), tap


@op(
    "max_pool2d_scatter(Tensor dy, Tensor tap, SymInt[] x_shape, MemoryFormat memory_format, "
    f"{SCHEMA}) -> Tensor",
    lambda dy, tap, x_shape, memory_format, *geometry: empty_in(x_shape, dy, memory_format),
)
def _max_pool2d_scatter(dy, tap, x_shape, memory_format, *geometry):
    w = Window(*geometry)
    dx = empty_nhwc(x_shape, dy, memory_format)
    N, C, H, W = x_shape
    settings = accumulator(dy.dtype), index_type(dx, dy)
    if w.unrolls:
        spans = w.spans(H, W)
        programs, blocks = pixel_blocks(N * prod(spans), C, 4096 // max(dx.element_size(), 4))
        launch(
            _max_pool2d_scatter_kernel, programs,
            nhwc(dy), tap, dx, N * prod(spans), C, H, W, *dy.shape[2:],
            *w.padding, *spans, *w.size, *w.stride, *w.reach, *w.span, *settings,
            out=dx, **blocks,
        )  # fmt: skip
    else:
        programs, blocks = pixel_blocks(N * H * W, C)
        launch(
            _max_pool2d_scatter_any_kernel, programs,
            nhwc(dy), tap, dx, N * H * W, C, H, W, *dy.shape[2:],
            *w.size, *w.stride, *w.padding, *w.dilation, *w.visits(*dy.shape[2:]), *settings,
            out=dx, **blocks,
        )  # fmt: skip
    return leave(dx, memory_format)


@op(
    f"max_pool2d_gather(Tensor x, Tensor tap, {SCHEMA}) -> Tensor",
    lambda x, tap, *geometry: empty_in(tap.shape, x, layout(x)),
)
def _max_pool2d_gather(x, tap, *geometry):
    w = Window(*geometry)
    y = empty_nhwc(tap.shape, x, layout(x))
    N, C, OH, OW = y.shape
    programs, blocks = pixel_blocks(N * OH * OW, C)
    launch(
        _max_pool2d_gather_kernel, programs,
        nhwc(x), tap, y, N * OH * OW, C, *x.shape[2:], OH, OW,
        *w.size, *w.stride, *w.padding, *w.dilation,
        index_type(x, y), out=y, **blocks,
    )  # fmt: skip
    return leave(y, layout(x))


class MaxPool2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, with_tap, gives_tap, w):
        y, tap = _max_pool2d(x, with_tap, *w)
        ctx.save_for_backward(tap)
        ctx.x_like, ctx.window = (x.shape, layout(x)), w
        if not gives_tap:
            return y
        ctx.mark_non_differentiable(tap)
        ctx.set_materialize_grads(False)
        return y, tap

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 4
        (tap,) = ctx.saved_tensors
        return MaxPool2dScatterFunction.apply(dy, tap, *ctx.x_like, ctx.window), None, None, None


class MaxPool2dScatterFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, tap, x_shape, memory_format, w):
        ctx.save_for_backward(tap)
        ctx.window = w
        return _max_pool2d_scatter(dy, tap, x_shape, memory_format, *w)

    @staticmethod
    def backward(ctx, ddx):
        (tap,) = ctx.saved_tensors
        return MaxPool2dGatherFunction.apply(ddx, tap, ctx.window), None, None, None, None


class MaxPool2dGatherFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, tap, w):
        ctx.save_for_backward(tap)
        ctx.x_like, ctx.window = (x.shape, layout(x)), w
        return _max_pool2d_gather(x, tap, *w)

    @staticmethod
    def backward(ctx, dy):
        (tap,) = ctx.saved_tensors
        return MaxPool2dScatterFunction.apply(dy, tap, *ctx.x_like, ctx.window), None, None


def _flat_indices(tap: Tensor, w: Window, width: int) -> Tensor:
    """torch's indices, h * width + w as int64, of the taps that won."""
    kernel = tap.to(torch.int64)
    first_h = torch.arange(tap.shape[2], device=tap.device)[:, None] * w.stride[0] - w.padding[0]
    first_w = torch.arange(tap.shape[3], device=tap.device) * w.stride[1] - w.padding[1]
    h = first_h + kernel // w.size[1] * w.dilation[0]
    return h * width + first_w + kernel % w.size[1] * w.dilation[1]


@public
def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """As torch.nn.functional.max_pool2d.

    input [N, C, H, W] or [C, H, W] -> [N, C, OH, OW] or [C, OH, OW], in input's memory format, and
    with return_indices also where each maximum lies, int64 h * W + w.  float32, float16, bfloat16
    or float64.  Raises RuntimeError for shapes and options that do not fit, NotImplementedError for
    other dtypes.
    """
    return max_pool(
        "max_pool2d", (input,), 2, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


@public
def max_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """As torch.nn.functional.max_pool1d.

    input [N, C, L] or [C, L] -> [N, C, OL] or [C, OL]; indices are positions along L.  Otherwise as
    max_pool2d.
    """
    return max_pool(
        "max_pool1d", (input,), 1, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


@recalled()
def max_pool(
    name, given, dims, kernel_size, stride, padding, dilation, ceil_mode, return_indices
) -> Applied:
    (input,) = given
    w = window(name, dims, input, kernel_size, stride, padding, dilation, ceil_mode).of_images()
    indices = None
    if return_indices:
        indices = functools.partial(_flat_indices, w=w, width=input.shape[-1])
    options = with_winner(input, return_indices), indices is not None, w
    return as_applied(MaxPool2dFunction, dims, input, options, indices)
