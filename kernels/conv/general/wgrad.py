"""Gradient of a convolution with respect to its weights.

    dw[o, kh, kw, c] = sum_{n, oh, ow} dy[n, oh, ow, o] * x[n, h, w, c]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW

A program owns BLOCK_M output channels by BLOCK_N columns (channels of one tap, or, with few
channels, of several) of one group, and walks boxes of BOX_N * BOX_H * BOX_W = BLOCK_K output
pixels.  The reduction is split between programs where the outputs alone are too few: partial sums
go to a workspace and are added in fixed order, so the result repeats bit for bit.
"""

import math

import triton
import triton.language as tl

from ... import _split
from ..._common import unit
from ..box import box_of, first_box, next_box
from ..family import Call, Family
from ..geometry import SIZES
from ..problem import Problem
from . import tiles
from .taps import FEW_CHANNELS

COUNTS = ("units_c", "units_co", "boxes_h", "boxes_w", "boxes", "boxes_a_split")


@triton.jit(do_not_specialize=(*SIZES, *COUNTS))
def _conv2d_wgrad_kernel(
    dy_ptr, x_ptr, dw_ptr,  # dy [N, OH, OW, CO], x [N, H, W, C], dw [splits, CO, KH, KW, CG]
    N, H, W, units_c, OH, OW, units_co, GROUPS, KH, KW, SH, SW, PH, PW, DH, DW,
    boxes_h, boxes_w, boxes, boxes_a_split,
    FLAT: tl.constexpr, UNIT_C: tl.constexpr, UNIT_CO: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
):  # fmt: skip
    CG, COG = units_c * UNIT_C, units_co * UNIT_CO  # in units, to know what divides them
    program = tl.program_id(0)
    tiles_m = tl.cdiv(COG, BLOCK_M)
    o = program % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    program = program // tiles_m
    C, CO = tl.cast(CG * GROUPS, INDEX), tl.cast(COG * GROUPS, INDEX)

    # the tile's columns: tap and channel of each; one tap for all unless FLAT
    if FLAT:
        tiles_n = tl.cdiv(KH * KW * CG, BLOCK_N)
        column = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        tap, c = column // CG, column % CG
        column_inside = tap < KH * KW
    else:
        tiles_c = tl.cdiv(CG, BLOCK_N)
        tiles_n = KH * KW * tiles_c
        tap = program % tiles_n // tiles_c
        c = program % tiles_c * BLOCK_N + tl.arange(0, BLOCK_N)
        column = tap * CG + c
        column_inside = c < CG
    kh, kw = tap // KW, tap % KW
    program = program // tiles_n
    group, split = program % GROUPS, program // GROUPS

    # outputs [from_h, to_h) x [from_w, to_w) have the tap inside the image
    from_h = tl.maximum(PH - kh * DH + SH - 1, 0) // SH
    from_w = tl.maximum(PW - kw * DW + SW - 1, 0) // SW
    to_h = tl.minimum(tl.maximum(H - 1 + PH - kh * DH + SH, 0) // SH, OH)
    to_w = tl.minimum(tl.maximum(W - 1 + PW - kw * DW + SW, 0) // SW, OW)

    box = split * boxes_a_split
    trips = tl.minimum(boxes - box, boxes_a_split)
    tl.assume(trips > 0)
    n0, oh0, ow0 = first_box(box, boxes_h, boxes_w, BOX_N, BOX_H, BOX_W)
    p = tl.arange(0, BLOCK_K)
    n, h, w = p // (BOX_H * BOX_W), p // BOX_W % BOX_H, p % BOX_W
    image = tl.cast(n0 + n, INDEX)
    oh, ow = oh0 + h, ow0 + w
    dy_tile_ptr = dy_ptr + (
        (((image * OH + oh) * OW + ow) * CO)[None, :] + (group * COG + o)[:, None]
    )
    x_tile_ptr = x_ptr + (
        (((image * H + oh * SH - PH) * W + ow * SW - PW) * C)[:, None]
        + ((kh * DH * W + kw * DW) * C + group * CG + c)[None, :]
    )
    span_h, span_w = boxes_h * BOX_H, boxes_w * BOX_W

    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    dy_off, x_off = C * 0, C * 0  # zeros of the index type
    for _ in tl.range(0, trips, num_stages=STAGES):
        oh, ow = oh0 + h, ow0 + w
        if FLAT:
            hit_h = (oh[:, None] >= from_h[None, :]) & (oh[:, None] < to_h[None, :])
            hit_w = (ow[:, None] >= from_w[None, :]) & (ow[:, None] < to_w[None, :])
            x_mask = hit_h & hit_w & (n0 + n < N)[:, None] & column_inside[None, :]
            dy_inside = (oh < OH) & (ow < OW) & (n0 + n < N)
        else:
            dy_inside = (oh >= from_h) & (oh < to_h) & (ow >= from_w) & (ow < to_w) & (n0 + n < N)
            x_mask = dy_inside[:, None] & column_inside[None, :]
        dy_tile = tl.load(
            dy_tile_ptr + dy_off, mask=dy_inside[None, :] & (o < COG)[:, None], other=0.0
        )
        x_tile = tl.load(x_tile_ptr + x_off, mask=x_mask, other=0.0)
        acc = tl.dot(dy_tile, x_tile, acc, input_precision=PRECISION, out_dtype=ACC)

        n0, oh0, ow0, row_done, image_done = next_box(
            n0, oh0, ow0, span_h, span_w, BOX_N, BOX_H, BOX_W
        )  # fmt: skip
        dy_off += BOX_W * CO + tl.where(row_done, (BOX_H * OW - span_w) * CO, 0)
        dy_off += tl.where(image_done, (BOX_N * OH - span_h) * OW * CO, 0)
        x_off += BOX_W * SW * C + tl.where(row_done, (BOX_H * SH * W - span_w * SW) * C, 0)
        x_off += tl.where(image_done, (BOX_N * H - span_h * SH) * W * C, 0)

    row = tl.cast(split, INDEX) * CO + group * COG + o
    tl.store(
        dw_ptr + (row[:, None] * (KH * KW * CG) + column[None, :]),
        acc,
        mask=(o < COG)[:, None] & column_inside[None, :],
    )


def _shape(p: Problem) -> tuple[int, int, int, int]:
    """The product's rows, columns and reduction, and the channels of the narrower rows."""
    (CG, COG), (N, _, OH, OW) = p.channels, p.y
    pixels = N * triton.next_power_of_2(OH) * triton.next_power_of_2(OW)
    if CG < FEW_CHANNELS:
        return COG, p.w[2] * p.w[3] * CG, pixels, CG
    return COG, CG, pixels, COG


def _prepare(p: Problem, tile: tiles.Tile) -> Call:
    (N, _, H, W), (_, CG, KH, KW), (_, _, OH, OW), g = p.x, p.w, p.y, p.geometry
    COG, flat = p.channels[1], CG < FEW_CHANNELS
    unit_c, unit_co = unit(CG), unit(COG)
    box = box_of(tile.k, (N, OH, OW))
    boxes_n, boxes_h, boxes_w = map(triton.cdiv, (N, OH, OW), box)
    tiles_n = triton.cdiv(KH * KW * CG, tile.n) if flat else KH * KW * triton.cdiv(CG, tile.n)
    programs = triton.cdiv(COG, tile.m) * tiles_n * g.groups
    boxes = boxes_n * boxes_h * boxes_w
    splits, boxes_a_split = _split.shares(programs, boxes, boxes)
    constants = {
        **{"FLAT": flat, "UNIT_C": unit_c, "UNIT_CO": unit_co},
        **p.numbers,
        "INDEX": p.index_of(splits * math.prod(p.w)),
        **tile.constants,
        **dict(zip(("BOX_N", "BOX_H", "BOX_W"), box, strict=True)),
    }
    return Call(
        _conv2d_wgrad_kernel,
        programs * splits,
        (
            *(N, H, W, CG // unit_c, OH, OW, COG // unit_co, g.groups, KH, KW),
            *(*g.stride, *g.before, *g.dilation, boxes_h, boxes_w, boxes, boxes_a_split),
        ),
        constants,
        parts=splits,
    )


def _configs(p: Problem) -> tuple[tiles.Tile, ...]:
    serving = tiles.serving(p, *_shape(p))
    if p.capability is None or p.dtype.itemsize != 4 or p.channels[0] >= FEW_CHANNELS:
        return serving
    # in float32, what a flat tile of 64 columns knows of its taps spills
    return tuple(tile for tile in serving if tile.n < 64)


WGRAD = Family("general", lambda p: None, _configs, _prepare)
