"""Gradient of a convolution with few channels with respect to its weights.

    dw[o, kh, i] = sum_{n, oh, ow} dy[n, oh, ow, o] * x[n, h, first + i]
        where h = oh*SH - PH + kh*DH, first = (ow*SW - PW)*C, and i runs over KW*C elements

A program owns BLOCK_M output channels by ROWS rows of the window, padded to SPAN elements each, and
walks a share of the boxes of [BOX_N, BOX_H, BOX_W] output pixels; the shares' sums are added in
fixed order.
"""

import math

import triton
import triton.language as tl

from ... import _split
from ..box import box_of, first_box, next_box
from ..family import Call, Family
from ..general.tiles import Tile
from ..problem import Problem
from .rows import constants, declines, serving

SIZES = ("N", "H", "W", "OH", "OW", "boxes_h", "boxes_w", "boxes", "boxes_a_split")
PROGRAMS = 528  # four for each multiprocessor of an H100, which hide each other's loads


@triton.jit(do_not_specialize=SIZES)
def _conv2d_stem_wgrad_kernel(
    dy_ptr, x_ptr, dw_ptr,  # dy [N, OH, OW, CO], x [N, H, W * C], dw [splits, CO, KH, KW * C]
    N, H, W, OH, OW, boxes_h, boxes_w, boxes, boxes_a_split,
    C: tl.constexpr, CO: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr,
    LEAD: tl.constexpr, VEC: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles_m, tiles_h = tl.cdiv(CO, BLOCK_M), tl.cdiv(KH, ROWS)
    o = program % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    program = program // tiles_m
    kh0, split = program % tiles_h * ROWS, program // tiles_h
    column = tl.arange(0, ROWS * SPAN)
    kh, i = kh0 + column // SPAN, column % SPAN

    box = split * boxes_a_split
    trips = tl.minimum(boxes - box, boxes_a_split)
    tl.assume(trips > 0)
    n0, oh0, ow0 = first_box(box, boxes_h, boxes_w, BOX_N, BOX_H, BOX_W)
    p = tl.arange(0, BLOCK_K)
    n, h, w = p // (BOX_H * BOX_W), p // BOX_W % BOX_H, p % BOX_W
    image = tl.cast(n0 + n, INDEX)
    oh, ow = oh0 + h, ow0 + w
    width = W * C // VEC * VEC  # of a row of x, which VEC divides
    pitch, channels = tl.cast(width, INDEX), tl.cast(CO, INDEX)
    first = (ow * (SW * C // VEC) - (PW * C + LEAD) // VEC) * VEC
    dy_tile_ptr = dy_ptr + ((((image * OH + oh) * OW + ow) * channels)[None, :] + o[:, None])
    x_tile_ptr = x_ptr + (
        ((image * H + oh * SH - PH) * pitch + first)[:, None] + (kh * DH * pitch + i)[None, :]
    )
    span_h, span_w = boxes_h * BOX_H, boxes_w * BOX_W

    acc = tl.zeros((BLOCK_M, ROWS * SPAN), ACC)
    dy_off, x_off = pitch * 0, pitch * 0  # zeros of the index type
    for _ in tl.range(0, trips, num_stages=STAGES):
        oh, ow = oh0 + h, ow0 + w
        inside = (oh < OH) & (ow < OW) & (n0 + n < N)
        x_h = (oh * SH - PH)[:, None] + (kh * DH)[None, :]
        x_w = ((ow * (SW * C // VEC) - (PW * C + LEAD) // VEC) * VEC)[:, None] + i[None, :]
        # one comparison each: what is negative is large without its sign
        hit = (x_h.to(tl.uint32, bitcast=True) < H) & (x_w.to(tl.uint32, bitcast=True) < width)
        dy_tile = tl.load(dy_tile_ptr + dy_off, mask=inside[None, :] & (o < CO)[:, None], other=0.0)
        x_tile = tl.load(x_tile_ptr + x_off, mask=hit & inside[:, None], other=0.0)
        acc = tl.dot(dy_tile, x_tile, acc, input_precision=PRECISION, out_dtype=ACC)

        n0, oh0, ow0, row_done, image_done = next_box(
            n0, oh0, ow0, span_h, span_w, BOX_N, BOX_H, BOX_W
        )  # fmt: skip
        dy_off += BOX_W * channels + tl.where(row_done, (BOX_H * OW - span_w) * channels, 0)
        dy_off += tl.where(image_done, (BOX_N * OH - span_h) * OW * channels, 0)
        x_off += BOX_W * SW * C + tl.where(row_done, BOX_H * SH * pitch - span_w * (SW * C), 0)
        x_off += tl.where(image_done, (BOX_N * H - span_h * SH) * pitch, 0)

    row = tl.cast(split, INDEX) * CO + o
    window = (i >= LEAD) & (i < LEAD + KW * C) & (kh < KH)
    tl.store(
        dw_ptr + (row[:, None] * (KH * KW * C) + (kh * (KW * C) + i - LEAD)[None, :]),
        acc,
        mask=(o < CO)[:, None] & window[None, :],
    )


def _prepare(p: Problem, tile: Tile) -> Call:
    (_, _, H, W), (N, CO, OH, OW) = p.x, p.y
    box = box_of(tile.k, (N, OH, OW))
    boxes_n, boxes_h, boxes_w = map(triton.cdiv, (N, OH, OW), box)
    boxes = boxes_n * boxes_h * boxes_w
    blocks = constants(p, tile.n, tile)
    programs = triton.cdiv(CO, tile.m) * triton.cdiv(p.w[2], blocks["ROWS"])
    splits, boxes_a_split = _split.shares(programs, boxes, boxes, PROGRAMS)
    return Call(
        _conv2d_stem_wgrad_kernel,
        programs * splits,
        (N, H, W, OH, OW, boxes_h, boxes_w, boxes, boxes_a_split),
        {
            **blocks,
            **{"BLOCK_M": tile.m, "BLOCK_K": tile.k},
            **dict(zip(("BOX_N", "BOX_H", "BOX_W"), box, strict=True)),
            "INDEX": p.index_of(splits * math.prod(p.w)),
        },
        parts=splits,
    )


WGRAD = Family("stem", declines, serving, _prepare)
