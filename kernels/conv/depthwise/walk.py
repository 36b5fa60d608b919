"""Depthwise convolution and its gradient with respect to its input: no matrix unit, whose tiles one
channel would leave empty.

    y[n, oh, ow, c] = sum_{kh, kw} x[n, h, w, c] * w[c, kh, kw]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW
    dx[n, h, w, c] = sum_{kh, kw} dy[n, oh, ow, c] * w[c, kh, kw]
        where oh = (h + PH - kh*DH) / SH, ow = (w + PW - kw*DW) / SW are whole

which the columns' residue classes and the strips' first rows tell.  A program owns a strip of ROWS
rows by BLOCK_P columns, of any images, by BLOCK_C channels.  For each kw, and TAPS taps of it at a
time, it walks down the rows of the source, and each row it loads adds to all rows of the strip that
it reaches.
"""

import triton
import triton.language as tl

from ..._common import unit, units, unravel
from ...norm.stats import block_statistics, combine, store_statistics
from ..classes import class_taps, steps
from ..epilogue import channel_terms, store_tile
from ..family import Call, Family
from ..problem import Problem
from .strips import MOST_TAPS, SIZES, Strip, declines, heights, serving


@triton.jit
def added(acc, x, factors, there, K: tl.constexpr, AT: tl.constexpr, D: tl.constexpr):
    """acc + x times the factor that lies at AT, if one of the K factors does, which are D apart.

    there tells of each factor whether it counts, or is empty where all do: 0 times NaN is NaN.
    """
    if AT >= 0 and AT <= (K - 1) * D and AT % D == 0:
        more = acc + x * factors[AT // D]
        if len(there) > 0:
            more = tl.where(there[AT // D], more, acc)
        return more
    else:
        return acc


@triton.jit(do_not_specialize=(*SIZES, "tiles_p", "STEP_W"))
def _conv2d_depthwise_kernel(
    x_ptr, w_ptr, y_ptr,  # source [N, H, W, C], w [C, KH, KW], result [N, OH, OW, C]
    N, H, W, C, OH, OW, strips, tiles_p, KH, KW, SW, PW, DW, STEP_W,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, TRANSPOSED: tl.constexpr,
    TAPS: tl.constexpr, TAIL: tl.constexpr,  # TAIL: TAPS do not divide KH
    SH: tl.constexpr, PH: tl.constexpr, DH: tl.constexpr,
    FROM: tl.constexpr, TO: tl.constexpr,  # source rows that TAPS taps bring to a strip at 0
    ACC: tl.constexpr, INDEX: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    C = units(C, UNIT)
    program = tl.program_id(0)
    tiles_c = tl.cdiv(C, BLOCK_C)
    c = program % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    channels = c < C
    part = program // tiles_c
    start = tl.cast(part % tiles_p, INDEX) * BLOCK_P

    # columns of the result, and those of the source that the first of taps_w taps reads
    if TRANSPOSED:
        residue = part // tiles_p
        columns = tl.cdiv(OW - residue, SW)
        image, strip, ow = unravel(start, BLOCK_P, strips, columns)
        ow = residue + ow * SW
        kw, taps_w = class_taps(residue, KW, SW, PW, DW, STEP_W)
        w0, step = (ow + PW - kw * DW) // SW, -(STEP_W * DW // SW)
        h0 = strip * (ROWS // SH)
    else:
        columns = OW
        image, strip, ow = unravel(start, BLOCK_P, strips, columns)
        kw, taps_w = 0, KW
        w0, step = ow * SW - PW, DW
        h0 = strip * (ROWS * SH)
    inside = start + tl.arange(0, BLOCK_P) < N * strips * columns

    pixel = tl.cast(C, INDEX)
    x_tile = x_ptr + ((((image * H + h0) * W + w0) * pixel)[:, None] + c[None, :])
    w_tile = w_ptr + (c * (KH * KW) + kw)
    acc = (tl.zeros((BLOCK_P, BLOCK_C), ACC),) * ROWS
    for kh in range(0, KH, TAPS):
        down = -(kh * DH // SH) if TRANSPOSED else kh * DH
        for tap in range(taps_w):
            w = w0 + tap * step
            column_inside = inside & (w >= 0) & (w < W)
            taps, there = (), ()
            for k in tl.static_range(TAPS):
                mask = channels & (kh + k < KH)
                w_tap = tl.load(w_tile + ((kh + k) * KW + tap * STEP_W), mask=mask, other=0.0)
                taps += (w_tap.to(ACC)[None, :],)
                if TAIL:
                    there += (kh + k < KH,)
            for row in tl.static_range(FROM, TO):
                h = h0 + down + row
                reached = column_inside & (h >= 0) & (h < H)
                x = tl.load(
                    x_tile + ((down + row) * W + tap * step) * pixel,
                    mask=reached[:, None] & channels[None, :],
                    other=0.0,
                ).to(ACC)
                more = ()
                for i in tl.static_range(ROWS):
                    if TRANSPOSED:
                        more += (added(acc[i], x, taps, there, TAPS, PH + i - row * SH, DH),)
                    else:
                        more += (added(acc[i], x, taps, there, TAPS, PH + row - i * SH, DH),)
                acc = more

    terms = channel_terms(b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, c, channels, EPS, ACC)
    oh0 = strip * ROWS
    offs = (((image * OH + oh0) * OW + ow) * pixel)[:, None] + c[None, :]
    n = tl.zeros((BLOCK_C,), ACC)
    mean, rest, var = n, n, n
    for i in tl.static_range(ROWS):
        rows = inside & (oh0 + i < OH)
        stored = store_tile(
            acc[i], terms, y_ptr, offs + i * OW * pixel, rows[:, None] & channels[None, :],
            b_ptr, mean_ptr, residual_ptr, gate_ptr, ACTIVATION, ACC,
        )  # fmt: skip
        if partial_ptr is not None:
            row_n = tl.sum(rows.to(ACC), axis=0)
            row_mean, row_rest, row_var = block_statistics(stored, rows[:, None], row_n)
            n, mean, rest, var = combine(
                n, mean, rest, var, row_n, row_mean, row_rest, row_var
            )  # fmt: skip
    if partial_ptr is not None:
        store_statistics(partial_ptr, part, c, C, channels, n, mean, rest, var)


def _configs(p: Problem) -> tuple[Strip, ...]:
    N, (SH, SW) = p.x[0], p.geometry.stride
    if p.work == "forward":
        _, _, OH, OW = p.y
        return serving(p, heights(p), OH, N * OH * OW)
    _, _, H, W = p.x
    # a strip starts at the same residue class as its image
    whole = heights(p) if SH == 1 else (2 * SH, SH)
    return serving(p, whole, H, N * H * triton.cdiv(W, SW))


def _prepare(p: Problem, strip: Strip) -> Call:
    (KH, KW), g = p.w[2:], p.geometry
    (SH, SW), (PH, PW), (DH, DW) = g.stride, g.before, g.dilation
    taps = min(KH, MOST_TAPS)
    reach = (taps - 1) * DH
    if p.work == "forward":
        source, result, classes, step = p.x, p.y, 1, 1
        rows = -PH, (strip.rows - 1) * SH - PH + reach + 1
    else:
        source, result, classes, step = p.y, p.x, SW, steps(p)[1]
        rows = -((reach - PH) // SH), (strip.rows - 1 + PH) // SH + 1
    (N, C, H, W), (_, _, OH, OW) = source, result
    strips = triton.cdiv(OH, strip.rows)
    tiles_p = triton.cdiv(N * strips * triton.cdiv(OW, classes), strip.p)
    return Call(
        _conv2d_depthwise_kernel,
        tiles_p * classes * triton.cdiv(C, strip.c),
        (N, H, W, C, OH, OW, strips, tiles_p, KH, KW, SW, PW, DW, step),
        {
            "TRANSPOSED": p.work == "dgrad",
            **{"TAPS": taps, "TAIL": KH % taps != 0, "SH": SH, "PH": PH, "DH": DH},
            **dict(zip(("FROM", "TO"), rows, strict=True)),
            **{"ACC": p.acc, "INDEX": p.index, "UNIT": unit(C)},
            **strip.constants,
        },
        parts=tiles_p * classes,
    )


FORWARD = Family("depthwise", declines, _configs, _prepare)
DGRAD = Family("depthwise", declines, _configs, _prepare)
