"""Gradient of a convolution with few channels a group with respect to its input; with a bias, the
transposed convolution.

    dx[n, h, w, c] = b[c] + sum_{kh, kw, o} dy[n, oh, ow, o] * w[o, kh, kw, c]
        where oh = (h + PH - kh*DH) / SH and ow = (w + PW - kw*DW) / SW are whole, and o runs over
        c's group

and what the epilogue makes of it.  A program owns BLOCK_M pixels of one residue class, which all
see the same taps, by the channels of BUNDLE neighbouring groups.
"""

import math

import triton
import triton.language as tl

from ..._common import unravel
from ..classes import class_taps, steps
from ..epilogue import finish
from ..family import Call, Family
from ..problem import Problem
from .bundles import Bundle, bundles, constants, declines, serving
from .taps import accumulate_taps, add_tap, bundle_channels, program_anew, spoiled, tile_of


@triton.jit
def _place(
    program, H, W, tiles_m,
    KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    GROUPS: tl.constexpr, INDEX: tl.constexpr, BUNDLE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A program's first group, part, first pixel of its class, its pixels, and the class's taps."""
    bundles = tl.cdiv(GROUPS, BUNDLE)
    group = program % bundles * BUNDLE
    part = program // bundles
    start = tl.cast(part % tiles_m, INDEX) * BLOCK_M
    residue_h, residue_w = part // tiles_m // SW, part // tiles_m % SW
    rows, columns = tl.cdiv(H - residue_h, SH), tl.cdiv(W - residue_w, SW)
    image, h, w = unravel(start, BLOCK_M, rows, columns)
    h, w = residue_h + h * SH, residue_w + w * SW

    first_h, taps_h = class_taps(residue_h, KH, SH, PH, DH, STEP_H)
    first_w, taps_w = class_taps(residue_w, KW, SW, PW, DW, STEP_W)
    reached = (taps_h > 0) & (taps_w > 0)
    # a class that no tap reaches runs one step with nothing inside, and stores zeros
    first_h, first_w = tl.where(reached, first_h, 0), tl.where(reached, first_w, 0)
    taps_h, taps_w = tl.where(reached, taps_h, 1), tl.where(reached, taps_w, 1)
    pixels = rows * columns
    return group, part, start, pixels, image, h, w, first_h, first_w, taps_h, taps_w, reached


@triton.jit
def _group_by_group(
    dy_ptr, w_ptr, dx_ptr, N, H, W, OH, OW, tiles_m, taps,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr,
    GROUPS: tl.constexpr, CG: tl.constexpr, COG: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BUNDLE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """What the kernel does, where something is not finite."""
    n = tile_of(CG)
    C, CO = tl.cast(CG * GROUPS, INDEX), tl.cast(COG * GROUPS, INDEX)
    for i in range(BUNDLE):
        acc = tl.zeros((BLOCK_M, n.shape[0]), ACC)
        for tap in range(taps):
            first, _, start, pixels, image, h, w, first_h, first_w, _, taps_w, reached = _place(
                program_anew(i + tap), H, W, tiles_m, KH, KW, SH, SW, PH, PW, DH, DW,
                STEP_H, STEP_W, GROUPS, INDEX, BUNDLE, BLOCK_M,
            )  # fmt: skip
            group = first + i
            kh, kw = first_h + tap // taps_w * STEP_H, first_w + tap % taps_w * STEP_W
            oh, ow = (h + PH - kh * DH) // SH, (w + PW - kw * DW) // SW
            inside = (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW) & reached & (group < GROUPS)
            inside &= start + tl.arange(0, BLOCK_M) < N * pixels
            w_o = tl.cast(KH * KW * CG, INDEX)
            acc = add_tap(
                acc, dy_ptr + (((image * OH + oh) * OW + ow) * CO + group * COG), inside,
                w_ptr + (group * COG * w_o + (kh * KW + kw) * CG + n), (n < CG) & (group < GROUPS),
                w_o, COG, PRECISION,
            )  # fmt: skip

        first, part, start, pixels, image, h, w, _, _, _, _, _ = _place(
            program_anew(i), H, W, tiles_m, KH, KW, SH, SW, PH, PW, DH, DW,
            STEP_H, STEP_W, GROUPS, INDEX, BUNDLE, BLOCK_M,
        )  # fmt: skip
        c, pixels = (first + i) * CG + n, N * pixels
        finish(
            acc, dx_ptr, ((image * H + h) * W + w)[:, None] * C + c[None, :],
            start + tl.arange(0, BLOCK_M) < pixels,
            tl.minimum(tl.maximum(pixels - start, 0), BLOCK_M), c, C,
            (n < CG) & (first + i < GROUPS), part,
            b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
            EPS, ACTIVATION, ACC,
        )  # fmt: skip


@triton.jit(do_not_specialize=("N", "H", "W", "OH", "OW", "tiles_m"))
def _conv2d_grouped_dgrad_kernel(
    dy_ptr, w_ptr, dx_ptr,  # dy [N, OH, OW, CO], w [CO, KH, KW, CG], dx [N, H, W, C]
    N, H, W, OH, OW, tiles_m,  # tiles of the largest class
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr,
    STEP_H: tl.constexpr, STEP_W: tl.constexpr,  # taps of one class lie this far apart
    GROUPS: tl.constexpr, CG: tl.constexpr, COG: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BUNDLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    group, part, start, pixels, image, h, w, first_h, first_w, taps_h, taps_w, reached = _place(
        tl.program_id(0), H, W, tiles_m, KH, KW, SH, SW, PH, PW, DH, DW, STEP_H, STEP_W,
        GROUPS, INDEX, BUNDLE, BLOCK_M,
    )  # fmt: skip
    c, c_inside = bundle_channels(group, GROUPS, BUNDLE, CG, BLOCK_C)
    o, o_inside = bundle_channels(group, GROUPS, BUNDLE, COG, BLOCK_O)
    m = start + tl.arange(0, BLOCK_M)
    pixels *= N
    C, CO = tl.cast(CG * GROUPS, INDEX), tl.cast(COG * GROUPS, INDEX)

    oh0, ow0 = (h + PH - first_h * DH) // SH, (w + PW - first_w * DW) // SW
    step_h, step_w = -(STEP_H * DH // SH), -(STEP_W * DW // SW)
    w_w = tl.cast(CG, INDEX)
    first = first_h * (KW * w_w) + first_w * w_w
    acc = accumulate_taps(
        tl.zeros((BLOCK_M, BLOCK_C), ACC),
        dy_ptr + (((image * OH + oh0) * OW + ow0)[:, None] * CO + (group * COG + o)[None, :]),
        oh0, ow0, (m < pixels) & reached, o_inside, OH, OW, step_h * OW * CO, step_w * CO,
        w_ptr + first + ((group * COG + o)[:, None] * (KH * KW * w_w) + (c % CG)[None, :]),
        (o // COG)[:, None] == tl.where(c_inside, c // CG, -1)[None, :],
        STEP_H * KW * w_w, STEP_W * w_w,
        taps_h, taps_w, step_h, step_w, PRECISION, STAGES,
    )  # fmt: skip
    if BUNDLE > 1:  # noqa: SIM102 at compile time, and only then the other
        if spoiled(acc):
            _group_by_group(
                dy_ptr, w_ptr, dx_ptr, N, H, W, OH, OW, tiles_m, taps_h * taps_w,
                b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
                EPS, ACTIVATION, KH, KW, SH, SW, PH, PW, DH, DW, STEP_H, STEP_W,
                GROUPS, CG, COG, PRECISION, ACC, INDEX, BUNDLE, BLOCK_M,
            )  # fmt: skip
            return

    c += group * CG
    finish(
        acc, dx_ptr, ((image * H + h) * W + w)[:, None] * C + c[None, :], m < pixels,
        tl.minimum(tl.maximum(pixels - start, 0), BLOCK_M), c, C, c_inside, part,
        b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
        EPS, ACTIVATION, ACC,
    )  # fmt: skip


def _pixels(p: Problem) -> int:
    """Of the largest class."""
    (N, _, H, W), (SH, SW) = p.x, p.geometry.stride
    return N * triton.cdiv(H, SH) * triton.cdiv(W, SW)


def _prepare(p: Problem, bundle: Bundle) -> Call:
    (N, _, H, W), (_, _, OH, OW) = p.x, p.y
    tiles_m = triton.cdiv(_pixels(p), bundle.m)
    parts = tiles_m * math.prod(p.geometry.stride)
    return Call(
        _conv2d_grouped_dgrad_kernel,
        parts * bundles(p, bundle),
        (N, H, W, OH, OW, tiles_m),
        {
            **dict(zip(("STEP_H", "STEP_W"), steps(p), strict=True)),
            "BLOCK_M": bundle.m,
            **constants(p, bundle),
        },
        parts=parts,
    )


DGRAD = Family("grouped", declines, lambda p: serving(p, _pixels(p)), _prepare)
