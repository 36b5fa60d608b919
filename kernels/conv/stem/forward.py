"""Convolution forward with few channels, as of an image: a row of the window is contiguous in x.

    y[n, oh, ow, o] = b[o] + sum_{kh, i} x[n, h, first + i] * w[o, kh, i]
        where h = oh*SH - PH + kh*DH, first = (ow*SW - PW)*C, and i runs over KW*C elements

and what the epilogue makes of it.  A program owns a box of [BOX_N, BOX_H, BOX_W] pixels of y,
BLOCK_M in all, by BLOCK_N output channels; a step of its reduction takes ROWS rows of the window,
padded to SPAN elements each.
"""

import triton
import triton.language as tl

from ..box import box_of, first_box
from ..epilogue import finish
from ..family import Call, Family
from ..general.tiles import Tile
from ..problem import Problem
from .rows import constants, declines, serving


@triton.jit(do_not_specialize=("N", "H", "W", "OH", "OW", "boxes_h", "boxes_w"))
def _conv2d_stem_fwd_kernel(
    x_ptr, w_ptr, y_ptr,  # x [N, H, W * C], w [CO, KH, KW * C], y [N, OH, OW, CO]
    N, H, W, OH, OW, boxes_h, boxes_w,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    C: tl.constexpr, CO: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr,
    LEAD: tl.constexpr, VEC: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    tiles_n = tl.cdiv(CO, BLOCK_N)
    n = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    part = program // tiles_n
    n0, oh0, ow0 = first_box(part, boxes_h, boxes_w, BOX_N, BOX_H, BOX_W)
    p = tl.arange(0, BLOCK_M)
    image, oh, ow = n0 + p // (BOX_H * BOX_W), oh0 + p // BOX_W % BOX_H, ow0 + p % BOX_W
    pixels = (image < N) & (oh < OH) & (ow < OW)
    k = tl.arange(0, ROWS * SPAN)
    row, i = k // SPAN, k % SPAN

    # one bit for each row of the window: those inside x, where the column is inside too
    h0 = oh * SH - PH
    above = tl.minimum(tl.cdiv(tl.maximum(-h0, 0), DH), KH)
    below = tl.minimum(tl.cdiv(tl.maximum(H - h0, 0), DH), KH)
    bits = (1 << below) - (1 << above)
    first = (ow * (SW * C // VEC) - (PW * C + LEAD) // VEC) * VEC
    width = W * C // VEC * VEC  # of a row of x, which VEC divides
    column = first[:, None] + i[None, :]
    inside = pixels[:, None] & (column >= 0) & (column < width)
    near = i < (LEAD + KW * C + VEC - 1) // VEC * VEC  # the window's, and what is copied with it
    bits = tl.where(inside & near[None, :], bits[:, None] >> row[None, :], 0)

    image = tl.cast(image, INDEX)
    pitch = tl.cast(width, INDEX)
    x_tile_ptr = x_ptr + (
        ((image * H + h0) * pitch + first)[:, None] + (row * DH * pitch + i)[None, :]
    )
    w_row = tl.cast(KW * C, INDEX)
    w_tile_ptr = w_ptr + (n[None, :] * (KH * w_row) + (row * w_row + i - LEAD)[:, None])
    window = (i >= LEAD) & (i < LEAD + KW * C)
    w_inside = window[:, None] & (n < CO)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for kh in tl.range(0, KH, ROWS, num_stages=STAGES):
        x_tile = tl.load(x_tile_ptr + kh * DH * pitch, mask=((bits >> kh) & 1) != 0, other=0.0)
        if LEAD > 0 or KW * C % VEC > 0:  # beside the window not even a NaN may count
            x_tile = tl.where(window[None, :], x_tile, 0.0)
        w_tile = tl.load(
            w_tile_ptr + kh * w_row, mask=w_inside & (row < KH - kh)[:, None], other=0.0
        )
        acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION, out_dtype=ACC)

    finish(
        acc, y_ptr, (((image * OH + oh) * OW + ow) * CO)[:, None] + n[None, :], pixels,
        tl.minimum(N - n0, BOX_N) * tl.minimum(OH - oh0, BOX_H) * tl.minimum(OW - ow0, BOX_W),
        n, tl.cast(CO, INDEX), n < CO, part,
        b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
        EPS, ACTIVATION, ACC,
    )  # fmt: skip


def _prepare(p: Problem, tile: Tile) -> Call:
    (_, _, H, W), (N, CO, OH, OW) = p.x, p.y
    box = box_of(tile.m, (N, OH, OW))
    boxes_n, boxes_h, boxes_w = map(triton.cdiv, (N, OH, OW), box)
    parts = boxes_n * boxes_h * boxes_w
    return Call(
        _conv2d_stem_fwd_kernel,
        parts * triton.cdiv(CO, tile.n),
        (N, H, W, OH, OW, boxes_h, boxes_w),
        {
            **{"BLOCK_M": tile.m, "BLOCK_N": tile.n},
            **dict(zip(("BOX_N", "BOX_H", "BOX_W"), box, strict=True)),
            **constants(p, tile.k, tile),
        },
        parts=parts,
    )


FORWARD = Family("stem", declines, serving, _prepare)
