"""Convolution, and its gradient with respect to its input: shifted boxes of pixels.

    y[n, oh, ow, o] = sum_{kh, kw, c}
        x[n, oh*SH - PH + kh*DH, ow*SW - PW + kw*DW, c] * w[o, kh, kw, c]
    dx[n, h, w, c] = sum_{kh, kw, o}
        dy[n, (h + PH - kh*DH)/SH, (w + PW - kw*DW)/SW, o] * w[o, kh, kw, c]

and what the epilogue makes of them.  A program owns a box of pixels by BLOCK_N channels: each tap
multiplies the box of the source that lies some way off, with zeros beyond the image.  It computes
them transposed, since a box can be the second operand as it is.  With statistics it walks over
several boxes, of all of which it leaves one part.

Of stride S, x is read as [N, H/S, S, W/S, S*C], where every S-th row and column makes a box; dx is
written in classes of pixels S apart, each with the taps for which the quotients are whole.
"""

import math
from collections.abc import Callable, Sequence

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...norm.normalise import coefficients, vector
from ...norm.stats import store_sums
from .. import tma
from ..box import box_of, first_box
from ..classes import class_taps, steps
from ..epilogue import (
    add_to_sums,
    channel_terms,
    pieces,
    room,
    store_and_add,
    store_tile,
    store_undone,
)
from ..family import Call, Family
from ..general.tiles import Tile
from ..geometry import SIZES
from ..problem import Problem

LEAST_K = 16  # elements of a matrix instruction
STEPS = ("H0", "W0", "STEP_H", "STEP_W", "boxes_h", "boxes_w")


@triton.jit
def _shifted_box(x_desc, n, h, w, k, K, shift_h, shift_w, SH: tl.constexpr, SW: tl.constexpr):
    """The box that lies so many rows and columns off; of every SH-th row and SW-th column."""
    if SH * SW == 1:
        return x_desc.load([n, h + shift_h, w + shift_w, k])
    else:
        # of the quotients rounded down
        far_h, far_w = shift_h & -SH, shift_w & -SW
        h, w, k = h + far_h // SH, w + far_w // SW, (shift_w - far_w) * K + k
        return x_desc.load([n, h, shift_h - far_h, w, k])


@triton.jit
def _place(
    part, boxes_h, boxes_w, RESULT_SH: tl.constexpr, RESULT_SW: tl.constexpr,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
):  # fmt: skip
    """Where a box of the result begins, of every class one after another; and its class."""
    class_h, class_w = part // RESULT_SW % RESULT_SH, part % RESULT_SW
    box = part // (RESULT_SH * RESULT_SW)
    n0, oh0, ow0 = first_box(box, boxes_h, boxes_w, BOX_N, BOX_H, BOX_W)
    return n0, oh0, ow0, class_h, class_w


