"""Convolution of one or few channels a group, and its gradient with respect to its input, as a walk
down columns.

    y[n, oh, ow, o] = sum_{kh, kw, c} x[n, h, w, c] * w[o, kh, kw, c]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW, and c runs over o's group
    dx[n, h, w, c] = sum_{kh, kw, o} dy[n, oh, ow, o] * w[o, kh, kw, c]
        where oh = (h + PH - kh*DH) / SH, ow = (w + PW - kw*DW) / SW are whole, and o runs over c's

A group is of IN channels of the source and OUT of the result, one each or few.  A program owns
BLOCK_P bands of COLUMNS neighbouring columns of a strip of the result, by BLOCK_C channels, whose
weights it keeps in registers.  In each step it reads the source's next READ rows,
each value once, and adds it to all the sums that it reaches: those of ROWS new rows of the result,
and of OPEN rows from the step before.  Then it stores the first ROWS of them, which are complete.
Statistics are sums about each thread's first value, put together at the end.

With both a mean and a gate, which is c then, it undoes what follows c, and the residual is where z
goes: see the epilogue.
"""

from typing import Any

import triton
import triton.language as tl

from ..._common import unravel
from ...norm.stats import about_mean, merged, store_statistics
from ..epilogue import add_to_sums, channel_terms, store_tile, store_undone
from ..family import Call, Family
from ..problem import Problem
from .walks import SIZES, Walk, declines, serving, strips_of, yields


@triton.jit
def widened(x, ACC: tl.constexpr):
    """x in ACC.  bfloat16 is the upper half of float32: told so, it takes one instruction."""
    if x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(ACC)


