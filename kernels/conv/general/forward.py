"""Convolution forward, the general family: implicit GEMM over gathered pixels.

    y[n, oh, ow, o] = b[o] + sum_{kh, kw, c} x[n, h, w, c] * w[o, kh, kw, c]
        where h = oh*SH - PH + kh*DH, w = ow*SW - PW + kw*DW

and what the epilogue makes of it.  A program owns BLOCK_M pixels of y by BLOCK_N output channels of
one group.
"""

import triton
import triton.language as tl

from ..._common import unit, unravel
from ..epilogue import finish, pieces
from ..family import Call, Family
from ..geometry import SIZES
from ..problem import Problem
from . import tiles
from .taps import accumulate_taps, form


@triton.jit(do_not_specialize=("pixels", "units_c", "units_co", *SIZES))
def _conv2d_fwd_kernel(
    x_ptr, w_ptr, y_ptr,  # x [N, H, W, C], w [CO, KH, KW, CG], y [N, OH, OW, CO]
    pixels, H, W, units_c, OH, OW, units_co, GROUPS, KH, KW, SH, SW, PH, PW, DH, DW,
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, FORM: tl.constexpr, TAIL: tl.constexpr,
    UNIT_C: tl.constexpr, UNIT_CO: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    CG, COG = units_c * UNIT_C, units_co * UNIT_CO  # in units, to know what divides them
    program = tl.program_id(0)
    tiles_n = tl.cdiv(COG, BLOCK_N)
    n = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    group = program // tiles_n % GROUPS
    start = tl.cast(program // (tiles_n * GROUPS), INDEX) * BLOCK_M
    m = start + tl.arange(0, BLOCK_M)
    C, CO = tl.cast(CG * GROUPS, INDEX), tl.cast(COG * GROUPS, INDEX)

    image, oh, ow = unravel(start, BLOCK_M, OH, OW)
    h0, w0 = oh * SH - PH, ow * SW - PW
    w_w = tl.cast(CG, INDEX)
    acc = accumulate_taps(
        tl.zeros((BLOCK_M, BLOCK_N), ACC),
        x_ptr + group * CG, ((image * H + h0) * W + w0) * C, h0, w0, m < pixels, H, W, C,
        w_ptr + tl.cast(group * COG, INDEX) * (KH * KW * CG), n * (KH * KW * w_w), n < COG,
        KW * w_w, w_w, 1,
        KH, KW, CG, DH, DW, FORM, TAIL, PRECISION, BLOCK_K, STAGES,
    )  # fmt: skip

    PIECE: tl.constexpr = BLOCK_N // PIECES
    acc = pieces(acc, PIECES)
    for i in tl.static_range(PIECES):
        n = program % tiles_n * BLOCK_N + i * PIECE + tl.arange(0, PIECE)
        o = group * COG + n
        finish(
            acc[i], y_ptr, m[:, None] * CO + o[None, :], m < pixels,
            tl.minimum(pixels - start, BLOCK_M), o, CO, n < COG, program // (tiles_n * GROUPS),
            b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
            EPS, ACTIVATION, ACC,
        )  # fmt: skip


def _shape(p: Problem) -> tuple[int, int, int, int]:
    """The product's rows, columns and reduction, and the channels of x's rows."""
    (N, _, OH, OW), (CG, COG) = p.y, p.channels
    taps = p.w[2] * p.w[3]
    return N * OH * OW, COG, taps * CG if form(taps, CG) == "flat" else CG, CG


def _prepare(p: Problem, tile: tiles.Tile) -> Call:
    (N, _, H, W), (_, CG, KH, KW), (_, _, OH, OW), g = p.x, p.w, p.y, p.geometry
    COG, pixels = p.channels[1], N * OH * OW
    unit_c, unit_co = unit(CG), unit(COG)
    tiles_m = triton.cdiv(pixels, tile.m)
    return Call(
        _conv2d_fwd_kernel,
        tiles_m * triton.cdiv(COG, tile.n) * g.groups,
        (
            *(pixels, H, W, CG // unit_c, OH, OW, COG // unit_co, g.groups, KH, KW),
            *(*g.stride, *g.before, *g.dilation),
        ),
        {
            **{"FORM": form(KH * KW, CG), "TAIL": CG % tile.k != 0},
            **{"UNIT_C": unit_c, "UNIT_CO": unit_co},
            **p.numbers,
            **tile.constants,
            **tiles.room(p, tile, form(KH * KW, CG), CG % tile.k != 0),
        },
        parts=tiles_m,
    )


FORWARD = Family("general", lambda p: None, lambda p: tiles.serving(p, *_shape(p)), _prepare)
