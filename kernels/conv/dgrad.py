"""Gradient of a convolution with respect to its input; with a bias, the transposed convolution.

    dx[n, h, w, c] = b[c] + sum_{kh, kw, o} dy[n, oh, ow, o] * w[o, kh, kw, c]
        where oh = (h + PH - kh*DH) / SH and ow = (w + PW - kw*DW) / SW are whole

and what the epilogue makes of it.  Which taps those are depends only on (h mod SH, w mod SW): for
each of these SH*SW residue classes the sum is a dense convolution of dy with every second, third,
... tap, so no product with a zero is computed.  A program owns BLOCK_M pixels of one class by
BLOCK_N input channels of one group, and reads w as it lies.
"""

import math

import triton
import triton.language as tl

from .._common import accumulator, empty_in, empty_nhwc, index_type, leave, nhwc, op, unravel
from .._launch import launch
from .._split import sum_dtype
from ..norm.stats import combined, partial_statistics
from . import epilogue, tiles
from .epilogue import Epilogue, finish
from .geometry import SCHEMA, Geometry
from .precision import input_precision
from .taps import accumulate_taps, form


@triton.jit
def _class_taps(residue, K, S, P, D, STEP):
    """First tap and number of taps that hit pixels = residue (mod S); taps repeat every STEP."""
    first = K
    for k in range(STEP):
        # -k*D = k*D*(S - 1) (mod S) keeps the dividend non-negative
        hits = (residue + P + k * D * (S - 1)) % S == 0
        first = tl.where(hits & (k < first), k, first)
    return first, tl.cdiv(K - first, STEP)


