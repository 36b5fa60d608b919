"""Convolution forward, the general family: implicit GEMM over gathered pixels.

    y[n, oh, ow, o] = b[o] + sum_{kh, kw, c} x[n, h, w, c] * w[o, kh, kw, c]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW

and what the epilogue makes of it.  A program owns BLOCK_M pixels of y by BLOCK_N output channels of
one group.
"""

import triton
import triton.language as tl

from .._common import (
    accumulator,
    empty_in,
    empty_nhwc,
    index_type,
    leave,
    nhwc,
    op,
    unravel,
)
from .._launch import launch
from .._split import sum_dtype
from ..norm.stats import combined, partial_statistics
from . import epilogue, tiles
from .epilogue import Epilogue, finish
from .geometry import SCHEMA, Geometry
from .precision import input_precision
from .taps import accumulate_taps, form


@triton.jit
def _conv2d_fwd_kernel(
    x_ptr, w_ptr, y_ptr,  # x [N, H, W, C], w [CO, KH, KW, CG], y [N, OH, OW, CO]
    pixels, H, W, CG, OH, OW, COG, GROUPS, KH, KW, SH, SW, PH, PW, DH, DW,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, FORM: tl.constexpr, TAIL: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles_n = tl.cdiv(COG, BLOCK_N)
    n = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    group = program // tiles_n % GROUPS
    start = tl.cast(program // (tiles_n * GROUPS), INDEX) * BLOCK_M
    m = start + tl.arange(0, BLOCK_M)
    C, CO = tl.cast(CG * GROUPS, INDEX), tl.cast(COG * GROUPS, INDEX)

    image, oh, ow = unravel(start, BLOCK_M, OH, OW)
    h0, w0 = oh * SH - PH, ow * SW - PW
    w_w = tl.cast(CG, INDEX)
    acc = accumulate_taps(
        tl.zeros((BLOCK_M, BLOCK_N), ACC),
        x_ptr + group * CG, ((image * H + h0) * W + w0) * C, h0, w0, m < pixels, H, W, C,
        w_ptr + tl.cast(group * COG, INDEX) * (KH * KW * CG), n * (KH * KW * w_w), n < COG,
        KW * w_w, w_w, 1,
        KH, KW, CG, DH, DW, FORM, TAIL, PRECISION, BLOCK_K, STAGES,
    )  # fmt: skip

    o = group * COG + n
    finish(
        acc, y_ptr, m[:, None] * CO + o[None, :], m < pixels, tl.minimum(pixels - start, BLOCK_M),
        o, CO, n < COG, program // (tiles_n * GROUPS),
        b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
        EPS, ACTIVATION, ACC,
    )  # fmt: skip


def _forward(x, w, end: Epilogue, with_stats: bool, memory_format, geometry):
    """y and, where wanted, [mean, var] of its channels."""
    g = Geometry(*geometry)
    x, w = nhwc(x), nhwc(w)
    y = empty_nhwc(g.y_shape(x.shape, w.shape), x)
    if y.numel() == 0:
        return leave(y, memory_format), None
    N, CO, OH, OW = y.shape
    CG, KH, KW = w.shape[1:]
    COG, pixels, taps = CO // g.groups, N * OH * OW, KH * KW
    which = form(taps, CG)
    tile = tiles.choose(pixels, COG, taps * CG if which == "flat" else CG, x, CG)
    tiles_m = triton.cdiv(pixels, tile.m)
    partial = partial_statistics(tiles_m, CO, x) if with_stats else None
    launch(
        _conv2d_fwd_kernel, tiles_m * triton.cdiv(COG, tile.n) * g.groups,
        x, w, y,
        pixels, *x.shape[2:], CG, OH, OW, COG, g.groups, KH, KW, *g.stride, *g.before, *g.dilation,
        *end.arguments(partial), which, CG % tile.k != 0, input_precision(x),
        accumulator(x.dtype), index_type(x, w, y), tile.m, tile.n, tile.k, tile.stages,
        out=(y, partial) if with_stats else y, num_warps=tile.warps,
    )  # fmt: skip
    return leave(y, memory_format), combined(partial) if with_stats else None


def _fake(x, w, memory_format, geometry):
    return empty_in(Geometry(*geometry).y_shape(x.shape, w.shape), x, memory_format)


@op(
    f"conv2d(Tensor x, Tensor w, Tensor? bias, MemoryFormat memory_format, {SCHEMA}) -> Tensor",
    lambda x, w, bias, memory_format, *geometry: _fake(x, w, memory_format, geometry),
)
def conv2d_forward(x, w, bias, memory_format, *geometry):
    return _forward(x, w, Epilogue(bias), False, memory_format, geometry)[0]


@op(
    "conv2d_stats(Tensor x, Tensor w, Tensor? bias, MemoryFormat memory_format, "
    f"{SCHEMA}) -> (Tensor, Tensor)",
    lambda x, w, bias, memory_format, *geometry: (
        _fake(x, w, memory_format, geometry),
        x.new_empty((2, w.shape[0]), dtype=sum_dtype(x.dtype)),
    ),
)
def conv2d_stats(x, w, bias, memory_format, *geometry):
    """y, which has elements, and [mean, var] of its channels."""
    return _forward(x, w, Epilogue(bias), True, memory_format, geometry)


@op(
    f"conv2d_fused(Tensor x, Tensor w, {epilogue.SCHEMA}, MemoryFormat memory_format, "
    f"{SCHEMA}) -> Tensor",
    lambda x, w, *args: _fake(x, w, args[-6], args[-5:]),
)
def conv2d_fused(x, w, *args):
    """As the epilogue says."""
    *end, memory_format = args[:-5]
    return _forward(x, w, Epilogue(*end), False, memory_format, args[-5:])[0]