@triton.jit
def add_row(
    total, x, taps, DOWN: tl.constexpr, RIGHT: tl.constexpr, TRANSPOSED: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    FROM: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    """total, and what a row of the source adds to it: x, from column FROM on, IN channels each.

    The row is DOWN rows below the first that the sum's window covers (of dgrad, above the last).
    RIGHT: how far the window's first column is to the left of column 0 (of dgrad, its last to the
    right).
    """
    if DOWN >= 0 and DOWN <= (KH - 1) * DH and DOWN % DH == 0:
        for i in tl.static_range(KW * IN):
            tap = taps[DOWN // DH * KW * IN + i]
            if not TRANSPOSED:
                total += x[(i // IN * DW - RIGHT - FROM) * IN + i % IN] * tap
            elif (RIGHT - i // IN * DW) % SW == 0:
                total += x[((RIGHT - i // IN * DW) // SW - FROM) * IN + i % IN] * tap
    return total


@triton.jit(do_not_specialize=SIZES)
def _conv2d_columns_kernel(
    x_ptr, w_ptr, y_ptr,  # source [N, H, W, C // OUT * IN], result [N, OH, OW, C]
    N, H, W, OH, OW, bands, strips, strip_rows, steps,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, TRANSPOSED: tl.constexpr,
    C: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr,
    READ: tl.constexpr, OPEN: tl.constexpr,
    # rows from a strip's first to where its walk starts, and from there to the first row stored
    START: tl.constexpr, LOW: tl.constexpr,
    # columns of the source for a band that starts at 0; those from 0 to SAFE are in every image
    FROM: tl.constexpr, TO: tl.constexpr, SAFE: tl.constexpr, WHOLE: tl.constexpr,
    ACC: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    UNDOES: tl.constexpr = mean_ptr is not None and gate_ptr is not None
    program = tl.program_id(0)
    tiles_c = tl.cdiv(C, BLOCK_C)
    c = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    channels = c < C
    part = program // tiles_c
    top = part % strips * strip_rows
    bottom = tl.minimum(top + strip_rows, OH)
    start = tl.cast(part // strips, INDEX) * BLOCK_P
    image, _, band = unravel(start, BLOCK_P, 1, bands)
    inside = start + tl.arange(0, BLOCK_P) < N * bands
    lanes = inside[:, None] & channels[None, :]

    oh, ow = top + START, band * COLUMNS
    if TRANSPOSED:
        h, w = oh // SH, band * (COLUMNS // SW)
    else:
        h, w = oh * SH, ow * SW
    oh += LOW
    reached = ()
    for j in tl.static_range(FROM, TO):
        if j >= 0 and j < SAFE:
            reached += (lanes,)
        else:
            reached += (lanes & ((w + j >= 0) & (w + j < W))[:, None],)
    taps = ()
    for i in tl.static_range(KH * KW * IN):
        if TRANSPOSED:  # w [C // OUT * IN, KH, KW, OUT]
            place = ((c // OUT * IN + i % IN) * (KH * KW) + i // IN) * OUT + c % OUT
        else:  # w [C, KH, KW, IN]
            place = c * (KH * KW * IN) + i
        taps += (tl.load(w_ptr + place, mask=channels, other=0.0).to(ACC)[None, :],)

    x_pixel, pixel = tl.cast(C // OUT * IN, INDEX), tl.cast(C, INDEX)
    x_pitch, y_pitch = W * x_pixel, OW * pixel
    x_tile = x_ptr + (((image * H + h) * x_pitch + w * x_pixel)[:, None] + (c // OUT * IN)[None, :])
    offs = ((image * OH + oh) * y_pitch + ow * pixel)[:, None] + c[None, :]
    terms = channel_terms(b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, c, channels, EPS, ACC)
    zeros = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    # how many values a thread has of a channel; sums are of shares of them, so that none overflows
    n = ((bottom - top) * tl.where(inside, tl.minimum(OW - ow, COLUMNS), 0)).to(ACC)[:, None]
    share = 1.0 / tl.maximum(n, 1.0)
    near, rest, squares = zeros, zeros, zeros
    y_tile = y_ptr + offs
    acc = (zeros,) * OPEN * COLUMNS
    for _ in range(steps):
        acc += (zeros,) * ROWS * COLUMNS
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
            more = ()
            for i in tl.static_range(OPEN + ROWS):
                for q in tl.static_range(COLUMNS):
                    if TRANSPOSED:
                        more += (
                            add_row(
                                acc[i * COLUMNS + q], x, taps, LOW + i + PH - row * SH, q + PW,
                                TRANSPOSED, KH, KW, SW, DH, DW, FROM, IN,
                            ),
                        )  # fmt: skip
                    else:
                        more += (
                            add_row(
                                acc[i * COLUMNS + q], x, taps, row + PH - (LOW + i) * SH,
                                PW - q * SW, TRANSPOSED, KH, KW, SW, DH, DW, FROM, IN,
                            ),
                        )  # fmt: skip
            acc = more

        for i in tl.static_range(ROWS):
            stored = lanes & ((oh + i >= top) & (oh + i < bottom))
            y_row, residual_row, gate_row = y_tile + i * y_pitch, residual_ptr, gate_ptr
            if residual_ptr is not None:
                residual_row += offs + i * y_pitch
            if gate_ptr is not None:
                gate_row += offs + i * y_pitch
            for q in tl.static_range(COLUMNS):
                mask = stored if WHOLE else stored & (ow + q < OW)[:, None]
                if UNDOES:
                    _, mean, scale, shift = terms
                    rest, squares = store_undone(
                        acc[i * COLUMNS + q], mean, scale, shift, y_row, gate_row, residual_row,
                        q * pixel, mask, rest, squares, ACTIVATION, ACC,
                    )  # fmt: skip
                else:
                    y = store_tile(
                        acc[i * COLUMNS + q], terms, y_row, q * pixel, mask,
                        b_ptr, mean_ptr, residual_row, gate_row, ACTIVATION, ACC,
                    )  # fmt: skip
                    if partial_ptr is not None:
                        if q == 0:
                            near = tl.where(oh + i == top, y, near)
                        offset = tl.where(mask, y - near, 0.0)
                        rest += offset * share
                        squares += offset * (offset * share)
        acc = acc[ROWS * COLUMNS :]
        x_tile += READ * x_pitch
        y_tile += ROWS * y_pitch
        offs += ROWS * y_pitch
        h += READ
        oh += ROWS

    if UNDOES:
        add_to_sums(
            partial_ptr + part * 2 * pixel, True, rest, squares, c, channels, pixel, var_ptr,
            EPS, ACC,
        )  # fmt: skip
    elif partial_ptr is not None:
        var = about_mean(squares, rest)
        n, mean, rest, var = merged(n + zeros, near, rest, var)
        store_statistics(partial_ptr, part, c, C, channels, n, mean, rest, var)


@triton.jit(do_not_specialize=SIZES)
def _conv2d_columns_sums_kernel(
    dy_ptr, w_ptr, g_ptr, N, H, W, OH, OW, bands, strips, strip_rows, steps,  # as above
    c_ptr, z_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, TRANSPOSED: tl.constexpr,
    C: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, READ: tl.constexpr, OPEN: tl.constexpr,
    START: tl.constexpr, LOW: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr,
    SAFE: tl.constexpr, WHOLE: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dgrad, and all that goes back to c of the batch norm below it."""
    _conv2d_columns_kernel(
        dy_ptr, w_ptr, g_ptr, N, H, W, OH, OW, bands, strips, strip_rows, steps,
        None, mean_ptr, var_ptr, scale_ptr, shift_ptr, z_ptr, c_ptr, partial_ptr,
        EPS, ACTIVATION, TRANSPOSED, C, IN, OUT, KH, KW, SH, SW, PH, PW, DH, DW,
        READ, OPEN, START, LOW, FROM, TO, SAFE, WHOLE, ACC, INDEX, ROWS, COLUMNS, BLOCK_P, BLOCK_C,
    )  # fmt: skip


def _configs(p: Problem) -> tuple[Walk, ...]:
    return serving(p, p.y if p.work == "forward" else p.x)


def span(
    p: Problem, walk: Walk, strip_rows: int, clear: bool = False
) -> tuple[dict[str, Any], int]:
    """The kernels' constants, and the steps down a strip of so many rows.

    clear: above strips there is nothing to read.
    """
    (KH, KW), g, forward = p.w[2:], p.geometry, p.work != "dgrad"
    (SH, SW), (PH, PW), (DH, DW) = g.stride, g.before, g.dilation
    high, wide = (KH - 1) * DH, (KW - 1) * DW
    W, OW = (p.x[3], p.y[3]) if forward else (p.y[3], p.x[3])
    last = (triton.cdiv(OW, walk.columns) - 1) * walk.columns  # column where the last band starts
    if forward:
        read, low, start = walk.rows * SH, -((high - PH) // SH), -triton.cdiv(PH, SH)
        opened = (PH - 1) // SH - low + 1
        columns = -PW, (walk.columns - 1) * SW - PW + wide + 1
        safe = min((walk.columns - 1) * SW + 1, columns[1], W - last * SW)
    else:
        read, low, start = walk.rows // SH, -PH, min(-((high - PH) // SH), PH // SH) * SH
        opened = max(high - SH + 1, 0)
        columns = -((wide - PW) // SW), (walk.columns - 1 + PW) // SW + 1
        safe = min(walk.columns // SW, W - last // SW)
    ins, outs = p.channels if forward else p.channels[::-1]
    if clear:
        start = max(start, min(-low, 0))
    constants = {
        **{
            "C": outs * g.groups,
            "IN": ins,
            "OUT": outs,
            "KH": KH,
            "KW": KW,
            "SH": SH,
            "SW": SW,
            "PH": PH,
            "PW": PW,
            "DH": DH,
            "DW": DW,
        },
        **{"READ": read, "OPEN": opened, "START": start, "LOW": low},
        **dict(zip(("FROM", "TO"), columns, strict=True)),
        **{"SAFE": max(safe, 0), "WHOLE": OW % walk.columns == 0},
        **{"ACC": p.acc, "INDEX": p.index},
        **walk.constants,
    }
    return constants, triton.cdiv(strip_rows - start - low, walk.rows)


def _prepare(p: Problem, walk: Walk) -> Call:
    forward = p.work == "forward"
    source, result = (p.x, p.y) if forward else (p.y, p.x)
    (N, _, H, W), (_, C, OH, OW) = source, result
    bands = triton.cdiv(OW, walk.columns)
    tiles_p, tiles_c = triton.cdiv(N * bands, walk.p), triton.cdiv(C, walk.c)
    strips, strip_rows = strips_of(p, walk, OH, tiles_p * tiles_c)
    constants, steps = span(p, walk, strip_rows, clear=strips == 1)
    return Call(
        _conv2d_columns_kernel,
        strips * tiles_p * tiles_c,
        (N, H, W, OH, OW, bands, strips, strip_rows, steps),
        {"TRANSPOSED": not forward, **constants},
        parts=strips * tiles_p,
    )


FORWARD = Family("columns", declines, _configs, _prepare, yields)
DGRAD = Family("columns", declines, _configs, _prepare, yields, _conv2d_columns_sums_kernel)
