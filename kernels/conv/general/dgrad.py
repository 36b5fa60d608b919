"""Gradient of a convolution with respect to its input; with a bias, the transposed convolution.

    dx[n, h, w, c] = b[c] + sum_{kh, kw, o} dy[n, oh, ow, o] * w[o, kh, kw, c]
        where oh = (h + PH - kh*DH) / SH and ow = (w + PW - kw*DW) / SW are whole

and what the epilogue makes of it.  Which taps those are depends only on (h mod SH, w mod SW): for
each of these SH*SW residue classes the sum is a dense convolution of dy with every second, third,
... tap, so no product with a zero is computed.  A program owns BLOCK_M pixels of one class by
BLOCK_N input channels of one group, and reads w as it lies.
"""

import math

import triton
import triton.language as tl

from ..._common import unit, unravel
from ...norm.normalise import coefficients
from ..classes import class_taps, steps
from ..epilogue import add_to_sums, finish, pieces, store_undone
from ..family import Call, Family
from ..geometry import SIZES
from ..problem import Problem
from . import tiles
from .taps import accumulate_taps, form

DIVIDED = ("units_c", "units_co", "STEP_H", "STEP_W", "tiles_m")


@triton.jit
def _tile(
    dy_ptr, w_ptr,
    N, H, W, units_c, OH, OW, units_co, GROUPS, KH, KW, SH, SW, PH, PW, DH, DW,
    STEP_H, STEP_W, tiles_m,
    FORM: tl.constexpr, TAIL: tl.constexpr, UNIT_C: tl.constexpr, UNIT_CO: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The program's sums [BLOCK_M, BLOCK_N]; which pixels they are of, which of these there are
    and how many; its part of all; and its group's number and first channel in the group."""
    CG, COG = units_c * UNIT_C, units_co * UNIT_CO  # in units, to know what divides them
    part = tl.program_id(0)
    tiles_n = tl.cdiv(CG, BLOCK_N)
    n0 = part % tiles_n * BLOCK_N
    n = n0 + tl.arange(0, BLOCK_N)
    part = part // tiles_n
    group = part % GROUPS
    part = part // GROUPS
    start = tl.cast(part % tiles_m, INDEX) * BLOCK_M
    m = start + tl.arange(0, BLOCK_M)
    residue_h, residue_w = part // tiles_m // SW, part // tiles_m % SW
    CO = tl.cast(COG * GROUPS, INDEX)

    rows, columns = tl.cdiv(H - residue_h, SH), tl.cdiv(W - residue_w, SW)
    pixels = N * rows * columns  # of this class
    image, h, w = unravel(start, BLOCK_M, rows, columns)
    h, w = residue_h + h * SH, residue_w + w * SW

    first_h, taps_h = class_taps(residue_h, KH, SH, PH, DH, STEP_H)
    first_w, taps_w = class_taps(residue_w, KW, SW, PW, DW, STEP_W)
    reached = (taps_h > 0) & (taps_w > 0)
    # a class that no tap reaches runs one step with nothing inside, and stores zeros
    first_h, first_w = tl.where(reached, first_h, 0), tl.where(reached, first_w, 0)
    taps_h, taps_w = tl.where(reached, taps_h, 1), tl.where(reached, taps_w, 1)

    oh0, ow0 = (h + PH - first_h * DH) // SH, (w + PW - first_w * DW) // SW
    w_w = tl.cast(CG, INDEX)
    w_h, w_k = KW * w_w, KH * KW * w_w
    acc = accumulate_taps(
        tl.zeros((BLOCK_M, BLOCK_N), ACC),
        dy_ptr + group * COG, ((image * OH + oh0) * OW + ow0) * CO, oh0, ow0,
        (m < pixels) & reached, OH, OW, CO,
        w_ptr + (group * COG * w_k + first_h * w_h + first_w * w_w), n, n < CG,
        STEP_H * w_h, STEP_W * w_w, w_k,
        taps_h, taps_w, COG, -(STEP_H * DH // SH), -(STEP_W * DW // SW),
        FORM, TAIL, PRECISION, BLOCK_K, STAGES,
    )  # fmt: skip
    count = tl.minimum(tl.maximum(pixels - start, 0), BLOCK_M)
    return acc, (image * H + h) * W + w, m < pixels, count, part, group, n0


@triton.jit(do_not_specialize=(*SIZES, *DIVIDED))
def _conv2d_dgrad_kernel(
    dy_ptr, w_ptr, dx_ptr,  # dy [N, OH, OW, CO], w [CO, KH, KW, CG], dx [N, H, W, C]
    N, H, W, units_c, OH, OW, units_co, GROUPS, KH, KW, SH, SW, PH, PW, DH, DW,
    STEP_H, STEP_W,  # taps of one class lie this far apart
    tiles_m,  # tiles of the largest class
    b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, FORM: tl.constexpr, TAIL: tl.constexpr,
    UNIT_C: tl.constexpr, UNIT_CO: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    acc, pixel, rows, count, part, group, n0 = _tile(
        dy_ptr, w_ptr, N, H, W, units_c, OH, OW, units_co, GROUPS, KH, KW, SH, SW, PH, PW, DH, DW,
        STEP_H, STEP_W, tiles_m, FORM, TAIL, UNIT_C, UNIT_CO, PRECISION, ACC, INDEX,
        BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
    )  # fmt: skip
    CG = units_c * UNIT_C
    C = tl.cast(CG * GROUPS, INDEX)
    PIECE: tl.constexpr = BLOCK_N // PIECES
    acc = pieces(acc, PIECES)
    for i in tl.static_range(PIECES):
        n = n0 + i * PIECE + tl.arange(0, PIECE)
        c = group * CG + n
        finish(
            acc[i], dx_ptr, pixel[:, None] * C + c[None, :], rows, count, c, C, n < CG, part,
            b_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, residual_ptr, gate_ptr, partial_ptr,
            EPS, ACTIVATION, ACC,
        )  # fmt: skip


@triton.jit(do_not_specialize=(*SIZES, *DIVIDED))
def _conv2d_dgrad_sums_kernel(
    dy_ptr, w_ptr, g_ptr,  # dy and w as above, g, c and z [N, H, W, C]
    N, H, W, units_c, OH, OW, units_co, GROUPS, KH, KW, SH, SW, PH, PW, DH, DW,
    STEP_H, STEP_W, tiles_m,
    c_ptr, z_ptr, mean_ptr, var_ptr, scale_ptr, shift_ptr, partial_ptr,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, FORM: tl.constexpr, TAIL: tl.constexpr,
    UNIT_C: tl.constexpr, UNIT_CO: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """dgrad, and all that goes back to c of the batch norm below it."""
    acc, pixel, rows, _, part, group, n0 = _tile(
        dy_ptr, w_ptr, N, H, W, units_c, OH, OW, units_co, GROUPS, KH, KW, SH, SW, PH, PW, DH, DW,
        STEP_H, STEP_W, tiles_m, FORM, TAIL, UNIT_C, UNIT_CO, PRECISION, ACC, INDEX,
        BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
    )  # fmt: skip
    CG = units_c * UNIT_C
    C = tl.cast(CG * GROUPS, INDEX)
    PIECE: tl.constexpr = BLOCK_N // PIECES
    acc = pieces(acc, PIECES)
    for i in tl.static_range(PIECES):
        n = n0 + i * PIECE + tl.arange(0, PIECE)
        c = group * CG + n
        mean, _, scale, shift = coefficients(
            mean_ptr, var_ptr, scale_ptr, shift_ptr, c, n < CG, EPS, ACC
        )  # fmt: skip
        none = tl.zeros((BLOCK_M, PIECE), ACC)
        sum_g, sum_g_c = store_undone(
            acc[i], mean, scale, shift, g_ptr, c_ptr, z_ptr,
            pixel[:, None] * C + c[None, :], rows[:, None] & (n < CG)[None, :],
            none, none, ACTIVATION, ACC,
        )  # fmt: skip
        sums_ptr = partial_ptr + part * 2 * C
        add_to_sums(sums_ptr, 1, sum_g, sum_g_c, c, n < CG, C, var_ptr, EPS, ACC)


def _shape(p: Problem) -> tuple[int, int, int, int]:
    """The rows of the largest class, columns and reduction, and the channels of dy's rows."""
    (N, _, H, W), (CG, COG), (SH, SW) = p.x, p.channels, p.geometry.stride
    taps = math.prod(map(triton.cdiv, p.w[2:], steps(p)))
    pixels = N * triton.cdiv(H, SH) * triton.cdiv(W, SW)
    return pixels, CG, taps * COG if form(taps, COG) == "flat" else COG, COG


def _prepare(p: Problem, tile: tiles.Tile) -> Call:
    (N, _, H, W), (_, CG, KH, KW), (_, _, OH, OW), g = p.x, p.w, p.y, p.geometry
    COG, step = p.channels[1], steps(p)
    unit_c, unit_co = unit(CG), unit(COG)
    which = form(math.prod(map(triton.cdiv, (KH, KW), step)), COG)
    tiles_m = triton.cdiv(_shape(p)[0], tile.m)
    parts = tiles_m * math.prod(g.stride)
    return Call(
        _conv2d_dgrad_kernel,
        parts * triton.cdiv(CG, tile.n) * g.groups,
        (
            *(N, H, W, CG // unit_c, OH, OW, COG // unit_co, g.groups, KH, KW),
            *(*g.stride, *g.before, *g.dilation, *step, tiles_m),
        ),
        {
            **{"FORM": which, "TAIL": COG % tile.k != 0, "UNIT_C": unit_c, "UNIT_CO": unit_co},
            **p.numbers,
            **tile.constants,
            **tiles.room(p, tile, which, COG % tile.k != 0),
        },
        parts=parts,
    )


DGRAD = Family(
    "general",
    lambda p: None,
    lambda p: tiles.serving(p, *_shape(p)),
    _prepare,
    undoes=_conv2d_dgrad_sums_kernel,
)