@triton.jit
def _conv2d_dgrad_kernel(
    dy_ptr, w_ptr, dx_ptr,  # dy [N, OH, OW, CO], w [CO, KH, KW, CG], dx [N, H, W, C]
    N, H, W, CG, OH, OW, COG, GROUPS, KH, KW, SH, SW, PH, PW, DH, DW,
    STEP_H, STEP_W,  # taps of one class lie this far apart
    tiles_m,  # tiles of the largest class
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, FORM: tl.constexpr, TAIL: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles_n = tl.cdiv(CG, BLOCK_N)
    n = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    program = program // tiles_n
    group = program % GROUPS
    program = program // GROUPS
    start = tl.cast(program % tiles_m, INDEX) * BLOCK_M
    m = start + tl.arange(0, BLOCK_M)
    residue_h, residue_w = program // tiles_m // SW, program // tiles_m % SW
    C, CO = tl.cast(CG * GROUPS, INDEX), tl.cast(COG * GROUPS, INDEX)

    rows, columns = tl.cdiv(H - residue_h, SH), tl.cdiv(W - residue_w, SW)
    pixels = N * rows * columns  # of this class
    image, h, w = unravel(start, BLOCK_M, rows, columns)
    h, w = residue_h + h * SH, residue_w + w * SW

    first_h, taps_h = _class_taps(residue_h, KH, SH, PH, DH, STEP_H)
    first_w, taps_w = _class_taps(residue_w, KW, SW, PW, DW, STEP_W)
    reached = (taps_h > 0) & (taps_w > 0)
    # a class that no tap reaches runs one step with nothing inside, and stores zeros
    first_h, first_w = tl.where(reached, first_h, 0), tl.where(reached, first_w, 0)
    taps_h, taps_w = tl.where(reached, taps_h, 1), tl.where(reached, taps_w, 1)

    oh0, ow0 = (h + PH - first_h * DH) // SH, (w + PW - first_w * DW) // SW
    w_w = tl.cast(CG, INDEX)
    w_h, w_k = KW * w_w, KH * KW * w_w
    acc = accumulate_taps(
        tl.zeros((BLOCK_M, BLOCK_N), ACC),
        dy_ptr + group * COG, ((image * OH + oh0) * OW + ow0) * CO, oh0, ow0,
        (m < pixels) & reached, OH, OW, CO,
        w_ptr + (group * COG * w_k + first_h * w_h + first_w * w_w), n, n < CG,
        STEP_H * w_h, STEP_W * w_w, w_k,
        taps_h, taps_w, COG, -(STEP_H * DH // SH), -(STEP_W * DW // SW),
        FORM, TAIL, PRECISION, BLOCK_K, STAGES,
    )  # fmt: skip

    c = group * CG + n
    finish(
        acc, dx_ptr, ((image * H + h) * W + w)[:, None] * C + c[None, :], m < pixels,
        tl.minimum(tl.maximum(pixels - start, 0), BLOCK_M), c, C, n < CG, program,
        b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
        EPS, ACTIVATION, ACC,
    )  # fmt: skip


def _dgrad(dy, w, x_shape, end: Epilogue, with_stats: bool, memory_format, geometry):
    """dx and, where wanted, [mean, var] of its channels."""
    g = Geometry(*geometry)
    dx = empty_nhwc(x_shape, dy)
    if dx.numel() == 0:
        return leave(dx, memory_format), None
    dy, w = nhwc(dy), nhwc(w)
    N, C, H, W = x_shape
    CO, OH, OW = dy.shape[1:]
    CG, KH, KW = w.shape[1:]
    COG = CO // g.groups
    step = [s // math.gcd(s, d) for s, d in zip(g.stride, g.dilation, strict=True)]
    taps = triton.cdiv(KH, step[0]) * triton.cdiv(KW, step[1])
    which = form(taps, COG)
    pixels = N * triton.cdiv(H, g.stride[0]) * triton.cdiv(W, g.stride[1])
    tile = tiles.choose(pixels, CG, taps * COG if which == "flat" else COG, dy, COG)
    tiles_m = triton.cdiv(pixels, tile.m)
    parts = tiles_m * g.stride[0] * g.stride[1]
    partial = partial_statistics(parts, C, dy) if with_stats else None
    launch(
        _conv2d_dgrad_kernel, parts * triton.cdiv(CG, tile.n) * g.groups,
        dy, w, dx,
        N, H, W, CG, OH, OW, COG, g.groups, KH, KW, *g.stride, *g.before, *g.dilation,
        *step, tiles_m,
        *end.arguments(partial), which, COG % tile.k != 0, input_precision(dy),
        accumulator(dy.dtype), index_type(dx, dy, w), tile.m, tile.n, tile.k, tile.stages,
        out=(dx, partial) if with_stats else dx, num_warps=tile.warps,
    )  # fmt: skip
    return leave(dx, memory_format), combined(partial) if with_stats else None


@op(
    "conv2d_dgrad(Tensor dy, Tensor w, Tensor? bias, SymInt[] x_shape, "
    f"MemoryFormat memory_format, {SCHEMA}) -> Tensor",
    lambda dy, w, bias, x_shape, memory_format, *_: empty_in(x_shape, dy, memory_format),
)
def conv2d_dgrad(dy, w, bias, x_shape, memory_format, *geometry):
    return _dgrad(dy, w, x_shape, Epilogue(bias), False, memory_format, geometry)[0]


@op(
    "conv2d_dgrad_stats(Tensor dy, Tensor w, Tensor? bias, SymInt[] x_shape, "
    f"MemoryFormat memory_format, {SCHEMA}) -> (Tensor, Tensor)",
    lambda dy, w, bias, x_shape, memory_format, *_: (
        empty_in(x_shape, dy, memory_format),
        dy.new_empty((2, x_shape[1]), dtype=sum_dtype(dy.dtype)),
    ),
)
def conv2d_dgrad_stats(dy, w, bias, x_shape, memory_format, *geometry):
    """dx, which has elements, and [mean, var] of its channels."""
    return _dgrad(dy, w, x_shape, Epilogue(bias), True, memory_format, geometry)


@op(
    f"conv2d_dgrad_fused(Tensor dy, Tensor w, {epilogue.SCHEMA}, SymInt[] x_shape, "
    f"MemoryFormat memory_format, {SCHEMA}) -> Tensor",
    lambda dy, w, *args: empty_in(args[-7], dy, args[-6]),
)
def conv2d_dgrad_fused(dy, w, *args):
    """As the epilogue says."""
    *end, x_shape, memory_format = args[:-5]
    return _dgrad(dy, w, x_shape, Epilogue(*end), False, memory_format, args[-5:])[0]
