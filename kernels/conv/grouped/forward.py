"""Convolution forward with few channels a group: several groups a program.

    y[n, oh, ow, o] = b[o] + sum_{kh, kw, c} x[n, h, w, c] * w[o, kh, kw, c]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW, and c runs over o's group

and what the epilogue makes of it.  A program owns BLOCK_M pixels of y by the channels of BUNDLE
neighbouring groups, and multiplies them all by the weights' blocks at once.
"""

import triton
import triton.language as tl

from ..._common import unravel
from ..epilogue import finish
from ..family import Call, Family
from ..problem import Problem
from .bundles import Bundle, bundles, constants, declines, serving
from .taps import accumulate_taps, add_tap, bundle_channels, program_anew, spoiled, tile_of


@triton.jit
def _place(
    program, OH, OW, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    GROUPS: tl.constexpr, INDEX: tl.constexpr, BUNDLE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A program's first group, its first pixel, and where its pixels' windows start."""
    bundles = tl.cdiv(GROUPS, BUNDLE)
    start = tl.cast(program // bundles, INDEX) * BLOCK_M
    image, oh, ow = unravel(start, BLOCK_M, OH, OW)
    return program % bundles * BUNDLE, start, image, oh * SH - PH, ow * SW - PW


@triton.jit
def _group_by_group(
    x_ptr, w_ptr, y_ptr, pixels, H, W, OH, OW,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr,
    GROUPS: tl.constexpr, CG: tl.constexpr, COG: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BUNDLE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """What the kernel does, where something is not finite."""
    n = tile_of(COG)
    C, CO = tl.cast(CG * GROUPS, INDEX), tl.cast(COG * GROUPS, INDEX)
    for i in range(BUNDLE):
        acc = tl.zeros((BLOCK_M, n.shape[0]), ACC)
        for tap in range(KH * KW):
            first, start, image, h0, w0 = _place(
                program_anew(i + tap), OH, OW, SH, SW, PH, PW, GROUPS, INDEX, BUNDLE, BLOCK_M
            )
            group = first + i
            h, w = h0 + tap // KW * DH, w0 + tap % KW * DW
            inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
            inside &= (start + tl.arange(0, BLOCK_M) < pixels) & (group < GROUPS)
            w_o = tl.cast(KH * KW * CG, INDEX)
            acc = add_tap(
                acc, x_ptr + (((image * H + h) * W + w) * C + group * CG), inside,
                w_ptr + ((group * COG + n) * w_o + tap * CG), (n < COG) & (group < GROUPS), 1,
                CG, PRECISION,
            )  # fmt: skip

        program = program_anew(i)
        bundles = tl.cdiv(GROUPS, BUNDLE)
        part, group = program // bundles, program % bundles * BUNDLE + i
        start = tl.cast(part, INDEX) * BLOCK_M
        m, o = start + tl.arange(0, BLOCK_M), group * COG + n
        finish(
            acc, y_ptr, m[:, None] * CO + o[None, :], m < pixels,
            tl.minimum(pixels - start, BLOCK_M), o, CO, (n < COG) & (group < GROUPS), part,
            b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
            EPS, ACTIVATION, ACC,
        )  # fmt: skip


@triton.jit(do_not_specialize=("pixels", "H", "W", "OH", "OW"))
def _conv2d_grouped_fwd_kernel(
    x_ptr, w_ptr, y_ptr,  # x [N, H, W, C], w [CO, KH, KW, CG], y [N, OH, OW, CO]
    pixels, H, W, OH, OW,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr,
    GROUPS: tl.constexpr, CG: tl.constexpr, COG: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BUNDLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    group, start, image, h0, w0 = _place(
        tl.program_id(0), OH, OW, SH, SW, PH, PW, GROUPS, INDEX, BUNDLE, BLOCK_M
    )
    c, c_inside = bundle_channels(group, GROUPS, BUNDLE, CG, BLOCK_C)
    o, o_inside = bundle_channels(group, GROUPS, BUNDLE, COG, BLOCK_O)
    m = start + tl.arange(0, BLOCK_M)
    C, CO = tl.cast(CG * GROUPS, INDEX), tl.cast(COG * GROUPS, INDEX)
    w_w = tl.cast(CG, INDEX)
    acc = accumulate_taps(
        tl.zeros((BLOCK_M, BLOCK_O), ACC),
        x_ptr + (((image * H + h0) * W + w0)[:, None] * C + (group * CG + c)[None, :]),
        h0, w0, m < pixels, c_inside, H, W, DH * W * C, DW * C,
        w_ptr + ((group * COG + o)[None, :] * (KH * KW * w_w) + (c % CG)[:, None]),
        (c // CG)[:, None] == tl.where(o_inside, o // COG, -1)[None, :], KW * w_w, w_w,
        KH, KW, DH, DW, PRECISION, STAGES,
    )  # fmt: skip
    if BUNDLE > 1:  # noqa: SIM102 at compile time, and only then the other
        if spoiled(acc):
            _group_by_group(
                x_ptr, w_ptr, y_ptr, pixels, H, W, OH, OW,
                b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
                EPS, ACTIVATION, KH, KW, SH, SW, PH, PW, DH, DW,
                GROUPS, CG, COG, PRECISION, ACC, INDEX, BUNDLE, BLOCK_M,
            )  # fmt: skip
            return

    o += group * COG
    finish(
        acc, y_ptr, m[:, None] * CO + o[None, :], m < pixels, tl.minimum(pixels - start, BLOCK_M),
        o, CO, o_inside, tl.program_id(0) // tl.cdiv(GROUPS, BUNDLE),
        b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
        EPS, ACTIVATION, ACC,
    )  # fmt: skip


def _pixels(p: Problem) -> int:
    N, _, OH, OW = p.y
    return N * OH * OW


def _prepare(p: Problem, bundle: Bundle) -> Call:
    (_, _, H, W), (_, _, OH, OW) = p.x, p.y
    tiles_m = triton.cdiv(_pixels(p), bundle.m)
    return Call(
        _conv2d_grouped_fwd_kernel,
        tiles_m * bundles(p, bundle),
        (_pixels(p), H, W, OH, OW),
        {"BLOCK_M": bundle.m, **constants(p, bundle)},
        parts=tiles_m,
    )


FORWARD = Family("grouped", declines, lambda p: serving(p, _pixels(p)), _prepare)
