"""Average pooling over 2-D windows, and 1-D: those of images with a single row.

    y[n, c, oh, ow] = 1/divisor * sum_{kh, kw} x[n, c, oh*SH - PH + kh, ow*SW - PW + kw]

over the taps inside x.  The divisor is divisor_override, or the number of taps inside the padded
image (count_include_pad), or of those inside the image.  Sums run in float32 (float64 for float64).
A program owns a tile of pixels by channels of its result.  The backward gathers (each pixel asks
the windows that cover it), so it needs no atomics and repeats bit for bit; being linear, it has the
forward as its own derivative.  Where the taps are few, its pixels are blocks as large as the
stride, which read their windows once for all of their pixels.
"""

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
    flag,
    index_type,
    integer,
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
from ._pool import SCHEMA as WINDOW_SCHEMA
from ._pool import Window, as_applied, covering_window, span_tile, store_span, window
from ._recall import Applied, recalled

SCHEMA = f"{WINDOW_SCHEMA}, bool count_include_pad, int? divisor_override"


@triton.jit
def _extent(o, SIZE, K, S, P, INCLUDE_PAD: tl.constexpr):
    """Along one axis, how many taps of window o the divisor counts."""
    start = o * S - P
    if INCLUDE_PAD:
        return tl.minimum(start + K, SIZE + P) - start
    return tl.minimum(start + K, SIZE) - tl.maximum(start, 0)