@triton.jit
def _product(
    x_desc, w_desc, place, c0, K, C, KH, KW, H0, W0, STEP_H, STEP_W,
    W_ALONG_K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    SOURCE_SH: tl.constexpr, SOURCE_SW: tl.constexpr,
    RESULT_SH: tl.constexpr, RESULT_SW: tl.constexpr,
    APART_H: tl.constexpr, APART_W: tl.constexpr,
    PIXELS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Of channels from c0 on [BLOCK_N] by the pixels [PIXELS] at that place."""
    n0, oh0, ow0, class_h, class_w = place
    tap, taps_h, taps_w = 0, KH, KW
    if RESULT_SH * RESULT_SW > 1:
        kh0, taps_h = class_taps(class_h, KH, RESULT_SH, H0, STEP_H, APART_H)
        kw0, taps_w = class_taps(class_w, KW, RESULT_SW, W0, STEP_W, APART_W)
        tap = kh0 * KW + kw0
        H0 = (class_h + H0 - kh0 * STEP_H) // RESULT_SH
        W0 = (class_w + W0 - kw0 * STEP_W) // RESULT_SW
        STEP_H, STEP_W = -(APART_H * STEP_H // RESULT_SH), -(APART_W * STEP_W // RESULT_SW)

    acc = tl.zeros((BLOCK_N, PIXELS), ACC)
    trips = taps_h * taps_w * tl.cdiv(K, BLOCK_K)
    if RESULT_SH * RESULT_SW == 1:
        tl.assume(trips > 0)
    k, kw, h, w = 0, 0, H0, W0
    for _ in tl.range(0, trips, num_stages=STAGES):
        x_tile = _shifted_box(x_desc, n0, oh0, ow0, k, K, h, w, SOURCE_SH, SOURCE_SW)
        x_tile = x_tile.reshape(PIXELS, BLOCK_K)
        # past K, where w goes on with the next tap, x has zeros
        w_tile = w_desc.load([c0, tap * K + k]) if W_ALONG_K else w_desc.load([k, tap * C + c0]).T
        acc = tl.dot(w_tile, x_tile.T, acc, input_precision=PRECISION, out_dtype=ACC)

        k += BLOCK_K
        tap_done = k >= K
        k = tl.where(tap_done, 0, k)
        tap += tl.where(tap_done, APART_W, 0)
        kw += tap_done.to(tl.int32)
        w += tl.where(tap_done, STEP_W, 0)
        row_done = kw == taps_w
        kw = tl.where(row_done, 0, kw)
        w -= tl.where(row_done, taps_w * STEP_W, 0)
        h += tl.where(row_done, STEP_H, 0)
        tap += tl.where(row_done, APART_H * KW - taps_w * APART_W, 0)
    return acc


@triton.jit
def _pixels(
    start, place, N, OH, OW, INDEX: tl.constexpr,
    RESULT_SH: tl.constexpr, RESULT_SW: tl.constexpr,
    BOX_H: tl.constexpr, BOX_W: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Of a place's from `start` on, [COUNT]: where in the result they lie, and which are inside."""
    n0, oh0, ow0, class_h, class_w = place
    p = start + tl.arange(0, COUNT)
    n, oh, ow = n0 + p // (BOX_H * BOX_W), oh0 + p // BOX_W % BOX_H, ow0 + p % BOX_W
    oh, ow = oh * RESULT_SH + class_h, ow * RESULT_SW + class_w
    return (tl.cast(n, INDEX) * OH + oh) * OW + ow, (n < N) & (oh < OH) & (ow < OW)


@triton.jit(do_not_specialize=(*SIZES, "K", "units", *STEPS, "parts", "walkers"))
def _conv2d_boxes_kernel(
    x_desc, w_desc, y_ptr,  # source [N, H, W, K], w as below, result [N, OH, OW, C]
    N, K, OH, OW, units, KH, KW,
    H0, W0, STEP_H, STEP_W,  # what tap (0, 0) of pixel (0, 0) reads, and how far taps lie apart
    boxes_h, boxes_w, parts, walkers,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, W_ALONG_K: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    SOURCE_SH: tl.constexpr, SOURCE_SW: tl.constexpr,
    RESULT_SH: tl.constexpr, RESULT_SW: tl.constexpr,
    APART_H: tl.constexpr, APART_W: tl.constexpr,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """W_ALONG_K: w is [C, taps, K], otherwise [K, taps, C].

    SOURCE_S: strides of the source's boxes.  RESULT_S: those of the result's, whose taps are every
    APART-th; H0 and W0 are then the padding, STEP the dilation.
    """
    PIXELS: tl.constexpr = BOX_N * BOX_H * BOX_W
    PIECE: tl.constexpr = PIXELS // PIECES
    program = tl.program_id(0)
    C = units * UNIT
    tiles_c = tl.cdiv(C, BLOCK_N)
    walker, c0 = program // tiles_c, program % tiles_c * BLOCK_N
    c = c0 + tl.arange(0, BLOCK_N)

    if partial_ptr is None:
        place = _place(walker, boxes_h, boxes_w, RESULT_SH, RESULT_SW, BOX_N, BOX_H, BOX_W)
        acc = _product(
            x_desc, w_desc, place, c0, K, C, KH, KW, H0, W0, STEP_H, STEP_W,
            W_ALONG_K, PRECISION, ACC, SOURCE_SH, SOURCE_SW, RESULT_SH, RESULT_SW,
            APART_H, APART_W, PIXELS, BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip
        acc = pieces(acc, PIECES)
        terms = channel_terms(b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, c, c < C, EPS, ACC)
        for i in tl.static_range(PIECES):
            pixel, rows = _pixels(
                i * PIECE, place, N, OH, OW, INDEX, RESULT_SH, RESULT_SW, BOX_H, BOX_W, PIECE
            )
            store_tile(
                acc[i].T, terms, y_ptr, pixel[:, None] * C + c[None, :],
                rows[:, None] & (c < C)[None, :],
                b_ptr, mean_ptr, residual_ptr, gate_ptr, ACTIVATION, ACC,
            )  # fmt: skip
    else:
        bias = vector(b_ptr, c, c < C, 0.0, ACC)
        total = tl.zeros((BLOCK_N,), ACC)
        near, squares, count = total, total, 0
        share = 1.0 / (tl.cdiv(parts, walkers) * PIXELS)
        for part in range(walker, parts, walkers):
            place = _place(part, boxes_h, boxes_w, RESULT_SH, RESULT_SW, BOX_N, BOX_H, BOX_W)
            acc = _product(
                x_desc, w_desc, place, c0, K, C, KH, KW, H0, W0, STEP_H, STEP_W,
                W_ALONG_K, PRECISION, ACC, SOURCE_SH, SOURCE_SW, RESULT_SH, RESULT_SW,
                APART_H, APART_W, PIXELS, BLOCK_N, BLOCK_K, STAGES,
            )  # fmt: skip
            acc = pieces(acc, PIECES)
            for i in tl.static_range(PIECES):
                pixel, rows = _pixels(
                    i * PIECE, place, N, OH, OW, INDEX, RESULT_SH, RESULT_SW, BOX_H, BOX_W, PIECE
                )
                near, total, squares, count = store_and_add(
                    acc[i], bias, y_ptr, pixel[:, None] * C + c[None, :], rows, c < C, b_ptr,
                    near, total, squares, count, tl.sum(rows.to(tl.int32), axis=0), share, i == 0,
                    ACC,
                )  # fmt: skip
        store_sums(partial_ptr, walker, c, C, c < C, near, total, squares, count, share)


@triton.jit(do_not_specialize=(*SIZES, "K", "units", *STEPS, "parts", "walkers"))
def _conv2d_boxes_sums_kernel(
    dy_desc, w_desc, g_ptr,  # dy [N, OH, OW, K], w as above, g, c and z [N, H, W, C]
    N, K, H, W, units, KH, KW,
    H0, W0, STEP_H, STEP_W, boxes_h, boxes_w, parts, walkers,
    c_ptr, z_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, W_ALONG_K: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    SOURCE_SH: tl.constexpr, SOURCE_SW: tl.constexpr,
    RESULT_SH: tl.constexpr, RESULT_SW: tl.constexpr,
    APART_H: tl.constexpr, APART_W: tl.constexpr,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """dgrad, and all that goes back to c of the batch norm below it."""
    PIXELS: tl.constexpr = BOX_N * BOX_H * BOX_W
    COUNT: tl.constexpr = 2 * PIECES if PIECES > 1 else 1  # more is alive than with statistics
    PIECE: tl.constexpr = PIXELS // COUNT
    program = tl.program_id(0)
    C = units * UNIT
    tiles_c = tl.cdiv(C, BLOCK_N)
    walker, c0 = program // tiles_c, program % tiles_c * BLOCK_N
    c = c0 + tl.arange(0, BLOCK_N)
    sums_ptr = partial_ptr + walker * 2 * C
    for part in range(walker, parts, walkers):
        place = _place(part, boxes_h, boxes_w, RESULT_SH, RESULT_SW, BOX_N, BOX_H, BOX_W)
        acc = _product(
            dy_desc, w_desc, place, c0, K, C, KH, KW, H0, W0, STEP_H, STEP_W,
            W_ALONG_K, PRECISION, ACC, SOURCE_SH, SOURCE_SW, RESULT_SH, RESULT_SW,
            APART_H, APART_W, PIXELS, BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip
        acc = pieces(acc, COUNT)
        sum_g = tl.zeros((PIECE, BLOCK_N), ACC)
        sum_g_c = sum_g
        for i in tl.static_range(COUNT):
            pixel, rows = _pixels(
                i * PIECE, place, N, H, W, INDEX, RESULT_SH, RESULT_SW, BOX_H, BOX_W, PIECE
            )
            mean, _, scale, shift = coefficients(
                mean_ptr, var_ptr, scale_ptr, shift_ptr, c, c < C, EPS, ACC
            )  # fmt: skip
            sum_g, sum_g_c = store_undone(
                acc[i].T, mean, scale, shift, g_ptr, c_ptr, z_ptr,
                pixel[:, None] * C + c[None, :], rows[:, None] & (c < C)[None, :],
                sum_g, sum_g_c, ACTIVATION, ACC,
            )  # fmt: skip
        first = part == walker
        add_to_sums(sums_ptr, first, sum_g, sum_g_c, c, c < C, C, var_ptr, EPS, ACC)


def _shape(p: Problem) -> tuple[int, int, int]:
    """The product's rows, columns and reduction."""
    (N, C, H, W), (CO, _, KH, KW), (_, _, OH, OW) = p.x, p.w, p.y
    return (N * OH * OW, CO, C * KH * KW) if p.work == "forward" else (N * H * W, C, CO * KH * KW)


def _prepare(p: Problem, tile: Tile) -> Call:
    (KH, KW), g = p.w[2:], p.geometry
    apart = [1, 1]
    source_s = result_s = (1, 1)
    if p.work == "forward":
        source, result, source_s = p.x, p.y, g.stride
        start, step = [-before for before in g.before], g.dilation
    elif g.stride == (1, 1):
        source, result = p.y, p.x
        start, step = g.before, [-dilation for dilation in g.dilation]
    else:
        source, result, result_s = p.y, p.x, g.stride
        start, step, apart = g.before, g.dilation, steps(p)
    (N, K, H, W), (_, C, OH, OW) = source, result
    images = N, triton.cdiv(OH, result_s[0]), triton.cdiv(OW, result_s[1])
    halo = [d * (k - 1) // s for d, k, s in zip(g.dilation, (KH, KW), result_s, strict=True)]
    box = box_of(tile.m, images, tuple(halo))
    block_k = tile.k
    if source_s == (1, 1):
        of_x = tma.descriptor((N, H, W, K), (*box, block_k))
    else:
        block_k = min(block_k, _power(K))  # beyond a pixel's channels lie its neighbour's
        n, h, w = box
        of_x = strided(p, (n, h, 1, w, block_k))
    along_k, of_w = tma.weights(p, KH * KW, C, K, (tile.n, block_k))

    def operands(x: Tensor, w: Tensor) -> tuple[TensorDescriptor, TensorDescriptor]:
        return of_x(x), of_w(w)

    boxes_n, boxes_h, boxes_w = map(triton.cdiv, images, box)
    parts = boxes_n * boxes_h * boxes_w * math.prod(result_s)
    constants = {
        "W_ALONG_K": along_k,
        "UNIT": tma.unit(p),
        **p.numbers,
        **dict(zip(("SOURCE_SH", "SOURCE_SW"), source_s, strict=True)),
        **dict(zip(("RESULT_SH", "RESULT_SW"), result_s, strict=True)),
        **dict(zip(("APART_H", "APART_W"), apart, strict=True)),
        **dict(zip(("BOX_N", "BOX_H", "BOX_W"), box, strict=True)),
        **tile.constants,
        **room(tile, p.statistics),
        "BLOCK_K": block_k,
    }
    del constants["BLOCK_M"]
    tiles_c = triton.cdiv(C, tile.n)
    walkers = tma.walkers(p, tile, parts, tiles_c)
    return Call(
        _conv2d_boxes_kernel,
        walkers * tiles_c,
        (
            *(N, K, OH, OW, C // tma.unit(p), KH, KW, *start, *step, boxes_h, boxes_w),
            *(parts, walkers),
        ),
        constants,
        parts=walkers,
        operands=operands,
    )


def _power(n: int) -> int:
    """The largest power of two that divides n."""
    return n & -n


def _configs(p: Problem) -> tuple[Tile, ...]:
    """The largest first, where it fills the device: it reads least (measured on an H200)."""
    m, n, k = _shape(p)
    tiles = tma.serving(p, m, n, k)
    strided_dgrad = p.work == "dgrad" and p.geometry.stride != (1, 1)
    if p.capability is not None and strided_dgrad and p.dtype.itemsize == 4:
        # under triton 3.6 the products of the largest wait for one another
        tiles = tuple(t for t in tiles if t.m * t.n < tma.LARGE)
    largest = max(tiles, key=lambda t: t.m * t.n)
    if largest.n <= n and triton.cdiv(m, largest.m) * triton.cdiv(n, largest.n) >= tma.PROGRAMS:
        return largest, *(t for t in tiles if t != largest)
    return tiles


def declines_stride(p: Problem) -> str | None:
    """Why every S-th row and column of x makes no box, if so."""
    (_, _, H, W), (SH, SW) = p.x, p.geometry.stride
    if _power(SH) != SH or _power(SW) != SW:
        return "it takes strides that are powers of two"
    if H % SH or W % SW:
        return "it takes images whose sizes the stride divides"
    return None


def strided(
    p: Problem, box: Sequence[int], order: Sequence[int] = ()
) -> Callable[[Tensor], TensorDescriptor]:
    """What describes boxes of x as [N, H/S, S, W/S, S*C], the dimensions in `order` if given."""
    (N, C, H, W), (SH, SW) = p.x, p.geometry.stride
    return tma.descriptor((N, H // SH, SH, W // SW, SW * C), box, order)


def _declines(p: Problem) -> str | None:
    if p.work == "forward" and p.geometry.stride != (1, 1):
        if reason := declines_stride(p):
            return reason
        if _power(p.x[1]) < LEAST_K:
            return f"of a stride it takes channels in multiples of {LEAST_K}"
    return tma.declines(p)


def _yields(p: Problem) -> bool:
    """Of a stride, until it is measured."""
    return tma.yields(p) or p.geometry.stride != (1, 1)


FORWARD = Family("boxes", _declines, _configs, _prepare, _yields)
DGRAD = Family("boxes", _declines, _configs, _prepare, _yields, _conv2d_boxes_sums_kernel)
