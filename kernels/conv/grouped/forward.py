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
from .taps import accumulate_taps, bundle_channels


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
    program = tl.program_id(0)
    bundles = tl.cdiv(GROUPS, BUNDLE)
    group = program % bundles * BUNDLE
    part = program // bundles
    c, c_inside = bundle_channels(group, GROUPS, BUNDLE, CG, BLOCK_C)
    o, o_inside = bundle_channels(group, GROUPS, BUNDLE, COG, BLOCK_O)
    start = tl.cast(part, INDEX) * BLOCK_M
    m = start + tl.arange(0, BLOCK_M)
    C, CO = tl.cast(CG * GROUPS, INDEX), tl.cast(COG * GROUPS, INDEX)

    image, oh, ow = unravel(start, BLOCK_M, OH, OW)
    h0, w0 = oh * SH - PH, ow * SW - PW
    w_w = tl.cast(CG, INDEX)
    acc = accumulate_taps(
        tl.zeros((BLOCK_M, BLOCK_O), ACC),
        x_ptr + (((image * H + h0) * W + w0)[:, None] * C + (group * CG + c)[None, :]),
        h0, w0, m < pixels, c_inside, H, W, DH * W * C, DW * C,
        w_ptr + ((group * COG + o)[None, :] * (KH * KW * w_w) + (c % CG)[:, None]),
        (c // CG)[:, None] == tl.where(o_inside, o // COG, -1)[None, :], KW * w_w, w_w,
        KH, KW, DH, DW, PRECISION, STAGES,
    )  # fmt: skip

    o += group * COG
    finish(
        acc, y_ptr, m[:, None] * CO + o[None, :], m < pixels, tl.minimum(pixels - start, BLOCK_M),
        o, CO, o_inside, part,
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