@triton.jit
def _avg_pool2d_fwd_kernel(
    x_ptr, y_ptr, pixels, C, H, W, OH, OW,  # x [N, H, W, C], y [N, OH, OW, C]
    KH, SH, SW, PH, PW, KW: tl.constexpr,
    INCLUDE_PAD: tl.constexpr, DIVISOR: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    n, oh, ow, c, dst, inside = pixel_tile(pixels, C, OH, OW, INDEX, BLOCK_P, BLOCK_C)
    h0, w0 = oh * SH - PH, ow * SW - PW
    pixel = tl.cast(C, INDEX)
    x_tile = x_ptr + (((n * H + h0) * W + w0) * pixel + c)
    acc = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for kh in range(KH):
        row = inside & (h0 + kh >= 0) & (h0 + kh < H)
        for kw in tl.range(KW, loop_unroll_factor=KW if KW < 8 else 1):
            there = row & (w0 + kw >= 0) & (w0 + kw < W)
            acc += tl.load(x_tile + (kh * W + kw) * pixel, mask=there, other=0.0).to(ACC)
    if DIVISOR is None:
        divisor = _extent(oh, H, KH, SH, PH, INCLUDE_PAD) * _extent(ow, W, KW, SW, PW, INCLUDE_PAD)
    else:
        divisor = tl.full((BLOCK_P, 1), DIVISOR, ACC)
    tl.store(y_ptr + dst, acc / divisor.to(ACC), mask=inside)


@triton.jit
def _divided(
    dy, oh, ow, there, H, W, KH, KW, SH, SW, PH, PW,
    INCLUDE_PAD: tl.constexpr, DIVISOR: tl.constexpr,
):  # fmt: skip
    """dy of windows (oh, ow), divided; that of windows that are not there is zero, and stays so."""
    if DIVISOR is None:
        rows = _extent(oh, H, KH, SH, PH, INCLUDE_PAD)
        columns = _extent(ow, W, KW, SW, PW, INCLUDE_PAD)
        dy *= 1 / tl.where(there, rows * columns, 1).to(dy.dtype)
    else:
        dy *= 1 / tl.full((), DIVISOR, dy.dtype)
    return dy


@triton.jit
def _added(acc, dy, kh: tl.constexpr, kw: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr):
    """acc, and dy if its window has a tap (kh, kw)."""
    if (kh >= 0) & (kh < KH) & (kw >= 0) & (kw < KW):
        acc += dy
    return acc


@triton.jit
def _avg_pool2d_bwd_kernel(
    dy_ptr, dx_ptr, spans, C, H, W, OH, OW,  # dy [N, OH, OW, C], dx [N, H, W, C]
    PH, PW, SPANS_H, SPANS_W,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    REACH_H: tl.constexpr, REACH_W: tl.constexpr, SPAN_H: tl.constexpr, SPAN_W: tl.constexpr,
    INCLUDE_PAD: tl.constexpr, DIVISOR: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    n, oh0, ow0, h0, w0, c, inside = span_tile(
        spans, C, SPANS_H, SPANS_W, PH, PW, SH, SW, SPAN_H, SPAN_W, INDEX, BLOCK_P, BLOCK_C
    )  # fmt: skip
    pixel = tl.cast(C, INDEX)
    dy_tile = dy_ptr + (((n * OH + oh0) * OW + ow0) * pixel + c)
    acc = (tl.zeros((BLOCK_P, BLOCK_C), ACC),) * (SPAN_H * SPAN_W)
    for o_h in tl.static_range(1 - REACH_H, SPAN_H // SH):
        oh = oh0 + o_h
        for o_w in tl.static_range(1 - REACH_W, SPAN_W // SW):
            ow = ow0 + o_w
            there = (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW)
            step = (o_h * OW + o_w) * pixel
            dy = tl.load(dy_tile + step, mask=inside & there, other=0.0).to(ACC)
            dy = _divided(
                dy, oh, ow, there, H, W, KH, KW, SH, SW, PH, PW, INCLUDE_PAD, DIVISOR
            )  # fmt: skip
            more = ()
            for i in tl.static_range(SPAN_H):
                for j in tl.static_range(SPAN_W):
                    more += (_added(acc[i * SPAN_W + j], dy, i - o_h * SH, j - o_w * SW, KH, KW),)
            acc = more
    store_span(dx_ptr, acc, n, h0, w0, c, inside, H, W, pixel, SPAN_H, SPAN_W)


@triton.jit
def _avg_pool2d_bwd_any_kernel(
    dy_ptr, dx_ptr, pixels, C, H, W, OH, OW,  # dy [N, OH, OW, C], dx [N, H, W, C]
    KH, KW, SH, SW, PH, PW, VISITS_H, VISITS_W,
    INCLUDE_PAD: tl.constexpr, DIVISOR: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    n, h, w, c, dst, inside = pixel_tile(pixels, C, H, W, INDEX, BLOCK_P, BLOCK_C)
    acc = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for back_h in range(VISITS_H):
        oh, _, covers_h = covering_window(h, back_h, OH, KH, SH, PH, 1)
        for back_w in range(VISITS_W):
            ow, _, covers_w = covering_window(w, back_w, OW, KW, SW, PW, 1)
            covers = covers_h & covers_w
            src = ((n * OH + oh) * OW + ow) * C + c
            dy = tl.load(dy_ptr + src, mask=inside & covers, other=0.0).to(ACC)
            acc += _divided(
                dy, oh, ow, covers, H, W, KH, KW, SH, SW, PH, PW, INCLUDE_PAD, DIVISOR
            )  # fmt: skip
    tl.store(dx_ptr + dst, acc, mask=inside)


def _fake(x, *geometry):
    return empty_in(Window(*geometry[:5]).y_shape(x.shape), x, layout(x))


@op(f"avg_pool2d(Tensor x, {SCHEMA}) -> Tensor", _fake)
def _avg_pool2d(x, *geometry):
    w, (include_pad, divisor) = Window(*geometry[:5]), geometry[5:]
    y = empty_nhwc(w.y_shape(x.shape), x, layout(x))
    N, C, OH, OW = y.shape
    programs, blocks = pixel_blocks(N * OH * OW, C)
    launch(
        _avg_pool2d_fwd_kernel, programs,
        nhwc(x), y, N * OH * OW, C, *x.shape[2:], OH, OW,
        w.size[0], *w.stride, *w.padding, w.size[1],
        include_pad, divisor, accumulator(x.dtype), index_type(x, y), out=y, **blocks,
    )  # fmt: skip
    return leave(y, layout(x))


@op(
    f"avg_pool2d_bwd(Tensor dy, SymInt[] x_shape, MemoryFormat memory_format, {SCHEMA}) -> Tensor",
    lambda dy, x_shape, memory_format, *geometry: empty_in(x_shape, dy, memory_format),
)
def _avg_pool2d_bwd(dy, x_shape, memory_format, *geometry):
    w, (include_pad, divisor) = Window(*geometry[:5]), geometry[5:]
    dx = empty_nhwc(x_shape, dy, memory_format)
    N, C, H, W = x_shape
    settings = include_pad, divisor, accumulator(dy.dtype), index_type(dx, dy)
    if w.unrolls:
        spans = w.spans(H, W)
        programs, blocks = pixel_blocks(N * prod(spans), C, 4096 // max(dx.element_size(), 4))
        launch(
            _avg_pool2d_bwd_kernel, programs,
            nhwc(dy), dx, N * prod(spans), C, H, W, *dy.shape[2:],
            *w.padding, *spans, *w.size, *w.stride, *w.reach, *w.span, *settings,
            out=dx, **blocks,
        )  # fmt: skip
    else:
        programs, blocks = pixel_blocks(N * H * W, C, 4096 // dx.element_size())
        launch(
            _avg_pool2d_bwd_any_kernel, programs,
            nhwc(dy), dx, N * H * W, C, H, W, *dy.shape[2:],
            *w.size, *w.stride, *w.padding, *w.visits(*dy.shape[2:]), *settings,
            out=dx, **blocks,
        )  # fmt: skip
    return leave(dx, memory_format)


class AvgPool2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, geometry):
        ctx.x_like, ctx.geometry = (x.shape, layout(x)), geometry
        return _avg_pool2d(x, *geometry)

    @staticmethod
    def backward(ctx, dy):
        return AvgPool2dBackwardFunction.apply(dy, *ctx.x_like, ctx.geometry), None


class AvgPool2dBackwardFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, x_shape, memory_format, geometry):
        ctx.geometry = geometry
        return _avg_pool2d_bwd(dy, x_shape, memory_format, *geometry)

    @staticmethod
    def backward(ctx, ddx):
        return AvgPool2dFunction.apply(ddx, ctx.geometry), None, None, None


@public
def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """As torch.nn.functional.avg_pool2d.

    input [N, C, H, W] or [C, H, W] -> [N, C, OH, OW] or [C, OH, OW], in input's memory format.
    float32, float16, bfloat16 or float64.  Raises RuntimeError for shapes and options that do not
    fit, NotImplementedError for other dtypes.
    """
    if divisor_override is not None:
        divisor_override = integer("avg_pool2d", "divisor_override", divisor_override)
        if divisor_override == 0 or abs(divisor_override) >= 2**63:
            raise RuntimeError(
                "avg_pool2d: divisor_override must be a 64-bit integer other than zero, got "
                f"{divisor_override}; pass None for the window's size"
            )
    return avg_pool(
        "avg_pool2d", (input,), 2, kernel_size, stride, padding, ceil_mode, count_include_pad,
        divisor_override,
    )  # fmt: skip


@public
def avg_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """As torch.nn.functional.avg_pool1d.

    input [N, C, L] or [C, L] -> [N, C, OL] or [C, OL].  Otherwise as avg_pool2d.
    """
    return avg_pool(
        "avg_pool1d", (input,), 1, kernel_size, stride, padding, ceil_mode, count_include_pad, None
    )


@recalled()
def avg_pool(
    name, given, dims, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor
) -> Applied:
    (input,) = given
    w = window(name, dims, input, kernel_size, stride, padding, 1, ceil_mode).of_images()
    geometry = (*w, flag(name, "count_include_pad", count_include_pad), divisor)
    return as_applied(AvgPool2dFunction, dims, input, (geometry,))
