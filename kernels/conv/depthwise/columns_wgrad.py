"""Gradient of a convolution of one or few channels a group with respect to its weights, as a walk
down columns.

    dw[o, kh, kw, c] = sum_{n, oh, ow} dy[n, oh, ow, o] * x[n, h, w, c]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW, and c is of o's group

A program owns BLOCK_C output channels of the whole window and walks down a share of the strips:
BLOCK_P bands of COLUMNS neighbouring columns of dy.  In each step it reads the next ROWS rows of
dy, which it keeps while x reaches them, and the READ rows of x, each value of both once.  Sums over
a program's columns are left for the end.
"""

import math

import triton
import triton.language as tl

from ... import _split
from ..._common import unravel
from ..family import Call, Family
from ..problem import Problem
from .columns import span, widened
from .walks import RESIDENT, SIZES, Walk, declines, of_window, serving, strips_of, yields


@triton.jit
def add_products(
    acc, x, dy, DOWN: tl.constexpr, PLACE: tl.constexpr, FROM: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SW: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, IN: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """acc, the sums of all taps, and what a row of x adds to them with the row of dy at PLACE.

    The row of x is DOWN rows below the first that dy's window covers.
    """
    if DOWN >= 0 and DOWN <= (KH - 1) * DH and DOWN % DH == 0:
        more = ()
        for i in tl.static_range(KH * KW * IN):
            total = acc[i]
            if i // IN // KW == DOWN // DH:
                for q in tl.static_range(COLUMNS):
                    total += (
                        x[(q * SW + i // IN % KW * DW - PW - FROM) * IN + i % IN]
                        * dy[PLACE * COLUMNS + q]
                    )
            more += (total,)
        return more
    else:
        return acc


@triton.jit(do_not_specialize=(*SIZES, "tiles", "tiles_a_split"))
def _conv2d_columns_wgrad_kernel(
    # dy [N, OH, OW, C], x [N, H, W, C // OUT * IN], dw [splits, C, KH, KW, IN]
    dy_ptr, x_ptr, dw_ptr,
    N, H, W, OH, OW, bands, strips, strip_rows, steps, tiles, tiles_a_split,
    C: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr,
    READ: tl.constexpr, OPEN: tl.constexpr, START: tl.constexpr, LOW: tl.constexpr,
    FROM: tl.constexpr, TO: tl.constexpr, SAFE: tl.constexpr, WHOLE: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """START to WHOLE: as of the forward's walk, which stores a row of y where this has read all of
    x that a row of dy reaches."""
    program = tl.program_id(0)
    tiles_c = tl.cdiv(C, BLOCK_C)
    c = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    channels = c < C
    split = program // tiles_c
    first = split * tiles_a_split
    x_pixel, pixel = tl.cast(C // OUT * IN, INDEX), tl.cast(C, INDEX)
    x_pitch, dy_pitch = W * x_pixel, OW * pixel

    zeros = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    acc = (zeros,) * (KH * KW * IN)
    for tile in range(first, tl.minimum(first + tiles_a_split, tiles)):
        top = tile % strips * strip_rows
        bottom = tl.minimum(top + strip_rows, OH)
        start = tl.cast(tile // strips, INDEX) * BLOCK_P
        image, _, band = unravel(start, BLOCK_P, 1, bands)
        inside = start + tl.arange(0, BLOCK_P) < N * bands
        lanes = inside[:, None] & channels[None, :]
        ow = band * COLUMNS
        h, w = (top + START) * SH, ow * SW
        oh = top + START + LOW + OPEN
        reached = ()
        for j in tl.static_range(FROM, TO):
            if j >= 0 and j < SAFE:
                reached += (lanes,)
            else:
                reached += (lanes & ((w + j >= 0) & (w + j < W))[:, None],)
        x_tile = x_ptr + (
            ((image * H + h) * x_pitch + w * x_pixel)[:, None] + (c // OUT * IN)[None, :]
        )
        dy_tile = dy_ptr + (((image * OH + oh) * dy_pitch + ow * pixel)[:, None] + c[None, :])
        dy = (zeros,) * OPEN * COLUMNS
        for _ in range(steps):
            for i in tl.static_range(ROWS):
                there = lanes & ((oh + i >= top) & (oh + i < bottom))
                dy_row = dy_tile + i * dy_pitch
                for q in tl.static_range(COLUMNS):
                    mask = there if WHOLE else there & (ow + q < OW)[:, None]
                    dy += (widened(tl.load(dy_row + q * pixel, mask=mask, other=0.0), ACC),)
            for row in tl.static_range(READ):
                there = (h + row >= 0) & (h + row < H)
                x_row = x_tile + row * x_pitch
                x = ()
                for i in tl.static_range(FROM * IN, TO * IN):
                    value = tl.load(
                        x_row + (i // IN * x_pixel + i % IN),
                        mask=reached[i // IN - FROM] & there,
                        other=0.0,
                    )
                    x += (widened(value, ACC),)
                for i in tl.static_range(OPEN + ROWS):
                    acc = add_products(
                        acc, x, dy, row + PH - (LOW + i) * SH, i, FROM,
                        KH, KW, SW, PW, DH, DW, IN, COLUMNS,
                    )  # fmt: skip
            dy = dy[ROWS * COLUMNS :]
            x_tile += READ * x_pitch
            dy_tile += ROWS * dy_pitch
            h += READ
            oh += ROWS

    dw_tile = dw_ptr + (tl.cast(split, INDEX) * C + c) * (KH * KW * IN)
    for i in tl.static_range(KH * KW * IN):
        tl.store(dw_tile + i, tl.sum(acc[i], axis=0), mask=channels)


def _configs(p: Problem) -> tuple[Walk, ...]:
    return serving(p, p.y)


def _prepare(p: Problem, walk: Walk) -> Call:
    (N, _, H, W), (_, C, OH, OW) = p.x, p.y
    bands = triton.cdiv(OW, walk.columns)
    tiles_p, tiles_c = triton.cdiv(N * bands, walk.p), triton.cdiv(C, walk.c)
    strips, strip_rows = strips_of(p, walk, OH, tiles_p * tiles_c)
    constants, steps = span(p, walk, strip_rows)
    tiles = tiles_p * strips
    splits, tiles_a_split = _split.shares(tiles_c, tiles, tiles * steps, of_window(RESIDENT, p))
    return Call(
        _conv2d_columns_wgrad_kernel,
        splits * tiles_c,
        (N, H, W, OH, OW, bands, strips, strip_rows, steps, tiles, tiles_a_split),
        constants | {"INDEX": p.index_of(splits * math.prod(p.w))},
        parts=splits,
    )


WGRAD = Family("columns", declines, _configs, _prepare, yields)
