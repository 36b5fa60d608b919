"""Convolution of stride 1, and its gradient with respect to its input: shifted boxes of pixels.

    y[n, oh, ow, o] = sum_{kh, kw, c} x[n, oh - PH + kh*DH, ow - PW + kw*DW, c] * w[o, kh, kw, c]
    dx[n, h, w, c] = sum_{kh, kw, o} dy[n, h + PH - kh*DH, w + PW - kw*DW, o] * w[o, kh, kw, c]

and what the epilogue makes of them.  A program owns a box of pixels by BLOCK_N channels: each tap
multiplies the box of the source that lies some way off, with zeros beyond the image.  It computes
them transposed, since a box can be the second operand as it is.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import tma
from ..box import box_of, first_box
from ..epilogue import finish
from ..family import Call, Family
from ..general.tiles import Tile
from ..geometry import SIZES
from ..problem import Problem

STEPS = ("H0", "W0", "STEP_H", "STEP_W", "boxes_h", "boxes_w")


@triton.jit(do_not_specialize=(*SIZES, "K", "units", *STEPS))
def _conv2d_boxes_kernel(
    x_desc, w_desc, y_ptr,  # source [N, H, W, K], w as below, result [N, OH, OW, C]
    N, K, OH, OW, units, KH, KW,
    H0, W0, STEP_H, STEP_W,  # what tap (0, 0) of pixel (0, 0) reads, and how far taps lie apart
    boxes_h, boxes_w,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, W_ALONG_K: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """W_ALONG_K: w is [C, taps, K], otherwise [K, taps, C]."""
    PIXELS: tl.constexpr = BOX_N * BOX_H * BOX_W
    program = tl.program_id(0)
    C = units * UNIT
    tiles_c = tl.cdiv(C, BLOCK_N)
    part, c0 = program // tiles_c, program % tiles_c * BLOCK_N
    n0, oh0, ow0 = first_box(part, boxes_h, boxes_w, BOX_N, BOX_H, BOX_W)

    acc = tl.zeros((BLOCK_N, PIXELS), ACC)
    trips = KH * KW * tl.cdiv(K, BLOCK_K)
    tl.assume(trips > 0)
    k, tap, kw, h, w = 0, 0, 0, oh0 + H0, ow0 + W0
    for _ in tl.range(0, trips, num_stages=STAGES):
        x_tile = x_desc.load([n0, h, w, k]).reshape(PIXELS, BLOCK_K)
        # past K, where w goes on with the next tap, x has zeros
        w_tile = w_desc.load([c0, tap * K + k]) if W_ALONG_K else w_desc.load([k, tap * C + c0]).T
        acc = tl.dot(w_tile, x_tile.T, acc, input_precision=PRECISION, out_dtype=ACC)

        k += BLOCK_K
        tap_done = k >= K
        k = tl.where(tap_done, 0, k)
        tap += tap_done.to(tl.int32)
        kw += tap_done.to(tl.int32)
        w += tl.where(tap_done, STEP_W, 0)
        row_done = kw == KW
        kw = tl.where(row_done, 0, kw)
        w -= tl.where(row_done, KW * STEP_W, 0)
        h += tl.where(row_done, STEP_H, 0)

    p = tl.arange(0, PIXELS)
    n, oh, ow = n0 + p // (BOX_H * BOX_W), oh0 + p // BOX_W % BOX_H, ow0 + p % BOX_W
    rows = (n < N) & (oh < OH) & (ow < OW)
    inside = tl.minimum(N - n0, BOX_N) * tl.minimum(OH - oh0, BOX_H) * tl.minimum(OW - ow0, BOX_W)
    pixel = (tl.cast(n, INDEX) * OH + oh) * OW + ow
    c = c0 + tl.arange(0, BLOCK_N)
    finish(
        acc.T, y_ptr, pixel[:, None] * C + c[None, :], rows, inside, c, C, c < C, part,
        b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
        EPS, ACTIVATION, ACC,
    )  # fmt: skip


def _shape(p: Problem) -> tuple[int, int, int]:
    """The product's rows, columns and reduction."""
    (N, C, H, W), (CO, _, KH, KW), (_, _, OH, OW) = p.x, p.w, p.y
    return (N * OH * OW, CO, C * KH * KW) if p.work == "forward" else (N * H * W, C, CO * KH * KW)


def _prepare(p: Problem, tile: Tile) -> Call:
    (KH, KW), (PH, PW), (DH, DW) = p.w[2:], p.geometry.before, p.geometry.dilation
    taps = KH * KW
    transposes = tma.transposes(p)
    along_k = p.work == "forward" or transposes
    if p.work == "forward":
        source, result, start, steps = p.x, p.y, (-PH, -PW), (DH, DW)
    else:
        source, result, start, steps = p.y, p.x, (PH, PW), (-DH, -DW)
    (N, K, H, W), (_, C, OH, OW) = source, result
    box = box_of(tile.m, (N, OH, OW), (DH * (KH - 1), DW * (KW - 1)))

    of_x = tma.descriptor((N, H, W, K), (*box, tile.k))
    if along_k:
        of_w = tma.descriptor((C, taps * K), (tile.n, tile.k))
    else:
        of_w = tma.descriptor((K, taps * C), (tile.k, tile.n))

    def operands(x: Tensor, w: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
        return of_x(x), of_w(tma.transposed(w) if transposes else w)

    boxes_n, boxes_h, boxes_w = map(triton.cdiv, (N, OH, OW), box)
    parts = boxes_n * boxes_h * boxes_w
    constants = {
        "W_ALONG_K": along_k,
        "UNIT": tma.unit(p),
        **p.numbers,
        **dict(zip(("BOX_N", "BOX_H", "BOX_W"), box, strict=True)),
        **tile.constants,
    }
    del constants["BLOCK_M"]
    return Call(
        _conv2d_boxes_kernel,
        parts * triton.cdiv(C, tile.n),
        (N, K, OH, OW, C // tma.unit(p), KH, KW, *start, *steps, boxes_h, boxes_w),
        constants,
        parts=parts,
        operands=operands,
    )


def _configs(p: Problem) -> tuple[Tile, ...]:
    """The largest first, where it fills the device: it reads least (measured on an H200)."""
    m, n, k = _shape(p)
    tiles = tma.serving(p, m, n, k)
    largest = max(tiles, key=lambda t: t.m * t.n)
    if largest.n <= n and triton.cdiv(m, largest.m) * triton.cdiv(n, largest.n) >= tma.PROGRAMS:
        return largest, *(t for t in tiles if t != largest)
    return tiles


FORWARD = Family("boxes", tma.declines, _configs, _prepare, tma.yields)
DGRAD = Family("boxes", tma.declines, _configs, _prepare, tma.yields)
