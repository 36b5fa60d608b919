"""Gradient of a depthwise convolution with respect to its weights.

    dw[c, kh, kw] = sum_{n, oh, ow} dy[n, oh, ow, c] * x[n, h, w, c]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW

A program owns BLOCK_C channels and TAPS x COLUMNS of the window, and walks a share of the strips:
ROWS rows of dy by BLOCK_P columns, which it holds in registers, and the rows of x that they reach.
Sums over a strip's columns are left for the end.
"""

import math

import triton
import triton.language as tl

from ... import _split
from ..._common import unit, units, unravel
from ..family import Call, Family
from ..problem import Problem
from .strips import MOST_TAPS, SIZES, Strip, declines, serving
from .walk import added

SUMS = 9  # that a thread block holds
PROGRAMS = 1056  # eight for each multiprocessor of an H100, which hide each other's loads


@triton.jit(do_not_specialize=(*SIZES, "tiles_a_split"))
def _conv2d_depthwise_wgrad_kernel(
    dy_ptr, x_ptr, dw_ptr,  # dy [N, OH, OW, C], x [N, H, W, C], dw [splits, C, KH, KW]
    N, H, W, C, OH, OW, strips, tiles_a_split, KH, KW, SW, PW, DW,
    TAPS: tl.constexpr, TAIL: tl.constexpr,  # TAIL: ROWS do not divide OH
    SH: tl.constexpr, PH: tl.constexpr, DH: tl.constexpr,
    COLUMNS: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    program = tl.program_id(0)
    tiles_c = tl.cdiv(C, BLOCK_C)
    c = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    channels = c < C
    program = program // tiles_c
    tiles_w = tl.cdiv(KW, COLUMNS)
    kw0 = program % tiles_w * COLUMNS
    program = program // tiles_w
    tiles_h = tl.cdiv(KH, TAPS)
    kh0 = program % tiles_h * TAPS
    split = tl.cast(program // tiles_h, INDEX)
    pixels = N * strips * OW
    first = split * tiles_a_split * BLOCK_P
    last = tl.minimum(first + tiles_a_split * BLOCK_P, pixels)

    pixel = tl.cast(C, INDEX)
    acc = (tl.zeros((BLOCK_P, BLOCK_C), ACC),) * (TAPS * COLUMNS)
    for start in range(first, last, BLOCK_P):
        image, strip, ow = unravel(start, BLOCK_P, strips, OW)
        inside = start + tl.arange(0, BLOCK_P) < last
        oh0 = strip * ROWS
        offs = (((image * OH + oh0) * OW + ow) * pixel)[:, None] + c[None, :]
        dy, there = (), ()
        for i in tl.static_range(ROWS):
            dy_inside = inside & (oh0 + i < OH)
            dy += (
                tl.load(
                    dy_ptr + (offs + i * OW * pixel),
                    mask=dy_inside[:, None] & channels[None, :],
                    other=0.0,
                ).to(ACC),
            )
            if TAIL:
                there += (dy_inside[:, None],)
        h0, w0 = oh0 * SH - PH + kh0 * DH, ow * SW - PW + kw0 * DW
        x_offs = (((image * H + h0) * W + w0) * pixel)[:, None] + c[None, :]
        for j in tl.static_range(COLUMNS):
            w = w0 + j * DW
            column_inside = inside & (w >= 0) & (w < W)
            for row in tl.static_range((ROWS - 1) * SH + (TAPS - 1) * DH + 1):
                h = h0 + row
                reached = column_inside & (h >= 0) & (h < H)
                x = tl.load(
                    x_ptr + (x_offs + (row * W + j * DW) * pixel),
                    mask=reached[:, None] & channels[None, :],
                    other=0.0,
                ).to(ACC)
                more = ()
                for tap in tl.static_range(TAPS * COLUMNS):
                    if tap % COLUMNS == j:
                        more += (
                            added(acc[tap], x, dy, there, ROWS, row - tap // COLUMNS * DH, SH),
                        )
                    else:
                        more += (acc[tap],)
                acc = more

    for tap in tl.static_range(TAPS * COLUMNS):
        kh, kw = kh0 + tap // COLUMNS, kw0 + tap % COLUMNS
        offs = (split * C + c) * (KH * KW) + kh * KW + kw
        mask = channels & (kh < KH) & (kw < KW)
        tl.store(dw_ptr + offs, tl.sum(acc[tap], axis=0), mask=mask)


def _configs(p: Problem) -> tuple[Strip, ...]:
    N, _, OH, OW = p.y
    return serving(p, (4, 2) if p.w[2] <= 5 else (2,), OH, N * OH * OW)


def _prepare(p: Problem, strip: Strip) -> Call:
    (N, C, H, W), (_, _, KH, KW), (_, _, OH, OW), g = p.x, p.w, p.y, p.geometry
    (SH, SW), (PH, PW), (DH, DW) = g.stride, g.before, g.dilation
    taps = min(KH, MOST_TAPS)
    columns = max(SUMS // taps, 1) if KW > 1 else 1
    strips = triton.cdiv(OH, strip.rows)
    tiles = triton.cdiv(N * strips * OW, strip.p)
    programs = triton.cdiv(C, strip.c) * triton.cdiv(KW, columns) * triton.cdiv(KH, taps)
    splits, tiles_a_split = _split.shares(programs, tiles, tiles, PROGRAMS)
    return Call(
        _conv2d_depthwise_wgrad_kernel,
        programs * splits,
        (N, H, W, C, OH, OW, strips, tiles_a_split, KH, KW, SW, PW, DW),
        {
            **{"TAPS": taps, "TAIL": OH % strip.rows != 0, "SH": SH, "PH": PH, "DH": DH},
            **{"COLUMNS": columns, "ACC": p.acc, "UNIT": unit(C)},
            "INDEX": p.index_of(splits * math.prod(p.w)),
            **strip.constants,
        },
        parts=splits,
    )


WGRAD = Family("depthwise", declines, _configs, _prepare)
